"""What the config of each kind of stage holds: built by the planner, dumped into the key, and parsed once by the body.

Fields of `LATER` stand in a key only where they say something, so that each kind of stage has in it what its answer depends on.
"""

from typing import Any, ClassVar, Generic, Literal

from pydantic import Field, SerializeAsAny

from paretune.study.base import Spec, SpecT
from paretune.study.data import LengthRule
from paretune.study.train import Train


class BaseConfig(Spec):
    """A base, or its tokenizer."""

    digest: str
    """Of the files that count, or `hub:NAME@COMMIT`."""
    trust_remote_code: bool = False


class ItemsConfig(Spec):
    """The items of an evaluation, as the leakage check reads them."""

    LATER: ClassVar = ("fields", "revision")
    digest: str
    reader: str
    """`module:function`."""
    revision: int = 1
    """Of the reader."""
    fields: dict[str, Any] = Field({})
    """Arguments of the reader."""


class ClassifierConfig(Spec):
    """The classifier of a filter."""

    unsafe: tuple[str, ...]
    threshold: float
    digest: str


class SafetyConfig(Spec):
    """A filter for unsafe text."""

    LATER: ClassVar = ("words", "classifier", "device")
    words: str | None = None
    """Digest of the list."""
    classifier: ClassifierConfig | None = None
    device: str | None = None
    """Of the classifier."""


class DataConfig(Spec):
    """Records to documents, in splits."""

    LATER: ClassVar = ("items", "safety")
    dataset: dict[str, Any]
    """A `Dataset` as it enters the key: with digests in the place of paths."""
    items: dict[str, ItemsConfig] | None = None
    """What is removed from training, by evaluation."""
    safety: SafetyConfig | None = None
    """What is dropped."""


class LeakageConfig(Spec):
    """The check of splits and items against training text."""

    mode: Literal["block", "remove", "allow"]
    items: dict[str, ItemsConfig] = Field({})
    """By evaluation."""


class AuditConfig(Spec):
    """The audit of a dataset."""

    LATER: ClassVar = ("safety",)
    labels: tuple[str, ...]
    """Tasks that have labels."""
    safety: SafetyConfig | None = None
    """What is counted."""


class TokenizeConfig(Spec):
    """Documents to tokens."""

    LATER: ClassVar = ("control_tokens",)
    base: BaseConfig
    max_length: int
    too_long: LengthRule
    control_tokens: Literal["strip", "text", "learn"] | None = None


class MethodConfig(Spec, Generic[SpecT]):
    """A method that does not train; `max_length`, `precision` and `device` where it takes the tokens."""

    LATER: ClassVar = ("max_length", "precision", "device", "ships")
    base: BaseConfig
    method: SerializeAsAny[SpecT]
    max_length: int | None = None
    precision: str | None = None
    device: str | None = None
    ships: str | None = None
    """As in an evaluation."""


class TrainConfig(Spec, Generic[SpecT]):
    """A training."""

    base: BaseConfig
    method: SerializeAsAny[SpecT]
    train: Train
    seed: int
    precision: str
    device: str


class TeacherConfig(Spec):
    """What a teacher says at the targets of the training split."""

    base: BaseConfig
    """Of the teacher."""
    top_k: int | None
    """Words of a target that are kept; None for all."""
    max_length: int
    precision: str
    device: str

    def bytes_of_target(self, num_words: int) -> int:
        """On disk, of a vocabulary of so many words: numbers of 16 bits, and with `top_k` the words and what is left."""
        if self.top_k is None:
            return 2 * num_words
        return min(self.top_k, num_words) * (2 + (2 if num_words <= 2**16 else 4)) + 4


class AnswersConfig(Spec):
    """What a teacher writes to the prompts of the training split."""

    base: BaseConfig
    """Of the teacher."""
    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...]
    precision: str
    device: str


class EvaluationConfig(Spec):
    """A measurement of a model."""

    LATER: ClassVar = ("max_length", "machine", "safety", "ships")
    base: BaseConfig
    evaluation: dict[str, Any]
    """The config of the evaluation as it enters the key: with digests in the place of paths."""
    precision: str
    device: str
    max_length: int | None = None
    """Of texts, where the tokens are taken."""
    machine: dict[str, Any] | None = None
    """Its fingerprint, where time is measured."""
    safety: SafetyConfig | None = None
    """What is marked in the texts that are written."""
    ships: str | None = None
    """Number format that the weights are rounded to before they are measured, as they ship; None for `precision`."""


class RatingConfig(Spec):
    """Ratings of texts."""

    LATER: ClassVar = ("rubric", "sheets")
    evaluation: dict[str, Any]
    rubric: str | None = None
    """The wording of what is asked of a rater."""
    sheets: dict[str, str] | None = None
    """Digest of each person's sheet."""
