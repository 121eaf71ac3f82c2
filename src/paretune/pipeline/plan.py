"""Study + lock -> plan: the stages to run, each once, in order, and the cells of the matrix that they make up.

A stage's config holds all that its answer depends on and nothing else, as it is what the key is made of. Planning is a pure
function: it reads no data, loads no model and writes nothing.

Which trial a tuned variant becomes is known once the trials have run (`paretune.pipeline.tuning`): until then its cells hang on
a stage `tune.choose`, which has no body and never runs.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paretune.errors import SpecError
from paretune.pipeline.config_json import num_blocks
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.parts import Parts
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Stage
from paretune.pipeline.stage_configs import (
    AnswersConfig,
    AuditConfig,
    BaseConfig,
    DataConfig,
    EvaluationConfig,
    LeakageConfig,
    MethodConfig,
    RatingConfig,
    TeacherConfig,
    TokenizeConfig,
    TrainConfig,
)
from paretune.pipeline.store import Store
from paretune.study.base import Spec
from paretune.study.data import Dataset, Source
from paretune.study.evaluations import SIZE
from paretune.study.grid import which_variant
from paretune.study.registry import Evaluation, Teacher, load_function, methods
from paretune.study.study import Study
from paretune.study.variants import MethodUse, Variant

if TYPE_CHECKING:
    from paretune.pipeline.lock import Lock

CHOICE = "tune.choose"
"""Kind of the stage that stands for a choice that is not made yet."""
TEACHER = "distill.teacher"
"""Kind of the stage of what a teacher says at every target, which all of its students take."""
ANSWERS = "distill.answers"
"""The same of what it writes to every prompt."""


@dataclass(frozen=True)
class PlannedCell:
    """One variant of one base on one dataset with one seed, as stages."""

    base: str
    dataset: str
    variant: str
    seed: int | None
    methods: tuple[Stage, ...]
    evaluations: Mapping[str, Stage]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its methods and evaluations."""
        return (*self.methods, *self.evaluations.values())


@dataclass(frozen=True)
class PlannedTrial:
    """The methods of a tuned variant with one combination of values."""

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
    chosen: int | None = None
    """Index of a trial; None before the choice."""

    @property
    def name(self) -> str:
        return f"{self.base}/{self.dataset}/{self.variant}"


@dataclass(frozen=True)
class Plan:
    """All stages of a study."""

    data: Mapping[str, Stage]
    leakage: Mapping[str, Stage]
    tokens: Mapping[tuple[str, str], Stage]
    """By (base, dataset)."""
    cells: tuple[PlannedCell, ...]
    tunings: tuple[PlannedTuning, ...] = ()
    audit: Mapping[str, Stage] = field(default_factory=dict)
    stages: tuple[Stage, ...] = field(init=False)
    """Each once, parents before children, and those of a cell together."""
    undecided: frozenset[Stage] = field(init=False)
    """Stages that hang on a choice that is not made yet, its own among them: none of them can run."""

    def __post_init__(self) -> None:
        wanted = [*self.data.values(), *self.leakage.values(), *self.audit.values(), *self.tokens.values()]
        trials = {tuning.name: [s for trial in tuning.trials for s in trial.methods] for tuning in self.tunings}
        for cell in self.cells:
            wanted += [*trials.get(f"{cell.base}/{cell.dataset}/{cell.variant}", ()), *cell.stages]
        stages = tuple(dict.fromkeys(s for stage in wanted for s in _with_parents(stage)))
        undecided: set[Stage] = set()
        for stage in stages:
            if not stage.runs or not undecided.isdisjoint(stage.inputs.values()):
                undecided.add(stage)
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "undecided", frozenset(undecided))

    def uses(self, stage: Stage) -> list[str]:
        """What needs a stage: cells like `gpt2/news/reduced seed 0`, with the name of an evaluation in the study (`: qa_hard`),
        or datasets like `news`, `gpt2/news` for its tokens."""
        of_data = [name for stages in (self.data, self.leakage, self.audit) for name, other in stages.items() if other == stage]
        of_tokens = ["/".join(pair) for pair, other in self.tokens.items() if other == stage]
        cells = [f"{cell_name(cell)}{_as_evaluation(cell, stage)}" for cell in self.cells if stage in cell.stages]
        tried = [
            f"{other.name} trial {trial.name}" for other in self.tunings for trial in other.trials if stage in trial.methods
        ]
        taught = [
            f"student {cell_name(cell)}"
            for cell in self.cells
            if stage.kind in (TEACHER, ANSWERS) and any(stage in method.inputs.values() for method in cell.methods)
        ]
        return of_data + of_tokens + cells + tried + taught


