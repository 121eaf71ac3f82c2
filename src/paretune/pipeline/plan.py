"""The plan: the stages to run, each once, in order, and the cells of the matrix that they make up; `planner` makes it.

Which trial a tuned variant becomes is known once the trials have run (`tuning.decide`): until then its cells hang on a stage
`tune.choose` that never runs, and the plan that is made again with the choice has the stages of that trial in its place, under
the keys that its value written out has.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from paretune.pipeline.stage import Stage

SIZE = "size"
"""Name of the evaluation that every variant gets: parameters and bytes."""
CHOICE = "tune.choose"
"""Kind of the stage that stands for a choice that is not made yet."""
Choices = Mapping[str, int]
"""Index of the chosen trial, by the key of the choice's stage."""


@dataclass(frozen=True)
class PlannedCell:
    """One variant of one base on one dataset with one seed, as stages."""

    base: str
    dataset: str
    variant: str
    seed: int | None
    methods: tuple[Stage, ...]
    evaluations: Mapping[str, Stage]


@dataclass(frozen=True)
class PlannedTrial:
    name: str
    methods: tuple[Stage, ...]
    """To the last one that trains."""


@dataclass(frozen=True)
class PlannedTuning:
    """The trials of a tuned variant on one base and dataset, all with the study's first seed."""

    base: str
    dataset: str
    variant: str
    seed: int
    trials: tuple[PlannedTrial, ...]
    choice: Stage
    chosen: int | None
    """Index of a trial; None before the choice."""

    @property
    def name(self) -> str:
        return f"{self.base}/{self.dataset}/{self.variant}"


@dataclass(frozen=True)
class Plan:
    data: Mapping[str, Stage]
    leakage: Mapping[str, Stage]
    tokens: Mapping[tuple[str, str], Stage]
    """By (base, dataset)."""
    cells: tuple[PlannedCell, ...]
    tunings: tuple[PlannedTuning, ...] = ()
    choices: Choices = field(default_factory=dict)
    """That the plan was made with."""
    remake: Callable[[Choices], "Plan"] | None = field(default=None, compare=False, repr=False)
    """The plan with other choices."""
    audit: Mapping[str, Stage] = field(default_factory=dict)
    stages: tuple[Stage, ...] = field(init=False)
    """Each once, parents before children."""
    undecided: frozenset[Stage] = field(init=False)
    """Stages that hang on a choice that is not made yet, its own among them: none of them can run."""

    def __post_init__(self) -> None:
        wanted = [*self.data.values(), *self.leakage.values(), *self.audit.values(), *self.tokens.values()]
        trials = {tuning.name: [s for trial in tuning.trials for s in trial.methods] for tuning in self.tunings}
        for cell in self.cells:
            tried = trials.get(f"{cell.base}/{cell.dataset}/{cell.variant}", ())
            wanted += [*tried, *cell.methods, *cell.evaluations.values()]
        stages = tuple(dict.fromkeys(s for stage in wanted for s in _with_parents(stage)))
        undecided: set[Stage] = set()
        for stage in stages:
            if stage.kind == CHOICE or not undecided.isdisjoint(stage.inputs.values()):
                undecided.add(stage)
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "undecided", frozenset(undecided))

    def uses(self, stage: Stage) -> list[str]:
        """What needs a stage: cells like `gpt2/news/reduced seed 0`, or datasets like `news`, `gpt2/news` for its tokens."""
        of_data = [name for stages in (self.data, self.leakage, self.audit) for name, one in stages.items() if one == stage]
        of_tokens = ["/".join(pair) for pair, one in self.tokens.items() if one == stage]
        cells = [cell_name(cell) for cell in self.cells if stage in (*cell.methods, *cell.evaluations.values())]
        tried = [f"{one.name} trial {trial.name}" for one in self.tunings for trial in one.trials if stage in trial.methods]
        return of_data + of_tokens + cells + tried


def cell_name(cell: PlannedCell) -> str:
    seed = "" if cell.seed is None else f" seed {cell.seed}"
    return f"{cell.base}/{cell.dataset}/{cell.variant}{seed}"


def _with_parents(stage: Stage) -> Iterator[Stage]:
    for parent in (*stage.inputs.values(), *stage.after):
        yield from _with_parents(parent)
    yield stage
