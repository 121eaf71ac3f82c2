"""Cards of models and data, in the format of the Hugging Face hub: what a study has found, for whoever meets a model alone.

A card is a report of one variant (or one dataset) under the hub's metadata, `model-index` included.
"""

from dataclasses import dataclass

from paretune.analysis.conclusions import export_command
from paretune.analysis.findings import Fact, Findings
from paretune.analysis.scores import Entrant, Quantity
from paretune.analysis.setup import BaseUsed
from paretune.pipeline.base_card import BaseCard
from paretune.report import words
from paretune.report.blocks import Block, Document, Section, Table, as_blocks
from paretune.report.render import as_markdown
from paretune.report.tables import (
    Column,
    audit_table,
    comparisons_table,
    cost_text,
    data_table,
    estimate_text,
    make_table,
    mark_of,
    variants_table,
)
from paretune.study.findings import FINDINGS
from paretune.study.grid import file_names
from paretune.study.registry import metric_of

_PERSONAL = ("email", "phone", "ip")
"""Findings of an audit that may name a person."""


@dataclass(frozen=True)
class MadeFrom(Fact):
    """What a model is."""

    base: str
    dataset: str
    is_untouched: bool
    study: str


@dataclass(frozen=True)
class IntendedUse(Fact):
    dataset: str
    tasks: tuple[str, ...]
    """That it was trained on; empty for plain text."""


@dataclass(frozen=True)
class PersonalData(Fact):
    """What may name persons in the training split."""

    dataset: str
    counts: tuple[tuple[str, int], ...]
    """Records by what was found in them; empty where nothing was found."""
    num_records: int


@dataclass(frozen=True)
class NotAudited(Fact):
    dataset: str


@dataclass(frozen=True)
class UnsafeWritten(Fact):
    """What a variant wrote of unsafe texts; None where none were looked for."""

    share: float | None


@dataclass(frozen=True)
class BaseLicence(Fact):
    base: str
    licence: str
    """As the hub names it; empty where the study does not know it."""
    link: str


@dataclass(frozen=True)
class HowToMake(Fact):
    study_file: str
    export: str
    """The command; empty for data."""


def cards(findings: Findings) -> dict[str, str]:
    """The text of each card by its path in the outputs: of every variant that was measured, and of every dataset."""
    models = file_names(entrant for group in findings.groups for entrant in group.entrants)
    texts = {
        f"cards/{name}/README.md": model_card(findings, Entrant(*names))
        for names, name in models.items()
        if findings.estimates.get(Entrant(*names))
    }
    data = file_names((name,) for name in findings.results.data)
    return texts | {f"cards/data/{name}/README.md": data_card(findings, dataset) for (dataset,), name in data.items()}


def model_card(findings: Findings, entrant: Entrant, use: str = "") -> str:
    """README.md of a variant; `use` is the Markdown of an export that says what it is and how to load it."""
    study, results = findings.study, findings.results
    group = next(group for group in findings.groups if entrant in group.entrants)
    variant, card = study.variants[entrant.variant], results.base_cards.get(entrant.base, BaseCard())
    told = findings.facts.groups[entrant.base, entrant.dataset]
    dataset = study.data[entrant.dataset]
    made = MadeFrom(entrant.base, entrant.dataset, findings.is_untouched(entrant), study.study)
    command = export_command(findings, entrant)
    differences = [
        difference
        for quantity in findings.estimates[entrant]
        if not quantity.slice and quantity.split in ("test", "")
        for difference in [findings.told(entrant, group.baseline, quantity)]
        if difference is not None and difference.quantity.metric != "loss"
    ]
    unique = list({difference.quantity: difference for difference in differences}.values())
    compared = comparisons_table(
        unique, f"{100 * findings.level:g} % over its family", f"Against {study.baseline}, paired by document"
    )
    unsafe = [estimate.mean for quantity, estimate in findings.estimates[entrant].items() if quantity.metric == "filtered"]
    # Where a base lies on this machine is no news to others.
    setup = [fact for fact in findings.facts.setup if not (isinstance(fact, BaseUsed) and fact.base.path)]
    limits = [*findings.facts.incomplete, *findings.facts.remarks, *told.training, *findings.facts.deviations]
    sections = [
        *([] if use else [Section("Use", as_blocks([made, HowToMake("", command)]))]),
        Section("How it was made", [variants_table({entrant.variant: variant}), *as_blocks(setup)]),
        Section("Training data", _data(findings, entrant.dataset)),
        Section("Evaluation", [_scores(findings, entrant), *([compared] if unique else []), _costs(findings, entrant)]),
        Section("Intended use", as_blocks([IntendedUse(entrant.dataset, tuple(dataset.tasks or ()))])),
        Section("Limitations", as_blocks(limits)),
        Section(
            "Ethical considerations",
            as_blocks(
                [
                    *_personal(findings, entrant.dataset),
                    UnsafeWritten(max(unsafe, default=None)),
                    BaseLicence(entrant.base, card.licence_name or card.licence, card.licence_link),
                ]
            ),
        ),
        Section("Made again", as_blocks([HowToMake(results.study_file.name, command)])),
    ]
    name = f"{study.study}-{entrant.variant}"
    body = as_markdown(Document("What was measured" if use else name, sections))
    return _metadata(findings, entrant, card, name) + (f"{use.rstrip()}\n\n" if use else "") + body