def _as_evaluation(cell: PlannedCell, stage: Stage) -> str:
    """`: qa_hard`, as the study names what the stage measures."""
    names = [name for name, other in cell.evaluations.items() if other == stage]
    return f": {' and '.join(names)}" if names else ""


def cell_name(cell: PlannedCell) -> str:
    """`gpt2/news/reduced seed 0`."""
    seed = "" if cell.seed is None else f" seed {cell.seed}"
    return f"{cell.base}/{cell.dataset}/{cell.variant}{seed}"


@dataclass(frozen=True)
class Wanted:
    """Which cell: a variant, and the rest where there are several."""

    variant: str
    base: str | None = None
    data: str | None = None
    seed: int | None = None


def find_cell(plan: Plan, wanted: Wanted) -> PlannedCell:
    """The one cell that `wanted` names; SpecError with the choices where there is none or more than one."""
    variants = sorted({cell.variant for cell in plan.cells})
    if wanted.variant not in variants:
        raise SpecError(f"no variant `{wanted.variant}`{which_variant(wanted.variant, variants)}")
    cells = [cell for cell in plan.cells if cell.variant == wanted.variant]
    for flag, asked, name in (
        ("--base", wanted.base, "base"),
        ("--data", wanted.data, "dataset"),
        ("--seed", wanted.seed, "seed"),
    ):
        values = list(dict.fromkeys(getattr(cell, name) for cell in cells))
        if asked is None and len(values) > 1:
            raise SpecError(f"{flag}: `{wanted.variant}` has {', '.join(f'`{value}`' for value in values)}; name one")
        if asked is not None and values != [None]:
            cells = [cell for cell in cells if getattr(cell, name) == asked]
            if not cells:
                raise SpecError(f"{flag}: no `{asked}`; there is {', '.join(f'`{value}`' for value in values)}")
    return cells[0]


def pending(plan: Plan, store: Store) -> list[Resource]:
    """What a run has to fetch for the stages that are not in the store: models that the cache does not hold whole, datasets."""
    needed = (resource for stage in plan.stages if not store.find(stage) for resource in stage.resources.values())
    return [resource for resource in dict.fromkeys(needed) if not resource.is_here()]


def make_plan(study: Study, lock: "Lock", folder: Path) -> Plan:
    """The stages of `study`, whose relative paths start at `folder`."""
    planner = _Planner(study, lock, folder)
    data = {name: planner.data(dataset) for name, dataset in study.data.items()}
    leakage = {name: planner.leakage(dataset, data[name]) for name, dataset in study.data.items()}
    audit = {name: planner.audit(dataset, data[name]) for name, dataset in study.data.items()}
    tokens = {
        (base, name): planner.tokens(base, dataset, data[name]) for base in study.bases for name, dataset in study.data.items()
    }
    cells: list[PlannedCell] = []
    tunings: list[PlannedTuning] = []
    for base, dataset, name in itertools.product(study.bases, study.data, study.variants):
        variant = study.variants[name]
        if base not in (variant.bases or study.bases):
            continue
        given = _Given(base, dataset, tokens[base, dataset], leakage[dataset])
        tunings += [planner.tuning(given, name, variant)] if variant.trials else []
        for seed in study.seeds if variant.trains else (None,):
            methods = planner.cell(given, name, seed)
            evaluations = planner.evaluations(given, methods[-1] if methods else None)
            cells.append(PlannedCell(base, dataset, name, seed, methods, evaluations))
    return Plan(data, leakage, tokens, tuple(cells), tuple(tunings), audit)


def first_tokens(tokens: Stage) -> Stage:
    """The same data by the tokenizer of the base: how much a rewritten one makes of it is known once it is there."""
    while model := tokens.inputs.get("model"):
        tokens = model.inputs["tokens"]
    return tokens


