"""Ratings by people: the blind sheet of what all variants wrote, and what stands on filled ones about the texts of one model.

A sheet holds texts after the same prompts, in random order and without the names of their variants. A score is one rating: so
two variants are compared within each rater, and all ratings of a document stay one cluster. `ratings.jsonl` keeps every
rating, and the items that a sheet left empty, for the agreement of raters.

What is preferred of two texts is a score of both, 1 and 0 or twice 0.5, of an example of the pair's own: so two variants are
compared in `preference` on the pairs that they stood in against each other, which makes the paired test of right and wrong
answers a sign test; the mean of a variant is its share over all pairs that it stood in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.sheets import OCCASIONS, Text, choose, read_contexts, read_preferences, read_sheet, read_texts, write_sheet
from paretune.errors import SpecError, StoreError
from paretune.evaluate.outputs import Score, write_outputs
from paretune.pipeline.plan import Plan, cell_name
from paretune.pipeline.stage import Artifact, StageContext
from paretune.pipeline.store import Store
from paretune.study.base import suggestion
from paretune.study.ratings import PREFERENCE, RUBRIC, Ratings
from paretune.study.study import Study

_TEXTS = "texts."
"""What the roles of inputs that hold texts begin with."""
TWICE = 0.1
"""Share of the texts of a sheet that stand there twice: what shows whether a rater agrees with himself."""


@dataclass(frozen=True)
class Rating:
    """One rating of one text; `value` is None where a sheet is empty or a judge gave none."""

    item: str
    """`Text.item()` of the text, whichever variant wrote it; of a preference those of both."""
    rater: str
    occasion: int
    """0, and from 1 on where the same rater was asked again."""
    criterion: str
    value: float | None


def evaluate_ratings(context: StageContext) -> dict[str, Any]:
    """Stage body: `coherence` and `relevance` of each text by each rater, in `scores.parquet`."""
    criteria, texts = context.config["evaluation"]["criteria"], texts_of(context.inputs)
    ratings: list[tuple[Text, Rating]] = []
    counts: dict[str, Any] = {}
    for rater in context.config["sheets"]:
        sheet = read_sheet(Path(str(context.resources[f"sheet.{rater}"])), criteria)
        counts[f"items_{rater}"] = len(sheet)
        for text in texts:
            for occasion in range(OCCASIONS):
                for criterion, value in sheet.get(text.item(occasion), {}).items():
                    ratings.append((text, Rating(text.item(), rater, occasion, criterion, value)))
        for pair, share in read_preferences(Path(str(context.resources[f"sheet.{rater}"]))).items():
            name = " ".join(pair)
            of_pair = (replace(text, example=f"{text.example}, {name}") for text in texts if text.item() in pair)
            ratings += [(text, Rating(name, rater, 0, PREFERENCE, share)) for text in of_pair]
    return counts | write_ratings(ratings, context.draft)


def texts_of(inputs: Mapping[str, Artifact]) -> list[Text]:
    """All that the evaluations among `inputs` generated."""
    contexts = read_contexts(inputs["data"].path)
    named = ((role.removeprefix(_TEXTS), artifact) for role, artifact in inputs.items() if role.startswith(_TEXTS))
    return [text for name, artifact in named for text in read_texts(name, artifact.path, contexts)]


def write_ratings(ratings: Sequence[tuple[Text, Rating]], directory: Path) -> dict[str, int]:
    """Write `ratings.jsonl` and `scores.parquet`, a rater's mean where he rated twice; returns the metrics of the record."""
    with (directory / "ratings.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(rating)) + "\n" for _, rating in ratings)
    values: dict[tuple[Text, str, str], list[float]] = {}
    for text, rating in ratings:
        if rating.value is not None:
            is_second = rating.criterion == PREFERENCE and not rating.item.startswith(text.item())
            value = 1 - rating.value if is_second else rating.value
            values.setdefault((text, rating.rater, rating.criterion), []).append(value)
    seen = {"rater": {rating.rater for _, rating in ratings}, "text": {text.source for text, _ in ratings}}
    scores = [
        Score(
            criterion,
            float(np.mean(given)),
            example=f"{text.example} by {rater}",
            document=text.document,
            slices={"rater": rater, "text": text.source},
        )
        for (text, rater, criterion), given in values.items()
    ]
    write_outputs(directory, scores, slice_by=[name for name, names in seen.items() if len(names) > 1])
    rated = {text.example for text, _, criterion in values if criterion != PREFERENCE}
    return {"rated": len(rated), "missing": sum(rating.value is None for _, rating in ratings)}


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
    by_dataset = {dataset: comparable_texts(study, plan, store, dataset, every_seed=every_seed) for dataset in study.data}
    known = {text.source for texts in by_dataset.values() for text in texts}
    if unknown := sorted(set(of) - known):
        raise SpecError(f"--of: no generation or task `{unknown[0]}`{suggestion(unknown[0], known)}")
    chosen = [text for texts in by_dataset.values() for text in choose(texts, of, num_prompts, seed)]
    if not chosen:
        raise SpecError("there is no text to rate; add `generate: {prompts: [...]}` to `evaluate`, or a task with `score`")
    rows = write_sheet(chosen, list(RUBRIC), TWICE, seed, to)
    rules = to.with_suffix(".txt")
    rules.write_text(f"{Ratings(files=(to.name,)).rubric}\n", encoding="utf-8")
    return (
        f"{rows} rows written to {to}, what the numbers mean to {rules}; give each person a copy under a name of its own, "
        f"then write `evaluate: {{ratings: {{files: [RATER-1.csv, RATER-2.csv]}}}}` and run the study again"
    )


def comparable_texts(study: Study, plan: Plan, store: Store, dataset: str, *, every_seed: bool = False) -> list[Text]:
    """The texts of all variants on a dataset after the prompts that all of them were given; StoreError where one has not
    written its texts yet."""
    cells = [cell for cell in plan.cells if cell.dataset == dataset]
    first = {(cell.base, cell.variant): cell for cell in reversed(cells)}
    contexts = read_contexts(store.artifact(plan.data[dataset]).path)
    rated = {name for name, use in study.evaluations_of(dataset).items() if use.row.texts_are_rated}
    texts: list[list[Text]] = []
    for cell in cells if every_seed else first.values():
        stages = {name: stage for name, stage in cell.evaluations.items() if name in rated}
        if not all(map(store.find, stages.values())):
            raise StoreError(f"{cell_name(cell)} has not written its texts yet; first run the study")
        texts.append([text for name in stages for text in read_texts(name, store.artifact(stages[name]).path, contexts)])
    # A tokenizer may have made a record too long for a base.
    shared = set.intersection(*({text.example for text in of_cell} for of_cell in texts))
    return [text for of_cell in texts for text in of_cell if text.example in shared]
