"""Study + lock -> plan: what every stage is made from, so that its key holds all that its answer depends on and nothing else.

Planning is a pure function: it reads no data, loads no model and writes nothing.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError, SpecError
from paretune.pipeline.hub import DATASET
from paretune.pipeline.lock import Lock, count_blocks, num_positions
from paretune.pipeline.machine import fingerprint, has, way_to
from paretune.pipeline.plan import CHOICE, SIZE, Choices, Plan, PlannedCell, PlannedTrial, PlannedTuning
from paretune.pipeline.stage import ENVIRONMENT, Stage
from paretune.study.data import Dataset, Source
from paretune.study.evaluations import Forgetting, LmEval, Tasks
from paretune.study.ratings import Judge, Ratings
from paretune.study.registry import Evaluation, Method
from paretune.study.study import RATED, EvaluationUse, Study
from paretune.study.tasks import BERT_SCORE
from paretune.study.variants import MethodUse, Variant


def make_plan(study: Study, lock: Lock, folder: Path) -> Plan:
    """The stages of `study`, whose relative paths start at `folder`.

    Raises SpecError for what no model of the study can do, NeedsError for what a method needs and this machine does not have.
    """
    _check_lengths(study, lock)
    _check_needs(study, lock.device)

    def make(choices: Choices) -> Plan:
        return _Planner(study, lock, folder, choices).plan(make)

    return make({})


class _Planner:
    """Holds what all stages are made from; every method is one kind of stage."""

    def __init__(self, study: Study, lock: Lock, folder: Path, choices: Choices) -> None:
        self.study, self.lock, self.folder, self.choices = study, lock, folder, choices

    def plan(self, remake: Callable[[Choices], Plan]) -> Plan:
        study = self.study
        data = {name: self._data(dataset) for name, dataset in study.data.items()}
        leakage = {name: self._leakage(dataset, data[name]) for name, dataset in study.data.items()}
        audit = {name: self._audit(dataset, data[name]) for name, dataset in study.data.items()}
        tokens = {
            (base, name): self._tokens(base, dataset, data[name])
            for base in study.bases
            for name, dataset in study.data.items()
        }
        cells: list[PlannedCell] = []
        tunings: list[PlannedTuning] = []
        for base, dataset, variant in itertools.product(study.bases, study.data, study.variants):
            if base not in (study.variants[variant].bases or study.bases):
                continue
            spec, given = study.variants[variant], (tokens[base, dataset], leakage[dataset])
            tuning = self._tuning(base, dataset, variant, *given) if spec.trials else None
            tunings += [tuning] if tuning else []
            seeds: tuple[int | None, ...] = study.seeds if any(use.row.trains for use in spec.methods) else (None,)
            for seed in seeds:
                methods = self._chain(spec, tuning, base, seed, *given)
                evaluations = self._evaluations(base, dataset, methods[-1] if methods else None, *given)
                cells.append(PlannedCell(base, dataset, variant, seed, methods, evaluations))
        return Plan(data, leakage, tokens, tuple(cells), tuple(tunings), self.choices, remake, audit)

    def _tuning(self, base: str, dataset: str, variant: str, tokens: Stage, gate: Stage) -> PlannedTuning:
        spec, seed = self.study.variants[variant], self.study.seeds[0]
        trials = tuple(
            PlannedTrial(trial.name, self._methods(base, trial.methods[: spec.last_trained + 1], seed, tokens, gate))
            for trial in spec.trials
        )
        choice = Stage(CHOICE, {"by": self.study.train.chosen_by}, "", {trial.name: trial.methods[-1] for trial in trials})
        return PlannedTuning(base, dataset, variant, seed, trials, choice, self.choices.get(choice.key))

    def _chain(
        self, spec: Variant, tuning: PlannedTuning | None, base: str, seed: int | None, tokens: Stage, gate: Stage
    ) -> tuple[Stage, ...]:
        """The stages of a variant with one seed; of a tuned one the chosen trial's, or what there will be instead of them."""
        if tuning is None:
            return self._methods(base, spec.methods, seed, tokens, gate)
        if tuning.chosen is not None:
            return self._methods(base, spec.trials[tuning.chosen].methods, seed, tokens, gate)
        if seed != tuning.seed:
            return self._methods(base, spec.methods, seed, tokens, gate, waits={spec.first_tuned: tuning.choice})
        rest = spec.methods[spec.last_trained + 1 :]
        return (tuning.choice, *self._methods(base, rest, seed, tokens, gate, model=tuning.choice))

    def _data(self, dataset: Dataset) -> Stage:
        resources: dict[str, str] = {}
        content = dataset.content
        if isinstance(dataset.source, Source):
            content["source"] = self._source(dataset.source, "source", resources)
        else:
            content["source"] = {s: self._source(source, f"source.{s}", resources) for s, source in dataset.source}
            del content["split"]
        config: dict[str, Any] = {"dataset": content}
        if dataset.leakage == "remove":
            config["items"] = self._items(resources)
        if self.study.safety is not None and self.study.safety.data == "drop":
            config["safety"] = self._safety(resources)
        return Stage("data", config, "paretune.data.prepare:prepare_data", resources=resources)

    def _source(self, source: Source, role: str, resources: dict[str, str]) -> dict[str, Any]:
        content = source.model_dump(mode="json")
        if source.path:
            resources[role] = str((self.folder / source.path).resolve())
            content |= {"path": f"sha256:{self.lock.files[source.path]}", "format": source.resolved_format}
        elif source.hub:
            resources[role] = source.hub
            content["revision"] = self.lock.commit(DATASET, source.hub, source.revision)
        else:
            resources[role] = f"builtin:{source.builtin}"
        return content

    def _items(self, resources: dict[str, str]) -> dict[str, Any]:
        """Evaluation items by evaluation name, for the leakage check."""
        items: dict[str, dict[str, Any]] = {}
        for name, use in self.study.evaluate.items():
            if use.row.items:
                place, digest = self._place_of_items(use)
                resources[f"items.{name}"] = place
                items[name] = {"digest": digest, "reader": use.row.items}
                config = use.config.model_dump(mode="json")
                if fields := {field: config[field] for field in use.row.item_fields if field in config}:
                    items[name]["fields"] = fields
        return items

    def _place_of_items(self, use: EvaluationUse) -> tuple[str, str]:
        if isinstance(use.config, LmEval):
            folder = use.config.include_path
            digest = f"lm_eval {version('lm_eval')}{f' sha256:{self.lock.files[folder]}' if folder else ''}"
            return str((self.folder / folder).resolve()) if folder else "", digest
        fields = use.config.model_dump()
        if fields["path"]:
            return str((self.folder / fields["path"]).resolve()), f"sha256:{self.lock.files[fields['path']]}"
        return f"builtin:{fields['builtin']}", f"builtin:{fields['builtin']}"

    def _leakage(self, dataset: Dataset, data: Stage) -> Stage:
        resources: dict[str, str] = {}
        config = {"mode": dataset.leakage, "items": self._items(resources)}
        return Stage("leakage", config, "paretune.data.prepare:check_leakage", {"data": data}, resources=resources)

    def _audit(self, dataset: Dataset, data: Stage) -> Stage:
        resources: dict[str, str] = {}
        config: dict[str, Any] = {"labels": sorted(name for name, task in dataset.tasks.items() if task.labels)}
        if self.study.safety is not None and self.study.safety.data == "count":
            config["safety"] = self._safety(resources)
        return Stage("audit", config, "paretune.data.audit:audit_data", {"data": data}, resources=resources)

    def _safety(self, resources: dict[str, str]) -> dict[str, Any]:
        """What counts as unsafe, for a key."""
        safety, config = self.study.safety, dict[str, Any]()
        assert safety is not None, "a study without it asks for none"
        if safety.words is not None:
            resources["safety.words"] = str((self.folder / safety.words).resolve())
            config["words"] = f"sha256:{self.lock.files[safety.words]}"
        if safety.classifier is not None:
            assert self.lock.classifier is not None
            resources["safety.classifier"] = self.lock.classifier.resource
            fields = safety.classifier.model_dump(mode="json", include={"unsafe", "threshold"})
            config["classifier"] = fields | {"digest": self.lock.classifier.digest}
            config["device"] = self.lock.device
        return config

    def _tokens(self, base: str, dataset: Dataset, data: Stage) -> Stage:
        locked = self.lock.bases[base]
        config = {
            "base": {"digest": locked.tokenizer_digest, "trust_remote_code": self.study.bases[base].trust_remote_code},
            "max_length": self.study.train.max_length,
            "too_long": dataset.length_rule,
        }
        body = "paretune.data.examples:tokenize_tasks" if dataset.completes else "paretune.data.tokenizer:tokenize"
        return Stage("tokenize", config, body, {"data": data}, resources={"base": locked.resource})

    def _methods(
        self,
        base: str,
        chain: tuple[MethodUse, ...],
        seed: int | None,
        tokens: Stage,
        gate: Stage,
        *,
        model: Stage | None = None,
        waits: Mapping[int, Stage] | None = None,
    ) -> tuple[Stage, ...]:
        """The stages of `chain`, applied to `model` (or the base); `waits` are choices that have to be made before a method."""
        stages: list[Stage] = []
        for index, use in enumerate(chain):
            before = stages[-1] if stages else model
            inputs: dict[str, Stage] = {"model": before} if before else {}
            if waits and index in waits:
                inputs["choice"] = waits[index]
            config: dict[str, Any] = {"base": self._base(base), "method": use.config.model_dump(mode="json")}
            after: tuple[Stage, ...] = ()
            if use.row.trains:
                inputs["tokens"] = tokens
                after = (gate,)
                config |= {
                    "train": self.study.train.content,
                    "seed": seed,
                    "precision": self.lock.compute,
                    "device": self.lock.device,
                }
            elif use.row.uses_tokens(use.config):
                inputs["tokens"] = tokens
                after = (gate,)
                config |= {
                    "max_length": self.study.train.max_length,
                    "precision": self.lock.evaluate,
                    "device": self.lock.device,
                }
            resources = {"base": self.lock.bases[base].resource}
            stages.append(Stage(use.name, config, use.row.body, inputs, after, resources, use.row.revision))
        return tuple(stages)

    def _evaluations(self, base: str, dataset: str, model: Stage | None, tokens: Stage, gate: Stage) -> dict[str, Stage]:
        size = Evaluation(SIZE, EvaluationUse, "paretune.evaluate.cost:evaluate_size")
        stages = {SIZE: self._evaluation(base, size, {}, {}, model, tokens, gate)}
        asked = self.study.evaluations_of(dataset)
        for name, use in sorted(asked.items(), key=lambda item: item[1].row.rates_texts):
            if use.row.rates_texts:
                texts = {f"texts.{other}": stages[other] for other in asked if asked[other].kind in RATED}
                stages[name] = self._rating(use, {**texts, "data": tokens.inputs["data"]}, gate)
                continue
            config = use.config.model_dump(mode="json")
            resources: dict[str, str] = {}
            if isinstance(use.config, Tasks):
                config["tasks"] = scored = self.study.data[dataset].scored
                del config["encoder"]
                if any(BERT_SCORE in task["score"] for task in scored.values()):
                    config["encoder"], resources["encoder"] = self._encoder(use.config)
            if use.row.items:
                resources["items"], config["path"] = self._place_of_items(use)
                for place in ("builtin", "include_path"):
                    config.pop(place, None)
            if isinstance(use.config, Forgetting):
                config["max_length"] = self.study.train.max_length
            stages[name] = self._evaluation(base, use.row, config, resources, model, tokens, gate)
            if isinstance(use.config, Forgetting) and model is not None:
                untouched = self._evaluation(base, use.row, config, resources, None, tokens, gate)
                stages[name] = replace(stages[name], inputs={**stages[name].inputs, "untouched": untouched})
        return stages

    def _rating(self, use: EvaluationUse, inputs: dict[str, Stage], gate: Stage) -> Stage:
        """Of texts alone: neither the model nor the machine that wrote them matters beyond what they are."""
        resources: dict[str, str] = {}
        config: dict[str, Any] = {}
        if isinstance(use.config, Judge):
            config = {"evaluation": use.config.identity, "rubric": use.config.rubric}
            resources = {"timeout": str(use.config.timeout)} | ({ENVIRONMENT: use.config.key} if use.config.key else {})
        elif isinstance(use.config, Ratings):
            digests = {rater: f"sha256:{self.lock.files[file]}" for rater, file in use.config.by_rater.items()}
            config = {"evaluation": {"criteria": list(use.config.criteria)}, "rubric": use.config.rubric, "sheets": digests}
            resources = {f"sheet.{rater}": str((self.folder / file).resolve()) for rater, file in use.config.by_rater.items()}
        else:
            config["evaluation"] = use.config.model_dump(mode="json")
        return Stage(f"evaluate.{use.kind}", config, use.row.body, inputs, (gate,), resources, use.row.revision)

    def _encoder(self, tasks: Tasks) -> tuple[dict[str, Any], str]:
        """What answers depend on of the encoder that they are scored with, and where it is."""
        assert tasks.encoder is not None, "a study that scores with it names it"
        assert self.lock.encoder is not None
        layer = tasks.encoder.layer_of(count_blocks(self.lock.encoder.config) or 0)
        return {"digest": self.lock.encoder.digest, "layer": layer}, self.lock.encoder.resource

    def _evaluation(
        self,
        base: str,
        row: Evaluation,
        evaluation: dict[str, Any],
        resources: dict[str, str],
        model: Stage | None,
        tokens: Stage,
        gate: Stage,
    ) -> Stage:
        config: dict[str, Any] = {
            "base": self._base(base),
            "evaluation": evaluation,
            "precision": self.lock.evaluate,
            "device": self.lock.device,
        }
        if row.uses_tokens:
            config["max_length"] = self.study.train.max_length
        if row.measures_time:
            config["machine"] = fingerprint()
        inputs = {"model": model} if model else {}
        if row.uses_tokens:
            inputs["tokens"] = tokens
        resources = {"base": self.lock.bases[base].resource, **resources}
        if row.writes_text and self.study.safety is not None:
            config["safety"] = self._safety(resources)
        after = () if row.name == SIZE else (gate,)
        return Stage(f"evaluate.{row.name}", config, row.body, inputs, after, resources, row.revision)

    def _base(self, base: str) -> dict[str, Any]:
        return {"digest": self.lock.bases[base].digest, "trust_remote_code": self.study.bases[base].trust_remote_code}


def _check_lengths(study: Study, lock: Lock) -> None:
    for name, base in lock.bases.items():
        positions = num_positions(base)
        if positions is not None and study.train.max_length > positions:
            raise SpecError(
                f"train.max_length: {study.train.max_length} is longer than base `{name}` reaches ({positions} positions); "
                f"write at most {positions}"
            )


def _check_needs(study: Study, device: str) -> None:
    users: list[tuple[str, Method | Evaluation]] = []
    for name, variant in study.variants.items():
        users += [(f"variants.{name}: `{method.name}`", method.row) for method in variant.methods]
    users += [(f"evaluate.{name}: `{use.kind}`", use.row) for name, use in study.evaluate.items()]
    for user, row in users:
        for need in row.needs:
            if not has(need, device):
                raise NeedsError(f"{user} needs {way_to(need, device)}; or take it out of the study")
        module = row.body.partition(":")[0]
        if not has(module, device):
            raise NeedsError(f"{user}: its code, the module `{module}`, is not installed; repair the package that brings it")
