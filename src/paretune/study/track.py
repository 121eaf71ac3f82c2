"""Where a run is shown besides its report: trackers of experiments. No part of any key: what tracks changes no result."""

from typing import Literal

from pydantic import Field

from paretune.study.base import Spec


class Wandb(Spec):
    """Weights & Biases; one run a variant and seed, grouped by study."""

    project: str | None = None
    """The name of the study unless given."""
    entity: str | None = None
    """User or team; the account's own unless given."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes a directory that `wandb sync` uploads."""


class TensorBoard(Spec):
    """Event files, a directory a variant and seed: `tensorboard --logdir DIR`."""

    dir: str | None = None
    """`tensorboard` in the store unless given; relative to the study file."""


class MLflow(Spec):
    """One run a variant and seed."""

    uri: str | None = None
    """A server, or a directory; `mlruns` in the store unless given."""
    experiment: str | None = None
    """The name of the study unless given."""


class Trackio(Spec):
    """A local database, shown by `trackio show`; one run a variant and seed, grouped by study."""

    project: str | None = None
    """The name of the study unless given."""
    space: str | None = None
    """A Hugging Face space `owner/name` to send it to; local unless given."""


class Track(Spec):
    """Trackers, each with its settings or `{}`. A tracker that fails or hangs changes nothing of a run."""

    wandb: Wandb | None = None
    """Needs the package `wandb`."""
    tensorboard: TensorBoard | None = None
    """Needs the package `tensorboard`."""
    mlflow: MLflow | None = None
    """Needs the package `mlflow` or `mlflow-skinny`."""
    trackio: Trackio | None = None
    """Needs the package `trackio`."""
    wait: float = Field(30.0, ge=0)
    """Seconds that a run waits at its end for a tracker that has not sent everything yet, and then leaves it."""
