"""The methods that a study can chain: one config class each, and the table of their rows."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from paretune.spec.base import Spec
from paretune.spec.registry import Method


class TrainFull(Spec):
    """Full fine-tuning: every weight is trained, in float32."""

    learning_rate: float = Field(3.0e-5, gt=0)
    """At its highest, after the warm-up."""


class TrainLora(Spec):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv 2106.09685), through PEFT."""

    learning_rate: float = Field(3.0e-4, gt=0)
    """At its highest, after the warm-up; about ten times that of full fine-tuning."""
    r: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: int = Field(16, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias vectors are trained as well."""
    targets: Literal["default", "all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "default"
    """Modules by the end of their name; `default` is PEFT's choice for the architecture, `all-linear` all but the head."""


class PruneBlocks(Spec):
    """Remove whole transformer blocks: named ones, or `count` chosen ones."""

    blocks: tuple[int, ...] | None = Field(None, min_length=1)
    """Indices into the blocks of the model that the method is given, from 0."""
    count: int | None = Field(None, ge=1)
    """How many to remove."""
    choose: Literal["last", "first"] = "last"
    """Which ones, with `count`."""

    @model_validator(mode="after")
    def _named_or_counted(self) -> Self:
        if (self.blocks is None) == (self.count is None):
            raise ValueError("name either `blocks: [...]` or `count: N`")
        if self.blocks is not None:
            if "choose" in self.model_fields_set:
                raise ValueError("`choose` goes with `count`; `blocks` names the blocks already")
            if len(set(self.blocks)) < len(self.blocks) or min(self.blocks) < 0:
                raise ValueError("`blocks` are distinct indices from 0")
        return self


METHODS = (
    Method("prune.blocks", PruneBlocks, "paretune.variants.stages:prune_blocks"),
    Method("train.full", TrainFull, "paretune.train.stages:train_full", trains=True),
    Method("train.lora", TrainLora, "paretune.train.stages:train_lora", trains=True),
)
