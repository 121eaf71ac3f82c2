"""How all training methods of a study train."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paretune.study.base import Spec

DEFAULT_EPOCHS = 3
"""Passes over the training split where a study says neither `epochs` nor `max_steps`."""


class EarlyStopping(Spec):
    """Stop when validation has not improved for `patience` evaluations."""

    patience: int = Field(ge=1)
    """Evaluations without improvement."""
    metric: Literal["loss", "token_accuracy"] = "loss"
    """What has to improve, on validation."""


class Train(Spec):
    """What all training methods of a study share, so that they differ in nothing else."""

    LATER: ClassVar = ("layout",)
    epochs: int | None = Field(None, ge=1)
    """Passes over the training split; 3 unless `max_steps` is given."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps instead of epochs."""
    batch_size: int = Field(8, ge=1)
    """Examples (documents, or windows of long ones) in one optimizer step."""
    max_length: int = Field(512, ge=8)
    """Tokens of an example at most."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down to 0 in a cosine or a line, or as it is."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's; on matrices only."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A longer gradient is scaled down to this norm."""
    evaluate_every: Literal["epoch"] | int = "epoch"
    """Validation loss every epoch, or every so many steps."""
    early_stopping: EarlyStopping | None = None
    """Stop before the end; off unless given."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the artifact: of the evaluation with the lowest validation loss, or of the last step."""
    base_dropout: Literal["keep"] | float = "keep"
    """The dropout inside the base model: as its config says, or this rate in every dropout layer."""
    layout: Literal["trees", "padded"] = "trees"
    """Whether a context is encoded once for all of its tasks in a step, or once for each. Without dropout both give the same
    weights; with it, `trees` draws one mask for a shared context."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("`epochs` and `max_steps` exclude each other")
        if isinstance(self.evaluate_every, int) and self.evaluate_every < 1:
            raise ValueError("`evaluate_every` is `epoch` or a number of steps from 1")
        if isinstance(self.base_dropout, float) and not 0 <= self.base_dropout < 1:
            raise ValueError("`base_dropout` is `keep` or a rate from 0 to below 1")
        return self

    @property
    def chosen_by(self) -> Literal["loss", "token_accuracy"]:
        """What decides on validation text: which weights are kept, and which value of a tuned field."""
        return self.early_stopping.metric if self.early_stopping else "loss"

    @property
    def num_epochs(self) -> int | None:
        """None where `max_steps` decides."""
        return None if self.max_steps else self.epochs or DEFAULT_EPOCHS
