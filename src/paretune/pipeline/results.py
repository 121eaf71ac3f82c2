"""A study with all that is known before anything runs, and its results: every planned cell with the records that are there."""

from dataclasses import dataclass
from pathlib import Path

from paretune.pipeline.base_card import base_card
from paretune.pipeline.lock import Lock, resolve_lock
from paretune.pipeline.plan import Plan, PlannedCell, make_plan
from paretune.pipeline.preflight import check_study
from paretune.pipeline.records import MOST_OF_ALL, Cell, Record, Results
from paretune.pipeline.runs import live_runs
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import decide, read_tuning
from paretune.study.data import SPLITS
from paretune.study.registry import load_function
from paretune.study.study import Study, load_study, located

FEW_DOCUMENTS = 10
"""In a split; with fewer, an interval says next to nothing."""


@dataclass(frozen=True)
class OpenStudy:
    """A study file with all that is known before anything runs."""

    study: Study
    file: Path
    lock: Lock
    plan: Plan
    store: Store

    @property
    def results_directory(self) -> Path:
        return Path("results") / self.study.study


def open_study(file: str | Path, store: str | Path | None = None, device: str = "auto") -> OpenStudy:
    """Read a study, resolve its lock and plan it; raises the UserErrors of each."""
    file = Path(file)
    study = load_study(file)
    artifacts = Store(Path(store) if store else file.parent / ".paretune")
    with located(file):
        lock = resolve_lock(study, file, device, artifacts.root)
        artifacts.check()
        check_study(study, lock, file.parent)
        plan = decide(make_plan(study, lock, file.parent), artifacts)
    return OpenStudy(study, file, lock, plan, artifacts)


def small_splits(plan: Plan, store: Store) -> list[str]:
    """A warning for each dataset that has a split of few documents, as far as the data stages have run."""
    warnings = []
    for name, stage in plan.data.items():
        record = store.find(stage)
        counts = {split: record.metrics[f"documents_{split}"] for split in SPLITS} if record else {}
        few = [f"{count} in `{split}`" for split, count in counts.items() if count < FEW_DOCUMENTS]
        if few:
            warnings.append(
                f"warning: `{name}` has few documents ({', '.join(few)}), so little can be told by them; give it more, "
                "cut texts into smaller documents, or change the shares in `split`"
            )
    return warnings


def describe_documents(study: Study, plan: Plan, store: Store) -> list[str]:
    """For each dataset: how many documents its records come from, and a warning where they split badly, once the data stage has
    run; the column that groups records where the study names none, before it as well."""
    lines = []
    for name, stage in plan.data.items():
        field, record = study.data[name].document, store.find(stage)
        metrics = record.metrics if record else {}
        groups = metrics.get("groups", [])
        if "records_used" in metrics:
            num, largest = metrics["records_used"], metrics["records_largest_document"]
            documents = sum(metrics[f"documents_{split}"] for split in SPLITS)
            by = f" by `{field}`" if field else ""
            if largest == 1:
                lines.append(f"`{name}`: {num:,} records, each a document of its own{by}")
            else:
                lines.append(f"`{name}`: {num:,} records of {documents:,} documents{by}, at most {largest:,} of one")
            if largest > MOST_OF_ALL * num:
                lines.append(
                    f"warning: `{name}`: {largest:,} of {num:,} records are one document{by}, and stand in one split; name a "
                    "column with more even values as `document`"
                )
        elif field is None and not record and "source" in stage.resources:
            source, resource = study.data[name].sources["source"], stage.resources["source"]
            if source.path and source.resolved_format != "text":
                rows = load_function("paretune.data.sources:iterate_rows")(source, str(resource))
                found = load_function("paretune.data.groups:groupings")(row.values for row in rows)
                groups = [(group.column, group.num_values, group.num_records) for group in found]
        for column, num_values, num_records in groups[:1]:
            instead = f" instead of `{field}`, which has a value each," if field else ""
            lines.append(
                f"warning: `{name}`: records with the same `{column}` ({num_values:,} values in {num_records:,} records) "
                f"seem to belong together, and the split parts them: write `document: {column}`{instead} to keep them together"
            )
    return lines


def read_results(opened: OpenStudy) -> Results:
    """The records of a plan; what is missing is named in its cell, and so is what a run that is on has still to do."""
    plan, store = opened.plan, opened.store
    expected = {name for run in live_runs(store) for name in set(run.stages) - set(run.failed)}

    def present(stages: dict[str, Stage]) -> dict[str, Record]:
        return {name: record for name, stage in stages.items() if (record := store.find(stage))}

    def cell(planned: PlannedCell) -> Cell:
        missing = [stage.name for stage in planned.stages if store.find(stage) is None]
        return Cell(
            planned.base,
            planned.dataset,
            planned.variant,
            planned.seed,
            methods=tuple(record for stage in planned.methods if (record := store.find(stage))),
            evaluations=present(dict(planned.evaluations)),
            missing=tuple(name for name in missing if name not in expected),
            running=tuple(name for name in missing if name in expected),
        )

    return Results(
        study=opened.study,
        study_file=opened.file,
        lock={name: value for name, value in opened.lock.content.items() if name != "seen"},
        data=present(dict(plan.data)),
        leakage=present(dict(plan.leakage)),
        audit=present(dict(plan.audit)),
        tokens={pair: record for pair, stage in plan.tokens.items() if (record := store.find(stage))},
        cells=tuple(cell(planned) for planned in plan.cells),
        tunings=tuple(read_tuning(tuning, store) for tuning in plan.tunings),
        base_cards={
            name: base_card(base, opened.file.parent, opened.lock.bases[name].resource.commit)
            for name, base in opened.study.bases.items()
        },
    )
