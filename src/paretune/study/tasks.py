"""What a dataset teaches besides plain text: tasks with a prompt and a completion each, and ready formats of records.

How a task is asked and answered decides what is trained; how its answers are scored does not, and stays out of training's key.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from paretune.study.base import Spec, distinct, listed

Scorer = Literal["rouge_1", "rouge_2", "rouge_l", "bert_score", "exact_match", "contains", "squad_em", "set_f1", "accuracy"]
BERT_SCORE = "bert_score"
"""The scorer that needs an encoder."""
METRICS = {BERT_SCORE: "bert_score_f1"}
"""The metric that a scorer stands for, where it has another name."""
RecordFormat = Literal["alpaca", "prompt_completion", "messages", "sharegpt"]


def task_metrics(scoring: Mapping[str, Any]) -> list[str]:
    """The metrics that a task of a dataset is judged by, the most telling first."""
    labelled = ["accuracy", "accuracy_generated"] if scoring.get("labels") else []
    return list(dict.fromkeys([*labelled, *(METRICS.get(name, name) for name in scoring["score"])]))


class Scoring(Spec):
    """How the answers to a task are made and scored on held-out records. Nothing of it changes what is trained."""

    score: tuple[Scorer, ...] = ()
    """What a generated answer is scored by; nothing is generated for a task without `score` and `labels`. `exact_match` ignores
    case, white space and the punctuation around an answer, and takes numbers as numbers (3.140 is 3.14, 314 is not);
    `contains` looks for the right answer so among whole words; `squad_em` removes ASCII punctuation and articles first, as
    SQuAD's script does, to which 314 is 3.14. `bert_score` needs the `encoder` of the evaluation `tasks`. Where several answers
    to the same prompt are right, the best score counts."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest generated answer; it ends at the end-of-text token or at a `stop`."""
    stop: tuple[str, ...] = ()
    """Texts that end a generated answer; they are left out of it."""

    @field_validator("score", "stop")
    @classmethod
    def _are_distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an entry is empty")
        return distinct(value)


class Task(Scoring):
    """One thing to learn from a record: a completion that follows the shared context and the task's prompt."""

    LATER: ClassVar = ("references",)
    prompt: str = ""
    """A Jinja2 template over a record's fields; it follows the context literally."""
    completion: str = Field(min_length=1)
    """A template; the loss is taken on it, and on the end-of-text token after it, alone."""
    references: tuple[str, ...] = ()
    """What is right too: fields of a record, with a text or a list of texts each, or templates. The best score counts, metric
    by metric; learned is the completion alone."""
    empty: Literal["skip", "keep"] = "skip"
    """Completions of nothing but white space: left out and counted, or learned as an answer that ends at once."""
    labels: Literal["from_train"] | tuple[str, ...] | None = None
    """The answers of a classification, or those that occur in the training split: adds `accuracy`, by likelihood."""

    _one_reference = field_validator("references", mode="before")(listed)

    @model_validator(mode="after")
    def _labels_are_several(self) -> Self:
        if isinstance(self.labels, tuple) and (len(set(self.labels)) < len(self.labels) or len(self.labels) < 2):
            raise ValueError("`labels` are two or more different texts, or `from_train`")
        if isinstance(self.labels, tuple) and not all(label.strip() for label in self.labels):
            raise ValueError("one of `labels` is empty")
        if "accuracy" in self.score and self.labels is None:
            raise ValueError("`accuracy` needs `labels: from_train`, or a list of them; `exact_match` does without")
        return self


class Records(Scoring):
    """Records in a format that many people have; written `records: alpaca`, or with more fields `records: {format: alpaca}`."""

    format: RecordFormat
    """`alpaca` (`instruction`, `input`, `output`), `prompt_completion`, `messages` or `sharegpt` (`conversations`).

    Of conversations each turn of the assistant is learned as the chat template of the base writes it, with thoughts
    (`reasoning_content`), calls of tools and the record's `tools` where it does; turns of `weight: 0`, `train: false` or
    `loss: false` are read and not learned."""

    @model_validator(mode="after")
    def _no_labels(self) -> Self:
        if "accuracy" in self.score:
            raise ValueError("`accuracy` needs labels; write `tasks:` with `labels:` instead of `records:`")
        return self


AnyRecords = Annotated[
    Annotated[Records, Tag("as:Records")] | Annotated[RecordFormat, Tag("as:RecordFormat")],
    Discriminator(lambda value: "as:Records" if isinstance(value, Records | Mapping) else "as:RecordFormat"),
]

SCORING = ("score", "max_new_tokens", "stop", "labels")
"""The fields that say how answers are made and scored."""
RESPONSE = "response"
"""The one task of a ready format."""


def taught(tasks: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """Of each task what the records of a dataset are made of, for a key."""
    fields = {"prompt", "completion", "empty", "references"}
    return {name: task.model_dump(mode="json", include=fields) for name, task in tasks.items()}
