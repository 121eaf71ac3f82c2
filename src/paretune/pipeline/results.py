"""Read a study's results from the store: every planned cell with the records that are there."""

from pathlib import Path

from paretune.pipeline.lock import Lock
from paretune.pipeline.plan import Plan, PlannedCell
from paretune.pipeline.records import Cell, Record, Results
from paretune.pipeline.runs import live_runs
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import read_tuning
from paretune.study.data import SPLITS
from paretune.study.study import Study

FEW_DOCUMENTS = 10
"""In a split; with fewer, an interval says next to nothing."""


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


def read_results(study: Study, study_file: Path, lock: Lock, plan: Plan, store: Store) -> Results:
    """The records of a plan; what is missing is named in its cell, and so is what a run that is on has still to do."""
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
        study=study,
        study_file=study_file,
        lock={name: value for name, value in lock.content.items() if name != "seen"},
        data=present(dict(plan.data)),
        leakage=present(dict(plan.leakage)),
        audit=present(dict(plan.audit)),
        tokens={pair: record for pair, stage in plan.tokens.items() if (record := store.find(stage))},
        cells=tuple(cell(planned) for planned in plan.cells),
        tunings=tuple(read_tuning(tuning, store) for tuning in plan.tunings),
    )