def _with_parents(stage: Stage) -> Iterator[Stage]:
    # Depth first, where `graphlib` goes breadth first: the numbers of one variant are there before the next one trains.
    for parent in stage.needs:
        yield from _with_parents(parent)
    yield stage


@dataclass(frozen=True)
class _Given:
    """What the stages of the variants of one base on one dataset start from."""

    base: str
    dataset: str
    tokens: Stage
    gate: Stage
    """Leakage: nothing is trained or measured where it blocks."""


@dataclass(frozen=True)
class _Planner:
    """Holds what all stages are made from; every method makes one kind of stage."""

    study: Study
    lock: "Lock"
    folder: Path

    def data(self, dataset: Dataset) -> Stage:
        parts = Parts(self.study, self.lock, self.folder)
        content = dataset.content
        sources = {role: parts.source(role, source) for role, source in dataset.sources.items()}
        if isinstance(dataset.source, Source):
            content["source"] = sources["source"]
        else:
            content["source"] = {role.removeprefix("source."): source for role, source in sources.items()}
            del content["split"]
        drops = self.study.safety is not None and self.study.safety.data == "drop"
        config = DataConfig(
            dataset=content,
            items=parts.all_items() if dataset.leakage == "remove" else None,
            safety=parts.safety() if drops else None,
        )
        body = "paretune.data.prepare:prepare_data"
        revision = 2 if config.items is None else 3  # what is removed
        return Stage("data", config.model_dump(mode="json"), body, resources=parts.resources, revision=revision)

    def leakage(self, dataset: Dataset, data: Stage) -> Stage:
        parts = Parts(self.study, self.lock, self.folder)
        config = LeakageConfig(mode=dataset.leakage, items=parts.all_items())
        body, resources = "paretune.data.prepare:check_leakage", {**data.resources, **parts.resources}
        return Stage("leakage", config.model_dump(mode="json"), body, {"data": data}, resources=resources, revision=3)

    def audit(self, dataset: Dataset, data: Stage) -> Stage:
        parts = Parts(self.study, self.lock, self.folder)
        counts = self.study.safety is not None and self.study.safety.data == "count"
        labels = tuple(sorted(name for name, task in dataset.tasks.items() if task.labels))
        config = AuditConfig(labels=labels, safety=parts.safety() if counts else None).model_dump(mode="json")
        body = "paretune.data.audit:audit_data"
        return Stage("audit", config, body, {"data": data}, resources=parts.resources, revision=2)

    def tokens_of(self, given: _Given, model: Stage | None) -> Stage:
        """The data as a model reads it: by the tokenizer of its base, or by that of the last method that rewrote it."""
        while model is not None:
            row = methods().get(model.kind)
            if row is not None and row.rewrites_tokenizer:
                return self.tokens(given.base, self.study.data[given.dataset], given.tokens.inputs["data"], model)
            model = model.inputs.get("model") or model.inputs.get("choice") if model.runs else next(iter(model.needs))
        return given.tokens

    def tokens(self, base: str, dataset: Dataset, data: Stage, model: Stage | None = None) -> Stage:
        locked = self.lock.bases[base]
        config = TokenizeConfig(
            base=BaseConfig(digest=locked.tokenizer_digest, trust_remote_code=self.study.bases[base].trust_remote_code),
            max_length=self.study.train.max_length,
            too_long=dataset.length_rule,
            control_tokens=dataset.control_tokens,
        )
        body = "paretune.data.examples:tokenize_tasks" if dataset.completes else "paretune.data.tokenizer:tokenize"
        inputs = {"data": data} | ({"model": model} if model else {})
        return Stage("tokenize", config.model_dump(mode="json"), body, inputs, resources={"base": locked.resource})

    def cell(self, given: _Given, name: str, seed: int | None) -> tuple[Stage, ...]:
        """The methods of a variant; `seed` matters where one of them trains."""
        variant = self.study.variants[name]
        seed = seed if variant.trains else None
        if not variant.trials:
            return self.methods(given, variant.methods, seed)
        tuning = self.tuning(given, name, variant)
        if seed == tuning.seed:  # the trials are its own
            rest = variant.methods[variant.last_trained + 1 :]
            return (tuning.choice, *self.methods(given, rest, seed, model=tuning.choice))
        return self.methods(given, variant.methods, seed, waits={variant.first_tuned: tuning.choice})

    def tuning(self, given: _Given, name: str, variant: Variant) -> PlannedTuning:
        seed, end = self.study.seeds[0], variant.last_trained + 1
        trials = tuple(PlannedTrial(trial.name, self.methods(given, trial.methods[:end], seed)) for trial in variant.trials)
        choice = Stage(CHOICE, {"by": self.study.train.chosen_by}, "", {trial.name: trial.methods[-1] for trial in trials})
        return PlannedTuning(given.base, given.dataset, name, seed, trials, choice)

    def methods(
        self,
        given: _Given,
        chain: tuple[MethodUse, ...],
        seed: int | None,
        *,
        model: Stage | None = None,
        waits: Mapping[int, Stage] | None = None,
    ) -> tuple[Stage, ...]:
        """The stages of `chain`, applied to `model` (or the base); `waits` are choices that have to be made before a method."""
        stages: list[Stage] = []
        for index, use in [(i, use) for i, use in enumerate(chain) for _ in range(self._stops(given, chain, i))]:
            before = stages[-1] if stages else model
            inputs: dict[str, Stage] = {"model": before} if before else {}
            if waits and index in waits:
                inputs["choice"] = waits[index]
            base_config, device = self._base(given.base), self.lock.device
            config: TrainConfig[Spec] | MethodConfig[Spec] = MethodConfig(
                base=base_config, method=use.config, ships=self._ships(given)
            )
            after: tuple[Stage, ...] = ()
            revision = use.row.revision
            if use.row.trains:
                assert seed is not None, "a variant that trains has seeds"
                config = TrainConfig(
                    base=base_config,
                    method=use.config,
                    train=self.study.train,
                    seed=seed,
                    precision=self.lock.compute,
                    device=device,
                )
            elif use.row.uses_tokens(use.config):
                length, precision = self.study.train.max_length, self.lock.evaluate
                config = config.model_copy(update={"max_length": length, "precision": precision, "device": device})
            if use.row.trains or use.row.uses_tokens(use.config):
                inputs["tokens"] = self.tokens_of(given, before or inputs.get("choice"))
                after = (given.gate,)
                revision += use.row.task_revision if self.study.data[given.dataset].completes else 0
            if teacher := use.row.teacher(use.config):
                inputs["teacher"] = self._teacher(given, teacher, seed)
                read = self.tokens_of(given, inputs["teacher"].inputs.get("model"))
                if teacher.writing is None and read != inputs["tokens"]:
                    raise SpecError(
                        f"{use.name}: teacher and student of base `{given.base}` read different tokens, as one of them has a "
                        "smaller vocabulary; put `prune.vocabulary` behind the distillation"
                    )
            resources = {"base": self.lock.bases[given.base].resource}
            content = config.model_dump(mode="json")
            stages.append(Stage(use.name, content, use.row.body, inputs, after, resources, revision))
        return tuple(stages)

    def _stops(self, given: _Given, chain: tuple[MethodUse, ...], index: int) -> int:
        """How many stages a method of `chain` has: of those that go on until so much is left, as config.json says."""
        if chain[index].row.stops(chain[index].config, 2**20) == 1:
            return 1
        locked = self.lock.bases[given.base]
        for number, use in enumerate(chain[:index]):
            if use.row.check:
                config = load_function(use.row.check)(use.config, f"[{number}].{use.name}", given.base, locked)
                locked = replace(locked, config=config)
        return chain[index].row.stops(chain[index].config, num_blocks(locked.config) or 1)

    def _teacher(self, given: _Given, teacher: Teacher, seed: int | None) -> Stage:
        """What `teacher` says at the targets of the training split, or to its prompts, for a student with `seed`."""
        base, inputs = given.base, {"tokens": given.tokens}
        if teacher.name in self.study.variants:
            methods = self.cell(given, teacher.name, seed if teacher.seed is None else teacher.seed)
            inputs |= {"model": methods[-1]} if methods else {}
        elif teacher.name in self.study.bases:
            base = teacher.name
        read_by, precision, device = self._base(base), self.lock.evaluate, self.lock.device
        if teacher.writing is not None:
            dataset, data = self.study.data[given.dataset], given.tokens.inputs["data"]
            other = base != given.base
            inputs["tokens"] = self.tokens(base, dataset, data) if other else self.tokens_of(given, inputs.get("model"))
            answers = AnswersConfig(base=read_by, precision=precision, device=device, **asdict(teacher.writing))
            content = answers.model_dump(mode="json")
            body, resources = "paretune.evaluate.teacher:write_teacher_answers", {"base": self.lock.bases[base].resource}
            return Stage(ANSWERS, content, body, inputs, (given.gate,), resources)
        length = self.study.train.max_length
        config = TeacherConfig(base=read_by, top_k=teacher.top_k, max_length=length, precision=precision, device=device)
        resources = {"base": self.lock.bases[base].resource, "student": self.lock.bases[given.base].resource}
        body = "paretune.train.teacher:write_teacher"
        return Stage(TEACHER, config.model_dump(mode="json"), body, inputs, (given.gate,), resources)

    def evaluations(self, given: _Given, model: Stage | None) -> dict[str, Stage]:
        """All that is measured of a model (or the base), by name: what is asked for, and `size`."""
        uses = self.study.evaluations_of(given.dataset)
        asked = {SIZE.name: (SIZE, SIZE.config())} | {name: (use.row, use.config) for name, use in uses.items()}
        stages: dict[str, Stage] = {}
        for name, (row, spec) in sorted(asked.items(), key=lambda item: item[1][0].rates_texts):
            rated = [other for other in asked if row.rates_texts and asked[other][0].texts_are_rated]
            texts = {f"texts.{other}": stages[other] for other in rated}
            stages[name] = self._evaluation(given, name, row, spec, model, texts)
        return stages

    def _evaluation(
        self, given: _Given, name: str, row: Evaluation, spec: Spec, model: Stage | None, texts: Mapping[str, Stage]
    ) -> Stage:
        """One evaluation of a model, of the base, or of texts."""
        parts = Parts(self.study, self.lock, self.folder, f"evaluate.{name}", self.study.data[given.dataset])
        content = row.content(spec, parts) if row.content else {"evaluation": spec.model_dump(mode="json")}
        inputs = dict(texts)
        if row.items:  # their digest in the place of the path
            fields = {field: value for field, value in content["evaluation"].items() if field not in row.items.places}
            content["evaluation"] = fields | {"path": parts.items("items", row, spec)}
        if row.rates_texts:
            # Of texts alone: neither the model nor the machine that wrote them matters beyond what they are.
            inputs["data"] = given.tokens.inputs["data"]
            config: EvaluationConfig | RatingConfig = RatingConfig(**content)
        else:
            parts.resources["base"] = self.lock.bases[given.base].resource
            inputs |= {"model": model} if model else {}
            inputs |= {"tokens": self.tokens_of(given, model)} if row.uses_tokens else {}
            if row.needs_untouched and model:
                inputs["untouched"] = self._evaluation(given, name, row, spec, None, texts)
            config = EvaluationConfig(
                base=self._base(given.base),
                **content,
                precision=self.lock.evaluate,
                device=self.lock.device,
                max_length=self.study.train.max_length if row.uses_tokens else None,
                machine=fingerprint() if row.measures_time else None,
                safety=parts.safety() if row.writes_text else None,
                ships=self._ships(given),
            )
        kind, key, after = f"evaluate.{row.name}", config.model_dump(mode="json"), () if row is SIZE else (given.gate,)
        return Stage(kind, key, row.body, inputs, after, parts.resources, row.revision, parts.unhashed)

    def _ships(self, given: _Given) -> str | None:
        dtype = self.lock.bases[given.base].dtype
        return None if dtype == "float32" or self.study.precision.export == "float32" else dtype

    def _base(self, name: str) -> BaseConfig:
        trusted = self.study.bases[name].trust_remote_code
        return BaseConfig(digest=self.lock.bases[name].digest, trust_remote_code=trusted)
