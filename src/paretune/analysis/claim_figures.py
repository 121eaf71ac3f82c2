"""The figures that sentences are checked against: Markdown tables of a report, and results.csv with comparisons.csv beside it.

A column is one metric of several variants from one place (a table, or a task and split of results.csv); the same metric may
stand in several columns, and a sentence about it is true if one of them makes it so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from paretune.errors import DataError
from paretune.spec.compare import HIGHER_IS_BETTER

WORDS: Mapping[str, str] = {
    "bits_per_byte": r"bits[ _-]per[ _-]byte|bpb",
    "perplexity": r"perplexit(?:y|ies)|ppl",
    "token_accuracy": r"token[ _-]accuracy",
    "exact_match": r"exact[ _-]match|\bem\b",
    "accuracy": r"accuracy|accurate|correct(?: answers)?|questions right",
    "rouge_l": r"rouge[ _-]?l",
    "rouge_1": r"rouge[ _-]?1",
    "rouge_2": r"rouge[ _-]?2",
    "bert_score_f1": r"bert[ _-]?score(?:[ _-]f1)?",
    "set_f1": r"set[ _-]f1|f1",
    "train_tokens_per_second": r"tokens(?:[ _-]per[ _-]second|/s(?:ec)?)|throughput",
    "train_seconds": r"train(?:ing)?[ _-](?:time|seconds|duration)|time to train",
    "ms_per_token": r"latency|(?:time|ms|milliseconds)[ _-]per[ _-]token|inference[ _-]time|ms/token",
    "peak_memory_bytes": r"(?:peak[ _-])?memory(?:[ _-]bytes)?",
    "trainable_parameters": r"train(?:able|ed)[ _-]param(?:eter)?s?",
    "parameters": r"param(?:eter)?s?(?:[ _-]count)?",
    "model_bytes": r"model[ _-](?:size|bytes)|(?:file|disk)[ _-]size|size",
    "loss": r"loss(?:es)?",
    "coherence": "coherence",
    "relevance": "relevance",
}
"""What a metric is called in tables and sentences, the narrower names first."""
SHARES = frozenset({"accuracy", "exact_match", "token_accuracy", "set_f1", "contains"})
HIGHER = HIGHER_IS_BETTER | {"train_tokens_per_second"}
_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "k": 1e3, "m": 1e6, "b": 1e9, "min": 60.0, "h": 3600.0, "%": 0.01}
_NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"
FIGURE = re.compile(
    rf"(?<![\w-])({'|'.join(WORDS.values())})\s*(?:of|is|was|=|:)\s*({_NUMBER}(?:\s*(?:%|[kKMG]B\b))?)(?!\s*(?:to|of|-)\b)",
    re.IGNORECASE,
)
"""A metric and its figure in running text: `perplexity of 12.3`."""
_PART = re.compile(rf"^\W*({_NUMBER})\s*(?:of|/)\s*(\d[\d,]*)(?!\S*\s*(?:[kKMG]B|min))")
_VALUE = re.compile(rf"^\W*?({_NUMBER})\s*(%|[kKMG]B\b|[kKMB]\b|min\b|h\b)?")


@dataclass(frozen=True)
class Figure:
    value: float
    num: int | None = None
    """Questions behind a share."""


@dataclass(frozen=True)
class Column:
    metric: str
    where: str
    """What tells this column from others of its metric: `test`, or the caption of a table."""
    figures: Mapping[str, Figure]
    """By variant."""


@dataclass(frozen=True)
class Evidence:
    columns: tuple[Column, ...]
    p_values: Mapping[tuple[str, str, str], float]
    """(variant, baseline, metric) to the corrected p value, from comparisons.csv."""
    asked: int | None = None
    """Questions that the report speaks of, where it speaks of one number of them."""

    @property
    def variants(self) -> set[str]:
        return {name for column in self.columns for name in column.figures}


def read_evidence(report: str, results: Path | None) -> Evidence:
    """From `results` and the comparisons.csv beside it, else from the tables of the report; DataError if there is nothing."""
    if results is None:
        columns = tuple(table_columns(report))
        if not columns:
            raise DataError("the report has no table of figures; name one with `--results results.csv`")
        return Evidence(columns, {})
    try:
        table = pd.read_csv(results, keep_default_na=False)
        columns = tuple(_csv_columns(table))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"--results: `{results}` is no results.csv of Paretune ({error})") from None
    beside = results.parent / "comparisons.csv"
    return Evidence(columns, _p_values(pd.read_csv(beside, keep_default_na=False)) if beside.exists() else {})


def metric_of(text: str) -> str | None:
    """The metric that a heading or clause names; of several the one that is named first."""
    found = [(match.start(), -len(match[0]), name) for name, words in WORDS.items() if (match := _word(words, text))]
    return min(found)[2] if found else None


def table_columns(report: str) -> Iterator[Column]:
    """The columns of every Markdown table whose columns, or rows, are metrics."""
    for table in re.findall(r"(?:^[ \t]*\|.*\n?)+", report, re.MULTILINE):
        rows = [[_bare(cell) for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
        rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
        width = max(map(len, rows))
        grid = [row + [""] * (width - len(row)) for row in rows]
        across = sum(metric_of(cell) is not None for cell in grid[0][1:])
        down = sum(metric_of(row[0]) is not None for row in grid[1:])
        yield from _grid_columns(grid if across >= down else [list(column) for column in zip(*grid, strict=True)])


def number_in(cell: str) -> Figure | None:
    """The first number of a cell in its plain unit: shares of 1, bytes, seconds; `5 of 20` knows its questions."""
    if found := _PART.match(cell):
        part, whole = _plain(found[1]), int(_plain(found[2]))
        return Figure(part / whole, whole) if 0 <= part <= whole and whole else None
    found = _VALUE.match(cell)
    return Figure(_plain(found[1]) * _UNITS.get((found[2] or "").lower(), 1.0)) if found else None


def _grid_columns(grid: Sequence[Sequence[str]]) -> Iterator[Column]:
    header, *rows = grid
    counts = {row[0]: number_in(row[at]) for row in rows for at, name in enumerate(header) if _is_count(name)}
    for at, name in enumerate(header[1:], 1):
        metric = metric_of(name)
        if metric is None:
            continue
        figures = {}
        for row in rows:
            found = number_in(row[at])
            if not row[0] or found is None:
                continue
            value = found.value / 100 if metric in SHARES and ("%" in name or found.value > 1) else found.value
            asked = counts.get(row[0])
            figures[row[0]] = Figure(value, found.num or (int(asked.value) if asked else _asked(name)))
        if figures:
            yield Column(metric, name, figures)


def _csv_columns(table: pd.DataFrame) -> Iterator[Column]:
    whole = table[(table["slice"] == "") & (table["trial"] == "")]
    for (base, data, task, split, metric), part in whole.groupby(["base", "dataset", "task", "split", "metric"], sort=False):
        figures = {}
        for variant, rows in part.groupby("variant", sort=False):
            num = rows["n"].iloc[0]
            asked = int(float(num)) if metric in SHARES and num != "" else None
            figures[str(variant)] = Figure(float(rows["value"].astype(float).mean()), asked)
        yield Column(str(metric), f"{base} {data} {task} {split}", figures)


def _p_values(table: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    whole = table[(table["slice"] == "") & (table["p_adjusted"] != "")]
    found: dict[tuple[str, str, str], float] = {}
    for row in whole.to_dict("records"):
        pair = (str(row["variant"]), str(row["baseline"]), str(row["metric"]))
        for key in (pair, (pair[1], pair[0], pair[2])):
            found[key] = min(found.get(key, 1.0), float(row["p_adjusted"]))
    return found


def _word(words: str, text: str) -> re.Match[str] | None:
    return re.search(rf"(?<![\w-])(?:{words})(?![\w])", text, re.IGNORECASE)


def _is_count(name: str) -> bool:
    return re.fullmatch(r"n|(?:num(?:ber)? of )?(?:questions|examples|items)", name, re.IGNORECASE) is not None


def _asked(text: str) -> int | None:
    found = re.search(r"n\s*=\s*(\d+)|(\d+)\s+(?:questions|examples|items)", text, re.IGNORECASE)
    return int(found[1] or found[2]) if found else None


def _bare(cell: str) -> str:
    return re.sub(r"[*`\\]|<[^>]*>", "", cell).strip()


def _plain(number: str) -> float:
    return float(number.replace(",", ""))