def data_card(findings: Findings, name: str) -> str:
    """README.md of a dataset as the study used it."""
    from huggingface_hub.repocard_data import DatasetCardData

    facts = [*(fact for fact in findings.facts.data if getattr(fact, "dataset", "") == name)]
    sections = [
        Section("Splits", [data_table(findings, [name]), *as_blocks(facts)]),
        Section("What the audit found", _audit(findings, name) or as_blocks([NotAudited(name)])),
        Section("Ethical considerations", as_blocks(_personal(findings, name))),
        Section("Made again", as_blocks([HowToMake(findings.results.study_file.name, "")])),
    ]
    front = DatasetCardData(pretty_name=name, tags=["paretune"]).to_yaml()
    return f"---\n{front}\n---\n\n" + as_markdown(Document(name, sections))


def _metadata(findings: Findings, entrant: Entrant, card: BaseCard, name: str) -> str:
    from huggingface_hub.repocard_data import EvalResult, ModelCardData

    methods = [use.name for use in findings.study.variants[entrant.variant].methods]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=entrant.dataset,
            dataset_name=f"{entrant.dataset} ({quantity.task})",
            dataset_split=quantity.split or None,
            metric_type=quantity.metric,
            metric_name=metric_of(quantity.metric).column,
            metric_value=round(estimate.mean, 6),
        )
        for quantity, estimate in findings.estimates[entrant].items()
        if not quantity.slice and quantity.split != "validation" and metric_of(quantity.metric).better
    ]
    data = ModelCardData(
        model_name=name,
        base_model=findings.study.bases[entrant.base].hub or card.model or None,
        license=card.licence or None,
        license_name=card.licence_name or None,
        license_link=card.licence_link or None,
        language=list(card.languages) or None,
        library_name="gguf" if "quantize.gguf" in methods else "transformers",
        pipeline_tag="text-generation",
        tags=["paretune", *dict.fromkeys(methods)],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _data(findings: Findings, name: str) -> list[Block]:
    facts = [fact for fact in findings.facts.data if getattr(fact, "dataset", "") == name]
    return [data_table(findings, [name]), *as_blocks(facts), *_audit(findings, name)]


def _audit(findings: Findings, name: str) -> list[Block]:
    found = audit_table(findings, [name])
    facts = [fact for fact in findings.facts.audit if getattr(fact, "dataset", name) == name]
    return [*([found] if found else []), *as_blocks(facts)]


def _personal(findings: Findings, name: str) -> list[Fact]:
    if name not in findings.audit:
        return [NotAudited(name)]
    rows = [row for row in findings.audit[name] if row["finding"] in _PERSONAL and row["split"] == "train"]
    record = findings.results.data.get(name)
    total = int(record.metrics.get("examples_train", 0)) if record else 0
    return [
        PersonalData(name, tuple((FINDINGS[row["finding"]], row["count"]) for row in rows), rows[0]["of"] if rows else total)
    ]


def _scores(findings: Findings, entrant: Entrant) -> Table:
    known = {q: e for q, e in findings.estimates[entrant].items() if not q.slice and metric_of(q.metric).better}
    columns: list[Column[Quantity]] = [
        Column("measured by", lambda row: row.task),
        Column("split", lambda row: row.split or "-"),
        Column("metric", lambda row: metric_of(row.metric).column),
        Column(
            f"value ({100 * findings.level:g} % interval)",
            lambda row: estimate_text(row.metric, known[row]) + mark_of(findings, entrant, row),
        ),
        Column("examples", lambda row: words.count(known[row].n_examples)),
    ]
    return make_table(known, columns, "Scores", words=3, grouped=True)


def _costs(findings: Findings, entrant: Entrant) -> Table:
    costs = findings.costs.get(entrant, {})
    columns: list[Column[str]] = [
        Column("cost", lambda name: metric_of(name).column),
        Column("value", lambda name: cost_text(name, costs[name])),
    ]
    medians = {metric_of(name).median_of for name in costs}
    return make_table([name for name in costs if name not in medians], columns, "Costs, on the machine above")
