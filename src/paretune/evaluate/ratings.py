"""Ratings by people: what stands on their sheets about the texts of one model.

A score is one rating: so two variants are compared within each rater, and all ratings of a document stay one cluster.
`ratings.jsonl` keeps every rating, and the items that a sheet left empty, for the agreement of raters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.sheets import OCCASIONS, Text, read_contexts, read_sheet, read_texts
from paretune.evaluate.outputs import Score, write_scores
from paretune.pipeline.stage import Artifact, StageContext

_TEXTS = "texts."


@dataclass(frozen=True)
class Rating:
    """One rating of one text; `value` is None where a sheet is empty or a judge gave none."""

    item: str
    """`Text.item()` of the text, whichever variant wrote it."""
    rater: str
    occasion: int
    """0, and from 1 on where the same rater was asked again."""
    criterion: str
    value: int | None


def evaluate_ratings(context: StageContext) -> dict[str, Any]:
    """Stage body: `coherence` and `relevance` of each text by each rater, in `scores.parquet`."""
    criteria, found = context.config["evaluation"]["criteria"], []
    texts = texts_of(context.inputs)
    counts: dict[str, Any] = {}
    for rater in context.config["sheets"]:
        sheet = read_sheet(Path(context.resources[f"sheet.{rater}"]), criteria)
        counts[f"items_{rater}"] = len(sheet)
        for text in texts:
            for occasion in range(OCCASIONS):
                for criterion, value in sheet.get(text.item(occasion), {}).items():
                    found.append((text, Rating(text.item(), rater, occasion, criterion, value)))
    return counts | write_ratings(found, context.draft)


def texts_of(inputs: Mapping[str, Artifact]) -> list[Text]:
    """All that the evaluations among `inputs` generated."""
    contexts = read_contexts(inputs["data"].path)
    named = ((role.removeprefix(_TEXTS), artifact) for role, artifact in inputs.items() if role.startswith(_TEXTS))
    return [text for name, artifact in named for text in read_texts(name, artifact.path, contexts)]


def write_ratings(found: Sequence[tuple[Text, Rating]], directory: Path) -> dict[str, int]:
    """Write `ratings.jsonl` and `scores.parquet`, a rater's mean where he rated twice; returns the metrics of the record."""
    with (directory / "ratings.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(rating)) + "\n" for _, rating in found)
    values: dict[tuple[Text, str, str], list[int]] = {}
    for text, rating in found:
        if rating.value is not None:
            values.setdefault((text, rating.rater, rating.criterion), []).append(rating.value)
    seen = {"rater": {rating.rater for _, rating in found}, "text": {text.source for text, _ in found}}
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
    write_scores(scores, directory, [name for name, names in seen.items() if len(names) > 1])
    rated = {text.example for text, _, _ in values}
    return {"rated": len(rated), "missing": sum(rating.value is None for _, rating in found)}
