"""What is wrong, private or strange in a dataset as it will be trained on: counted by split before anything is trained.

Every finding is a count of records (of examples for answers and labels) with the numbers of the first of them. Texts are read
one after the other, and of each only five numbers are kept: 40 bytes a record, however long it is.
"""

import functools
import hashlib
import itertools
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from paretune.data.cleaning import find_personal, has_control_characters, is_damaged, repaired
from paretune.data.control import KNOWN, held, sources_of
from paretune.data.prepare import iterate_records, record_text
from paretune.data.safety import load_filter
from paretune.data.words import words_of
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import AuditConfig
from paretune.study.data import MASKS, SPLITS

HTML = re.compile(r"</?(?:p|br|div|span|a|b|i|em|strong|ul|ol|li|h[1-6]|table|t[dr]|img)\b[^<>]*>|&(?:#\d+|[a-z]+);")
LABELS = range(2, 21)
"""How many values a field of labels has, such as one that splits keep the shares of."""
SHOWN = 20
"""Numbers of records that are kept of each finding."""
FAR = 3.0
"""Interquartile ranges of the log lengths beyond the quartiles from which a length is an outlier, "far out" (Tukey 1977,
Exploratory Data Analysis, section 2D); of logarithms, because lengths of texts spread over orders of magnitude."""
MAIN_SHARE = 0.05
"""Share of the records from which a language is one of the dataset's own."""
SURE = 0.95
"""Probability from which a language counts as known; 1 in 1,000 articles is then still called by a relative's name."""
_HEAD = 300
"""Characters that a language is told from: more cost time and say the same."""
_LETTERS = (80, 0.7)
"""Letters, and their share of the head, from which a text is in a language at all: code, tables and names are in none."""
_BATCH = 256
_EMIT_RECORDS = 5_000
_MANY_LABELS = 1000
_REPEATS = 5
"""Answers a label from which a task without `labels` is one of labels."""


@dataclass(frozen=True)
class Finding:
    split: str
    finding: str
    """What was found: `encoding`, `email`, ..."""
    count: int
    of: int
    """Records of the split, or examples."""
    records: tuple[int, ...]
    """Numbers of the first, from 1 in the order of the source."""
    detail: str = ""


@dataclass
class _Column:
    """A few numbers of each record of a split."""

    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    exact: "array[int]" = field(default_factory=lambda: array("Q"))
    words: "array[int]" = field(default_factory=lambda: array("Q"))
    languages: "array[int]" = field(default_factory=lambda: array("q"))
    """Index in the list of languages; -1 where none is known."""
    examples: int = 0


