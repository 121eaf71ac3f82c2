"""The report: what stands in it and in which order. One structure, written by `render` and `render_html`.

What was found comes before how it came about: conclusions, then qualities, comparisons and costs, then how variants were
trained, tuned and pruned, then what stands in the data; and long texts come last.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretune.analysis import wording
from paretune.analysis.audit import audit_section
from paretune.analysis.blocks import blocks_section
from paretune.analysis.comparisons import comparisons_section
from paretune.analysis.conclude import across_bases, conclude, export_command, remarks
from paretune.analysis.definitions import definitions
from paretune.analysis.deviations import Marks, data_notes, deviations, marks_of
from paretune.analysis.document import Block, Bullets, Document, Paragraph, Picture, Section, Table
from paretune.analysis.elsewhere import forgetting_section, harness_section
from paretune.analysis.figures import PARETO_NAME, tasks_name
from paretune.analysis.measured import Group, Measured, estimate_of, headline, same_tokenizer, untouched
from paretune.analysis.ratings import ratings_section
from paretune.analysis.scores import Place, place_of
from paretune.analysis.sections import (
    cost_section,
    generations_section,
    held_out_section,
    questions_section,
)
from paretune.analysis.task_scores import tasks_section
from paretune.analysis.training import training_section
from paretune.analysis.tuning import tuning_section
from paretune.pipeline.records import Record
from paretune.study.data import SPLITS
from paretune.study.study import Base
from paretune.study.variants import Variant

_TOLD_VERSIONS = ("paretune", "python", "torch", "transformers", "peft")


def build_report(measured: Measured, figures: frozenset[str]) -> Document:
    """`figures` are the names of the files that were drawn."""
    marks = marks_of(measured)
    sections = [
        Section("In short", list(_in_short(measured, marks, figures))),
        Section("What was compared", list(_compared(measured))),
    ]
    shown: set[str] = set()
    for group in measured.groups:
        many = len(measured.groups) > 1
        parts = [
            held_out_section(measured, group, marks),
            comparisons_section(measured, group),
            questions_section(measured, group, marks),
            tasks_section(measured, group, marks, _first_of(tasks_name(group.dataset), figures, group.dataset not in shown)),
            harness_section(measured, group, marks),
            forgetting_section(measured, group, marks),
            ratings_section(measured, group),
            cost_section(measured, group, figures, first=group.dataset not in shown),
            training_section(measured, group, figures),
            tuning_section(measured, group),
            blocks_section(measured, group),
        ]
        shown.add(group.dataset)
        sections.append(Section(f"{group.base} on {group.dataset}" if many else "Results", []))
        sections += [part for part in parts if part is not None]
    sections += filter(None, [audit_section(measured), *(generations_section(measured, group) for group in measured.groups)])
    sections.append(Section("Notes", list(_notes(measured, marks))))
    return Document(f"{measured.study.study}: {_question(measured)}", sections)


def _first_of(name: str, figures: frozenset[str], first: bool) -> str | None:
    """The name of a figure of a whole dataset, where its first base stands."""
    return name if first and name in figures else None


def _question(measured: Measured) -> str:
    variants, bases, datasets = (len(part) for part in (measured.study.variants, measured.study.bases, measured.study.data))
    parts = [wording.plural(variants, "variant"), f"of {wording.plural(bases, 'base')}" if bases > 1 else ""]
    parts.append(f"on {wording.plural(datasets, 'dataset')}" if datasets > 1 else "")
    return " ".join(part for part in parts if part)


def _in_short(measured: Measured, marks: Marks, figures: frozenset[str]) -> Iterator[Block]:
    commands: list[str] = []
    for dataset in dict.fromkeys(group.dataset for group in measured.groups):
        groups = [group for group in measured.groups if group.dataset == dataset]
        for group in groups:
            if len(measured.groups) > 1:
                yield Paragraph(f"{wording.code(group.base)} on {wording.code(group.dataset)}:")
            concluded = conclude(measured, group)
            commands += [export_command(measured, concluded.chosen)] if concluded.chosen is not None else []
            yield Bullets([*concluded.recommendation, *concluded.findings])
        if len(groups) > 1:
            yield from _across(measured, dataset, groups, marks)
    if said := remarks(measured):
        if len(measured.groups) > 1:
            yield Paragraph("Of all of this:")
        yield Bullets(said)
    found = [cell for cell in measured.results.cells if cell.missing]
    if missing := [name for cell in found for name in cell.missing]:
        names = wording.listed([wording.code(name) for name in dict.fromkeys(cell.variant for cell in found)])
        stages = wording.plural(len(set(missing)), "stage")
        yield Paragraph(f"Incomplete: of {names} {stages} failed or did not run; see the notes.")
    if not measured.results.cells:
        yield Paragraph("Nothing has been measured yet.")
    if PARETO_NAME in figures:
        yield Picture(f"figures/{PARETO_NAME}", "quality against each cost, with the Pareto frontier")
    if commands:
        yield Paragraph(f"To use what is recommended, in the folder of the study: {'; '.join(commands)}")


def _across(measured: Measured, dataset: str, groups: Sequence[Group], marks: Marks) -> Iterator[Block]:
    """All variants of all bases on one dataset, in bits per byte."""
    rows = []
    for group in groups:
        quantity = headline(measured, group)
        if quantity is None or quantity.metric != "bits_per_byte":
            continue
        for place in group.places:
            found = estimate_of(measured, place, quantity)
            if found is not None:
                costs = measured.costs.get(place, {})
                size = wording.size(costs["model_bytes"].mean) if "model_bytes" in costs else wording.UNKNOWN
                mark = marks.of(place, quantity.task, quantity.split) + marks.lossy(place)
                text = wording.with_interval(found.mean, found.low, found.high) + mark
                rows.append((found.mean, [f"{group.base} {place.variant}", text, size]))
    if not rows:
        return
    split = next(quantity.split for group in groups if (quantity := headline(measured, group)) is not None)
    ranked = [row for _, row in sorted(rows, key=lambda row: row[0])]
    yield Paragraph(f"Across bases on {wording.code(dataset)}:")
    yield Bullets(across_bases(measured, dataset) or ["No two bases have figures that can be compared."])
    yield Table(("base and variant", f"bits per byte ({measured.interval})", "model size"), ranked, f"Best first, {split}")
    if not same_tokenizer(measured, {group.base for group in groups}, dataset):
        yield Paragraph(
            "The bases have different tokenizers: loss, perplexity, token accuracy and log-likelihood are per token and not "
            "compared across them; bits per byte are."
        )


def _compared(measured: Measured) -> Iterator[Block]:
    study, records = measured.study, list(_records(measured))
    yield Bullets(
        [
            *(f"Base {wording.code(name)}: {_where(base)}{_size(measured, name)}." for name, base in study.bases.items()),
            f"Training: {_training(measured)}.",
            *_same_for_all(measured),
            *_machine(records),
            *_measured_when(records),
        ]
    )
    yield _variants_table(measured)
    if measured.results.data:
        yield _data_table(measured)
        if said := data_notes(measured):
            yield Bullets(said)
    found = deviations(measured)
    if found:
        yield Paragraph("Deviations:")
        yield Bullets(found)
    elif not any(cell.missing for cell in measured.results.cells):
        yield Paragraph("No deviations: nothing was left out, and every variant was trained and measured alike.")


def _where(base: Base) -> str:
    if base.hub is not None:
        return f"{wording.code(base.hub)} of the Hugging Face hub"
    return wording.code(base.path or f"builtin {base.builtin}")


def _size(measured: Measured, base: str) -> str:
    for group in measured.groups:
        place = untouched(measured, group)
        if group.base == base and place is not None:
            costs = measured.costs.get(place, {})
            if "parameters" in costs:
                return f", {wording.count(costs['parameters'].mean)} parameters"
    return ""


def _training(measured: Measured) -> str:
    train, seeds = measured.study.train, measured.study.seeds
    length = wording.plural(train.max_steps, "step") if train.max_steps else wording.plural(train.num_epochs or 0, "epoch")
    parts = [
        length,
        f"{wording.plural(train.batch_size, 'example')} a step",
        f"at most {train.max_length:,} tokens an example",
        f"{train.schedule} schedule with {100 * train.warmup:g} % warm-up",
        f"weight decay {train.weight_decay:g}",
        f"gradients clipped at {train.max_grad_norm:g}",
        f"{'seeds' if len(seeds) > 1 else 'seed'} {wording.listed([str(seed) for seed in seeds])}",
    ]
    if train.early_stopping is not None:
        parts.append(f"early stopping after {wording.plural(train.early_stopping.patience, 'evaluation')} without progress")
    return ", ".join(parts)


def _same_for_all(measured: Measured) -> Iterator[str]:
    precisions = {str(r.metrics["precision"]) for r in _records(measured) if "precision" in r.metrics}
    if precisions:
        words = wording.listed(sorted(precisions))
        yield f"Precision: trained in {words}, measured in {measured.study.precision.evaluate}."
    yield f"Baseline of comparisons: {wording.code(measured.study.baseline)}."


def _machine(records: Sequence[Record]) -> Iterator[str]:
    machines = list(dict.fromkeys(_machine_words(record) for record in records))
    if machines:
        yield f"Machine{'s' if len(machines) > 1 else ''}: {'; '.join(machines)}."


def _machine_words(record: Record) -> str:
    words = []
    for name, value in record.machine.items():
        label = name.replace("_", " ")
        if name == "memory_gib":
            words.append(f"{value} GiB memory")
        elif isinstance(value, str):
            words.append(value if name in ("system", "processor") else f"{label} {value}")
        elif value is not None:
            words.append(f"{value} {label}")
    return ", ".join(words) or record.device


def _measured_when(records: Sequence[Record]) -> Iterator[str]:
    if not records:
        return
    days = sorted({record.started[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.versions.items():
            versions.setdefault(name, set()).add(version)
    told = [f"{name} {' and '.join(sorted(versions[name]))}" for name in _TOLD_VERSIONS if name in versions]
    yield f"Run: {when}{f', with {wording.listed(told)}' if told else ''}."


def _variants_table(measured: Measured) -> Table:
    rows = [[name, _methods(variant)] for name, variant in measured.study.variants.items()]
    return Table(("variant", "methods"), rows, "Variants", words=2)


def _methods(variant: Variant) -> str:
    parts = []
    for uses in zip(*variant.chains, strict=True):
        use, dumps = uses[0], [use.config.model_dump() for use in uses]
        told = [name for name in dumps[0] if name in use.config.model_fields_set or name == "learning_rate"]
        values = {name: list(dict.fromkeys(_setting(fields[name]) for fields in dumps)) for name in told}
        settings = [f"{name} {'tuned over ' if len(one) > 1 else ''}{'/'.join(one)}" for name, one in values.items()]
        parts.append(f"{use.name} ({', '.join(settings)})" if told else use.name)
    return ", then ".join(parts) or "the base as it is"


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(item)}" for name, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)


def _data_table(measured: Measured) -> Table:
    bases = list(measured.study.bases)
    header = [
        "data",
        "split",
        "documents",
        "examples",
        "bytes",
        *(f"tokens{f' ({base})' if len(bases) > 1 else ''}" for base in bases),
    ]
    rows = []
    for name, record in measured.results.data.items():
        for split in SPLITS:
            metrics = record.metrics
            tokens = [measured.results.tokens.get((base, name)) for base in bases]
            rows.append(
                [
                    name,
                    split,
                    *(_kept(metrics, tokens, what, split) for what in ("documents", "examples", "bytes")),
                    *(
                        wording.UNKNOWN if one is None else wording.count(one.metrics.get(f"tokens_{split}", 0))
                        for one in tokens
                    ),
                ]
            )
    known = all(
        "kept_examples_train" in one.metrics for one in measured.results.tokens.values() if one.metrics.get("skipped_examples")
    )
    counted = "as trained and scored on" if known else "documents, examples and bytes before what is too long was left out"
    return Table(header, rows, f"Data, {counted}", words=2, grouped=True)


def _kept(data: Mapping[str, Any], tokens: Sequence[Record | None], what: str, split: str) -> str:
    """What is trained and scored on, base by base where they differ: tokenizers make different texts too long.

    Bytes are counted as in the data where nothing was left out: of a dataset with tasks these hold contexts and prompts too.
    """
    whole = data.get(f"{what}_{split}", 0)
    found = [
        one.metrics.get(f"kept_{what}_{split}", whole) if one is not None and one.metrics.get("skipped_examples") else whole
        for one in tokens
    ]
    return " / ".join(wording.count(value) for value in dict.fromkeys(found)) or wording.count(whole)


def _notes(measured: Measured, marks: Marks) -> Iterator[Block]:
    yield Bullets([*_missing(measured), *marks.explanations, *definitions(measured)])


def _missing(measured: Measured) -> Iterator[str]:
    """What failed or did not run, variant by variant; a model that is missing takes its measurements with it."""
    found: dict[Place, dict[str, None]] = {}
    for cell in measured.results.cells:
        models = [name for name in cell.missing if not name.startswith("evaluate.")]
        found.setdefault(place_of(cell), {}).update(dict.fromkeys(models or cell.missing))
    for place, names in found.items():
        if names:
            who = f"{wording.code(place.variant)} of {wording.code(place.base)} on {wording.code(place.dataset)}"
            kinds = {name.startswith("evaluate.") for name in names}
            rest = ", and with it what depends on it" if False in kinds else ""
            yield f"Missing: {who}: {_codes(list(names))} failed or did not run{rest}."


def _codes(names: Sequence[str]) -> str:
    return wording.listed([wording.code(name) for name in names])


def _records(measured: Measured) -> Iterator[Record]:
    yield from measured.results.data.values()
    for cell in measured.results.cells:
        yield from cell.methods
        yield from cell.evaluations.values()
