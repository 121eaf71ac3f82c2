"""A sheet for people: what all variants of a study wrote after the same prompts, in random order and without their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from paretune.data.sheets import Text, choose, read_contexts, read_texts, write_sheet
from paretune.errors import SpecError, StoreError
from paretune.pipeline.plan import Plan, PlannedCell, cell_name
from paretune.pipeline.store import Store
from paretune.study.base import suggestion
from paretune.study.ratings import RUBRIC, Ratings
from paretune.study.study import Study

TWICE = 0.1
"""Of the texts; what shows whether a rater agrees with himself."""


def write_blind_sheet(
    study: Study, plan: Plan, store: Store, to: Path, *, num_prompts: int, of: Sequence[str], seed: int, every_seed: bool
) -> str:
    """Write the sheet `to` and its instructions beside it; returns what to tell.

    SpecError for a name in `of` that nothing generates under, StoreError for what has not run or cannot be written.
    """
    if to.exists():
        raise SpecError(f"--to: `{to}` exists, and may be filled in; name another file")
    if to.suffix != ".csv":
        raise SpecError(f"--to: a sheet is a .csv file, got `{to}`")
    asked = {dataset: _asked_of_all(study, plan, store, dataset, every_seed=every_seed) for dataset in study.data}
    known = {text.source for found in asked.values() for text in found}
    if unknown := sorted(set(of) - known):
        raise SpecError(f"--of: no generation or task `{unknown[0]}`{suggestion(unknown[0], known)}")
    texts = [text for found in asked.values() for text in choose(found, of, num_prompts, seed)]
    if not texts:
        raise SpecError("there is no text to rate; add `generate: {prompts: [...]}` to `evaluate`, or a task with `score`")
    rows = write_sheet(texts, list(RUBRIC), TWICE, seed, to)
    rules = to.with_suffix(".txt")
    rules.write_text(f"{Ratings(files=(to.name,)).rubric}\n", encoding="utf-8")
    return (
        f"{rows} rows written to {to}, what the numbers mean to {rules}; give each person a copy under a name of its own, "
        f"then write `evaluate: {{ratings: {{files: [ANNA.csv, BEN.csv]}}}}` and run the study again"
    )


def _asked_of_all(study: Study, plan: Plan, store: Store, dataset: str, *, every_seed: bool) -> list[Text]:
    """The texts of all variants on a dataset after the prompts that all of them were given."""
    cells = [cell for cell in plan.cells if cell.dataset == dataset]
    first = {(cell.base, cell.variant): cell for cell in reversed(cells)}
    contexts = read_contexts(store.artifact(plan.data[dataset]).path)
    found = [_texts(study, cell, store, contexts) for cell in (cells if every_seed else first.values())]
    # A tokenizer may have made a record too long for a base.
    shared = set.intersection(*({text.example for text in of_cell} for of_cell in found))
    return [text for of_cell in found for text in of_cell if text.example in shared]


def _texts(study: Study, cell: PlannedCell, store: Store, contexts: Mapping[tuple[str, str], str]) -> list[Text]:
    uses = study.evaluations_of(cell.dataset)
    stages = {name: stage for name, stage in cell.evaluations.items() if name in uses and uses[name].row.texts_are_rated}
    if not all(map(store.find, stages.values())):
        raise StoreError(f"{cell_name(cell)} has not written its texts yet; first run the study")
    return [text for name, stage in stages.items() for text in read_texts(name, store.artifact(stage).path, contexts)]
