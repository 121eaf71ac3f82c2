"""The study: the user's file and question, parsed once into frozen types.

`load_study` is the only way in. Nothing later changes a study, and no flag overrides anything in it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from paretune.errors import SpecError, UserError, command_line
from paretune.study.base import Spec, shown, suggestion
from paretune.study.compare import Compare
from paretune.study.data import Dataset
from paretune.study.foreign import unknown
from paretune.study.grid import grid_of, refuse_elsewhere, which_variant
from paretune.study.registry import OWN_BASE, Evaluation, evaluations, find_evaluation
from paretune.study.safety import Safety
from paretune.study.track import Track
from paretune.study.train import Train
from paretune.study.validate import check_name, validate
from paretune.study.variants import Variant, parse_variants
from paretune.study.yaml_file import Path_, read_yaml

_SUFFIXES_OF_DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")


class Base(Spec):
    """A pretrained causal LM and its tokenizer: exactly one of `path`, `hub` and `builtin`."""

    path: str | None = None
    """A directory in Hugging Face format, or a `.gguf` file; relative to the study file. What is quantized (GGUF, bitsandbytes,
    GPTQ, AWQ) is made whole once, by the package that reads it, and the report names the format."""
    hub: str | None = None
    """A repository of the Hugging Face hub, `owner/name`."""
    builtin: str | None = None
    """A model that ships with the package, `newsroom-base`; or `smollm2-135m-instruct`, a chat model of 135 million parameters
    that the extra `smollm2` brings as a GGUF file."""
    revision: str | None = None
    """Commit, tag or branch of `hub`; the commit is pinned in the lock."""
    trust_remote_code: bool = False
    """Run the Python code that the repository brings. Off unless you have read it."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.hub, self.builtin)) != 1:
            raise ValueError("name exactly one of `path`, `hub` and `builtin`")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` goes with `hub`")
        return self


class Precision(Spec):
    """Number formats. `auto` is resolved once for the machine and written into the lock."""

    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of matrix products in training: bfloat16 where this machine multiplies it faster, float16 on GPUs that have no bfloat16,
    float32 otherwise."""
    evaluate: Literal["float32", "bfloat16"] = "float32"
    """Of everything that is measured."""
    export: Literal["base", "float32"] = "base"
    """Of the weights as a variant ships: that of its base, to which merged adapters and trained weights are rounded, or
    float32. Variants are measured, and their sizes counted, in the form that ships."""


class EvaluationUse(Spec):
    """An evaluation with its configuration; the study names it."""

    kind: str
    config: SerializeAsAny[Spec]

    @property
    def row(self) -> Evaluation:
        return find_evaluation(self.kind, "")


class Study(Spec):
    """The whole file. `bases` x `data` x `variants` x `seeds` is the matrix that runs."""

    study: str
    """Its name; the outputs go to `results/<study>/`."""
    bases: dict[str, Base] = Field(min_length=1)
    data: dict[str, Dataset] = Field(min_length=1)
    train: Train = Train()
    precision: Precision = Precision()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Of training; the split has its own."""
    variants: dict[str, Variant] = Field(min_length=1)
    evaluate: dict[str, EvaluationUse] = Field(min_length=1)
    compare: Compare = Compare()
    safety: Safety | None = None
    """What counts as unsafe text, in the data and in what variants write; nothing unless given."""
    track: Track | None = None
    """Trackers that a run is shown in; none unless given."""

    @property
    def baseline(self) -> str:
        """The variant that comparisons are taken against."""
        trained = (name for name, variant in self.variants.items() if any(use.row.trains for use in variant.methods))
        return self.compare.baseline or next(trained, next(iter(self.variants)))

    @property
    def rated_texts(self) -> set[str]:
        """The names of what can be rated: generations, and tasks whose answers are scored."""
        written = (name for name, use in self.evaluate.items() if use.row.texts_are_rated and not use.row.answers_tasks)
        return {*written, *(task for dataset in self.data.values() for task in dataset.scored)}

    def evaluations_of(self, dataset: str) -> dict[str, EvaluationUse]:
        """What is measured on a dataset: `evaluate`, and its tasks where they are scored and no entry asks for them."""
        uses = dict(self.evaluate)
        for row in evaluations().values():
            if row.answers_tasks and row.name not in {use.kind for use in uses.values()}:
                uses[row.name] = EvaluationUse(kind=row.name, config=row.config())
        if not self.data[dataset].scored:
            uses = {name: use for name, use in uses.items() if not use.row.answers_tasks}
        written = any(use.row.texts_are_rated for use in uses.values())
        return {name: use for name, use in uses.items() if written or not use.row.rates_texts}


def load_study(file: str | Path) -> Study:
    """The study in `file`; SpecError naming line, field, value and way out for whatever is wrong with it."""
    file = Path(file)
    if file.suffix.lower() in _SUFFIXES_OF_DATA:
        raise SpecError(f"{file}: is no study but data; `{command_line('init', file)}` writes a study about it")
    value, lines = read_yaml(file)
    if value is None:
        raise SpecError(f"{file}: is empty; `paretune init DATA` writes a first study file")
    if not isinstance(value, Mapping):
        raise SpecError(f"{file}: a study is a mapping that begins with `study: NAME`, not {shown(value)}")
    try:
        return _parse(value)
    except SpecError as error:
        messages = (_with_line(line, file, lines) for line in str(error).splitlines())
        raise SpecError("\n".join(line if line.startswith(str(file)) else f"{file}: {line}" for line in messages)) from None


@contextmanager
def located(file: Path) -> Iterator[None]:
    """Say in which line of the study what an error names stands: `bases.gpt2.path: ...` becomes `study.yaml:3: bases...`."""
    try:
        yield
    except UserError as error:
        _, lines = read_yaml(file)
        raise type(error)("\n".join(_with_line(line, file, lines) for line in str(error).splitlines())) from None


def _parse(value: Mapping[str, Any]) -> Study:
    for key in value:
        if key not in Study.model_fields:
            raise SpecError(f"{key}: unknown key{unknown(key, Study.model_fields, '')}")
    for key, field in Study.model_fields.items():
        if field.is_required() and key not in value:
            raise SpecError(f"{key}: missing; a study needs `study`, `bases`, `data`, `variants` and `evaluate`")
    if not isinstance(value["study"], str):
        raise SpecError(f"study: a name is text, got {shown(value['study'])}; put it in quotes")
    check_name(value["study"], "study")
    for key in value:
        if key != "variants":
            refuse_elsewhere(value[key], key)
    parts: dict[str, Any] = {
        "study": value["study"],
        "bases": {name: validate(Base, item, f"bases.{name}") for name, item in _named(value, "bases")},
        "data": {name: validate(Dataset, item, f"data.{name}") for name, item in _named(value, "data")},
        "variants": parse_variants(_named(value, "variants")),
        "evaluate": {},
    }
    for name, item in _named(value, "evaluate"):
        where, fields = f"evaluate.{name}", {} if item is None else item
        if not isinstance(fields, Mapping):
            raise SpecError(f"{where}: expected a mapping of fields, got {shown(item)}")
        kind = fields.get("kind", name)
        if not isinstance(kind, str):
            raise SpecError(f"{where}.kind: expected the name of an evaluation, got {shown(kind)}")
        spec = find_evaluation(kind, where).config
        fields = {key: field for key, field in fields.items() if key != "kind"}
        parts["evaluate"][name] = EvaluationUse(kind=kind, config=validate(spec, fields, where))
    for name, model in (("train", Train), ("precision", Precision), ("compare", Compare), ("safety", Safety), ("track", Track)):
        if name in value:
            parts[name] = validate(model, value[name], name)
    if "seeds" in value:
        seeds = value["seeds"]
        whole = isinstance(seeds, list) and seeds and all(isinstance(n, int) and not isinstance(n, bool) for n in seeds)
        if not whole or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
            raise SpecError(
                f"seeds: expected a list `[0, 1, 2]` of distinct whole numbers from 0 to 2**32 - 1, got {shown(seeds)}"
            )
        parts["seeds"] = tuple(seeds)
    study = Study(**parts)
    _check_references(study)
    return study


def _named(value: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    entries = value[section]
    if not isinstance(entries, Mapping) or not entries:
        raise SpecError(f"{section}: expected at least one entry `NAME: ...`, got {shown(entries)}")
    for name in entries:
        check_name(name, f"{section}.{name}" if name.isprintable() else section)
    return list(entries.items())


def _check_references(study: Study) -> None:
    """SpecError for what names something that is not there, or contradicts another part of the study."""
    if study.compare.baseline is not None and study.compare.baseline not in study.variants:
        unknown = study.compare.baseline
        raise SpecError(f"compare.baseline: no variant `{unknown}`{which_variant(unknown, study.variants)}")
    for name, variant in study.variants.items():
        for base in variant.bases or ():
            if base not in study.bases:
                raise SpecError(f"variants.{grid_of(name)}.bases: no base `{base}`{suggestion(base, study.bases)}")
    for row in evaluations().values():
        if row.answers_tasks:
            _check_tasks(study, row)
    for name, use in study.evaluate.items():
        if use.row.rates_texts and not study.rated_texts:
            raise SpecError(
                f"evaluate.{name}: there is no text to rate; add `generate: {{prompts: [...]}}`, or a task with `score`"
            )
        if use.row.fits:
            use.row.fits(use.config, study, name)
    for name in study.variants:
        _check_teachers(study, name)
    _check_learning_rates(study)
    if "size" in study.evaluate:
        raise SpecError("evaluate.size: the name `size` is taken (parameters and bytes of every variant); choose another")


def _check_teachers(study: Study, name: str, students: tuple[str, ...] = ()) -> None:
    """SpecError for a teacher of variant `name` that there is none of, or that waits for its own student."""
    variant = study.variants[name]
    for index, use in enumerate(variant.methods):
        where = f"variants.{grid_of(name)}[{index}].{use.name}"
        teachers = {chain[index].row.teacher(chain[index].config) for chain in variant.chains}
        if len(teachers) > 1:
            raise SpecError(f"{where}: `tune` cannot choose whom or what to learn from; write `grid`, a variant for each")
        teacher = teachers.pop()
        if teacher is None:
            continue
        if teacher.writing and (plain := [each for each, dataset in study.data.items() if not dataset.completes]):
            raise SpecError(
                f"{where}: dataset `{plain[0]}` is plain text, which has no prompts that a teacher could answer; take "
                "`distill.logits`, which learns from it at every word, or give the dataset `tasks`"
            )
        other, is_base = study.variants.get(teacher.name), teacher.name in study.bases
        if other is None and not is_base and teacher.name != OWN_BASE:
            known = {*study.variants, *study.bases, OWN_BASE}
            raise SpecError(f"{where}.teacher: no variant or base `{teacher.name}`{suggestion(teacher.name, known)}")
        if teacher.seed is not None and (other is None or not other.trains or teacher.seed not in study.seeds):
            seeds = ", ".join(map(str, study.seeds))
            raise SpecError(f"{where}.seed: of a variant that is trained, and one of `seeds: [{seeds}]`, not {teacher.seed}")
        if other is None:
            continue
        if is_base:
            raise SpecError(f"{where}.teacher: `{teacher.name}` is a variant and a base; rename one of them")
        if other.methods and other.methods[-1].row.is_last:
            last = other.methods[-1].name
            raise SpecError(f"{where}.teacher: `{teacher.name}` ends with `{last}`, and is only run; name what it is made of")
        if missing := sorted({*(variant.bases or study.bases)} - {*(other.bases or study.bases)}):
            raise SpecError(f"{where}.teacher: `{teacher.name}` is not made of base `{missing[0]}`, as its student is")
        if teacher.name in (name, *students):
            raise SpecError(f"{where}.teacher: `{teacher.name}` learns from its own student; name another teacher")
        _check_teachers(study, teacher.name, (name, *students))


def _check_learning_rates(study: Study) -> None:
    """SpecError for a learning rate that destroys any model; among several that are tried such a one just loses."""
    for name, variant in study.variants.items():
        for index, use in enumerate(() if variant.trials else variant.methods):
            rate = getattr(use.config, "learning_rate", 0)
            if rate >= 1:
                raise SpecError(
                    f"variants.{grid_of(name)}[{index}].{use.name}.learning_rate: `{rate:g}` moves a weight by about as much "
                    "at each step (AdamW), and those of a model are mostly below 0.1: nothing is left of it; usual are 1e-5 to "
                    "5e-3"
                )


def _check_tasks(study: Study, row: Evaluation) -> None:
    """Scores stand under the name of a task or of an evaluation, so these must differ; and tasks are asked about once."""
    asked = [name for name, use in study.evaluate.items() if use.kind == row.name]
    if row.name in study.evaluate and row.name not in asked:
        raise SpecError(f"evaluate.{row.name}: the name `{row.name}` is that of the evaluation of tasks; choose another")
    if len(asked) > 1:
        raise SpecError(f"evaluate.{asked[1]}: the tasks are asked about in `{asked[0]}` already; leave one of them out")
    for name, dataset in study.data.items():
        taken = sorted(set(dataset.scored) & ({*study.evaluate, "size", "cost"}))
        if taken:
            raise SpecError(f"data.{name}.tasks.{taken[0]}: an evaluation is called `{taken[0]}` too; rename one of them")
    if asked and not any(dataset.scored for dataset in study.data.values()):
        raise SpecError(f"evaluate.{asked[0]}: no dataset has a task with `score` or `labels`; add one, or leave this out")
    if not asked and row.fits:
        row.fits(row.config(), study, row.name)


def _with_line(message: str, file: Path, lines: dict[Path_, int]) -> str:
    """`file:line: message`, the line being that of the deepest key of the message's path; as it is where none stands there."""
    field = message.split(": ", 1)[0]
    deepest: Path_ = ()
    dotted = ""
    for path in lines:
        prefix = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
        stands_in = field.startswith(prefix) and re.match(r"$|[.\[]", field[len(prefix) :])
        if stands_in and len(path) > len(deepest):
            deepest, dotted = path, prefix
    # `data.jsonl` is no field of `data`, but a file.
    is_known = len(deepest) > 1 or (deepest and dotted == field)
    return f"{file}:{lines[deepest]}: {message}" if is_known else message