@dataclass
class _Notes:
    """What single texts told: how often, and where first."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, split: str, name: str, number: int) -> None:
        self.counts[split, name] += 1
        if len(first := self.first.setdefault((split, name), [])) < SHOWN:
            first.append(number)


_Labels = dict[tuple[str, str], Counter[str]]
"""The answers of each task and split."""


def audit_data(context: StageContext) -> dict[str, Any]:
    """Stage `audit`: writes `audit.jsonl`, a Finding a line; nothing in it stops a study.

    Config: `labels`, the names of tasks with labels, and `safety` where unsafe records are counted.
    """
    data, config = context.inputs["data"], context.parse(AuditConfig)
    own = " ".join(sources_of(data.record.config["dataset"]).values())
    columns = {split: _Column() for split in SPLITS}
    notes, languages, labels = _Notes(), list[str](), _Labels()
    total = data.record.metrics.get("records", 0)
    for done, rows in enumerate(iterate_records(data.path / "documents.parquet")):
        split, number, text = rows[0]["split"], int(rows[0]["example"]) + 1, record_text(rows)
        for name in [*found_in(text), *(["control_tokens"] if held(KNOWN, text, own) else [])]:
            notes.add(split, name, number)
        column = columns[split]
        column.numbers.append(number)
        column.lengths.append(len(text))
        column.exact.append(_digest(text))
        column.words.append(_digest(" ".join(words_of(text))))
        language = language_of(text)
        if language is not None and language not in languages:
            languages.append(language)
        column.languages.append(-1 if language is None else languages.index(language))
        if "task" in rows[0]:
            column.examples += len(rows)
            words = " ".join(words_of(rows[0]["context"]))
            for row in rows:
                counts = labels.setdefault((row["task"], split), Counter())
                if len(counts) <= _MANY_LABELS:
                    counts[row["completion"].strip()] += 1
                asked = f" {words} {' '.join(words_of(row['prompt']))} "
                if any(answer_stands_in(answer, asked) for answer in (row["completion"], *(row.get("references") or ()))):
                    notes.add(split, f"answer_in_prompt:{row['task']}", number)
        if done % _EMIT_RECORDS == 0:
            context.emit(done=done, total=total)
    if config.safety is not None:
        safety = load_filter(config.safety, context.resources)
        records = iterate_records(data.path / "documents.parquet")
        done = 0
        while batch := list(itertools.islice(records, _BATCH)):
            context.emit(done=done, total=total, part="looking for unsafe text")
            done += len(batch)
            for rows, unsafe in zip(batch, safety.flags([record_text(rows) for rows in batch]), strict=True):
                if unsafe:
                    notes.add(rows[0]["split"], "unsafe", int(rows[0]["example"]) + 1)
    known = Counter(n for column in columns.values() for n in column.languages if n >= 0)
    main = [n for n, times in known.most_common() if times >= MAIN_SHARE * known.total()]
    findings = []
    for (split, name), count in notes.counts.items():
        kind, _, task = name.partition(":")
        of = columns[split].examples if task else len(columns[split].numbers)
        findings.append(Finding(split, kind, count, of, tuple(notes.first[split, name]), task))
    findings += [*_of_all_texts(columns, languages, main), *_of_labels(labels, config.labels)]
    with (context.draft / "audit.jsonl").open("w", encoding="utf-8") as out:
        for finding in sorted(findings, key=lambda finding: (finding.finding, SPLITS.index(finding.split))):
            out.write(json.dumps(asdict(finding), ensure_ascii=False) + "\n")
    main_languages = ",".join(languages[n] for n in main)
    return {"findings": len(findings), "languages": main_languages, **{f"records_{s}": len(columns[s].numbers) for s in SPLITS}}


def found_in(text: str) -> Iterator[str]:
    """What is wrong or private in one text."""
    if is_damaged(text):
        yield "encoding"
        if is_damaged(repaired(text)):
            yield "encoding_lost"
    if has_control_characters(text):
        yield "control"
    if HTML.search(text):
        yield "html"
    yield from sorted({personal.kind for personal in find_personal(text, MASKS)})


def answer_stands_in(completion: str, prompt_words: str) -> bool:
    """Whether the words of an answer stand side by side in a prompt, whose words are joined by spaces, one at each end."""
    words = words_of(completion)
    return bool(words) and f" {' '.join(words)} " in prompt_words


def length_fences(lengths: np.ndarray) -> tuple[float, float]:
    """Characters below and above which a length is far from most, by FAR; all are within where half of them are equal."""
    low, high = np.quantile(np.log(np.maximum(lengths, 1)), [0.25, 0.75])
    reach = FAR * (high - low) or math.inf
    return math.exp(low - reach), math.exp(min(high + reach, 700))


def language_of(text: str) -> str | None:
    """ISO 639 code of the language that a text begins in, by py3langid; None for what is too short, no prose, or not sure."""
    head = text[:_HEAD]
    letters = sum(map(str.isalpha, head))
    if letters < max(_LETTERS[0], _LETTERS[1] * len(head)):
        return None
    language, probability = _identifier().classify(head)
    return str(language) if probability >= SURE and language != "zxx" else None


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _of_all_texts(columns: Mapping[str, _Column], languages: Sequence[str], main: Sequence[int]) -> Iterator[Finding]:
    """Records that read as an earlier one of their split, are far from most in length, or in another language."""
    low, high = length_fences(np.concatenate([np.asarray(column.lengths) for column in columns.values()]))
    for split, column in columns.items():
        exact, words = np.ones((2, len(column.numbers)), bool)
        for repeated, digests in ((exact, column.exact), (words, column.words)):
            repeated[np.unique(np.asarray(digests), return_index=True)[1]] = False
        yield from _flagged(split, column, "duplicate", exact)
        yield from _flagged(split, column, "same_words", words & ~exact)
        lengths = np.asarray(column.lengths)
        yield from _flagged(split, column, "short", lengths < low, f"under {low:,.0f} characters")
        yield from _flagged(split, column, "long", lengths > high, f"over {high:,.0f} characters")
        spoken = np.asarray(column.languages)
        foreign = (spoken >= 0) & ~np.isin(spoken, main)
        counts = Counter(languages[n] for n in spoken[foreign].tolist())
        yield from _flagged(
            split, column, "language", foreign, ", ".join(f"{name} {times}" for name, times in counts.most_common(5))
        )


def _flagged(split: str, column: _Column, name: str, flags: np.ndarray, detail: str = "") -> Iterator[Finding]:
    if flags.any():
        numbers = np.asarray(column.numbers)[flags][:SHOWN].tolist()
        yield Finding(split, name, int(flags.sum()), len(flags), tuple(numbers), detail)


def _of_labels(labels: _Labels, labelled: Sequence[str]) -> Iterator[Finding]:
    """The most and the least frequent answer of every task of few, frequent ones."""
    for task in sorted({task for task, _ in labels}):
        train = labels.get((task, "train"), Counter())
        if task not in labelled and not (len(train) in LABELS and train.total() >= _REPEATS * len(train)):
            continue
        for split in SPLITS:
            counts = labels.get((task, split), Counter())
            if counts:
                (most, times), (least, few) = counts.most_common(1)[0], min(counts.items(), key=lambda pair: pair[1])
                detail = f"{task}: {len(counts)} labels, `{most}` {times}, `{least}` {few}"
                yield Finding(split, "labels", times, counts.total(), (), detail)
