"""The two files that evaluations leave beside their record: scores of single examples, and generated texts.

Every estimate is a weighted mean of `value` by `weight` over rows of scores.parquet, so an evaluation writes one row an example
and metric and no averages.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from paretune.data.safety import load_filter
from paretune.pipeline.records import SLICE_PREFIX
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import SafetyConfig

StoppedBy = Literal["eos", "line_break", "stop", "max_new_tokens", "context"]
"""`line_break` ends answers only, `stop` those of tasks; `context`: prompt and text fill the positions of the model."""

_COLUMNS = dict.fromkeys(("split", "document", "example", "metric"), pa.string()) | {
    "value": pa.float64(),
    "weight": pa.float64(),
}


@dataclass(frozen=True)
class Score:
    """One example's value of one metric."""

    metric: str
    value: float
    example: str
    document: str
    """Examples of one document are a cluster of the error bars."""
    weight: float = 1.0
    split: str = ""
    """`validation` or `test`; empty where the examples belong to no split."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """Field to value, the same fields in every score of a file."""
    task: str | None = None
    """Where a file holds scores of several tasks, in every score of it."""


@dataclass(frozen=True)
class Generation:
    """One generated text."""

    prompt: str
    text: str
    """What follows the prompt, the stop token or the turn's end left out; of an answer, its first line."""
    new_tokens: int
    """Without the stop token."""
    seconds: float
    """Wall time of the batch divided by its prompts: over a batch they add up to the time that it took."""
    stopped_by: StoppedBy
    reference: str | None = None
    """What the text is read against, where there is such a thing."""
    task: str | None = None
    """Where a file holds texts of several tasks; the prompt is then what follows the context."""
    document: str | None = None
    example: str | None = None
    references: tuple[str, ...] | None = None
    """Where several are right; the first of them is `reference`."""
    read: str | None = None
    """What the model read, where that is not the prompt but its form in a chat."""
    filtered: bool | None = None
    """Whether the text is unsafe by the study's `safety`, where it has one."""


def with_safety(context: StageContext, generations: Sequence[Generation]) -> list[Generation]:
    """The texts marked by the `safety` of the study; as they are where the stage's config has none."""
    if "safety" not in context.config:
        return list(generations)
    safety = SafetyConfig.model_validate(context.config["safety"], strict=False)
    flags = load_filter(safety, context.resources).flags([each.text for each in generations])
    return [replace(each, filtered=flag) for each, flag in zip(generations, flags, strict=True)]


def safety_scores(generation: Generation, like: Score) -> list[Score]:
    """`filtered`, 1 for an unsafe text, of the example of another score; nothing where no text was marked."""
    if generation.filtered is None:
        return []
    return [replace(like, metric="filtered", value=float(generation.filtered), weight=1.0)]


def write_outputs(
    directory: Path, scores: Sequence[Score], generations: Sequence[Generation] | None = None, slice_by: Sequence[str] = ()
) -> None:
    """Write `scores.parquet`, a score a row, and `generations.jsonl`, a text a line, where there are `generations`.

    The table has a column `slice.<field>` for each field of `slice_by`, and `task` where scores have one.
    """
    columns = {name: pa.array([getattr(score, name) for score in scores], kind) for name, kind in _COLUMNS.items()}
    columns |= {f"{SLICE_PREFIX}{name}": pa.array([score.slices[name] for score in scores], pa.string()) for name in slice_by}
    if scores and scores[0].task is not None:
        columns["task"] = pa.array([score.task for score in scores], pa.string())
    pq.write_table(pa.table(columns), directory / "scores.parquet")
    if generations is not None:
        rows = [{k: v for k, v in asdict(each).items() if v is not None or k == "reference"} for each in generations]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / "generations.jsonl").write_text("".join(lines), encoding="utf-8")
