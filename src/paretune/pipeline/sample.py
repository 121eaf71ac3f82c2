"""What a dataset holds, in tokens of a base, by a sample of its records: what training and evaluations will read."""

import functools
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paretune.pipeline.data_files import data_files, format_of_file
from paretune.pipeline.resources import Resource, read_tokenizer
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.study.data import SPLITS, Dataset, Source
from paretune.study.registry import load_function

_WHOLE = ("json", "text", "xlsx")
"""Formats that are read whole for an estimate; of others, which are read record by record, the first records are enough."""
_ROWS = 5_000
_SAMPLE = 300
"""Of the records that were read, evenly, so many are tokenized."""
_TOKENS_PER_BYTE = 0.25
"""Where the tokenizer is not at hand."""


@dataclass(frozen=True)
class Branch:
    """A prompt and its completion, in tokens; of plain text all of it is the completion."""

    task: str
    prompt: int
    completion: int


@dataclass(frozen=True)
class Text:
    """A record, in tokens: a context with branches, or plain text as the one branch of none."""

    context: int
    branches: tuple[Branch, ...]

    @property
    def read(self) -> int:
        """Tokens of it where the context is read once, prefix and ends included."""
        return 1 + self.context + sum(1 + branch.prompt + branch.completion for branch in self.branches)


@dataclass(frozen=True)
class Sample:
    """Some records of a dataset as its training split has them; those that are skipped or cut already left out or short."""

    texts: tuple[Text, ...]
    shares: Mapping[str, float]
    """By split, how many records each of `texts` stands for."""
    plain: bool
    """No tasks: long texts are read in windows."""
    num_bytes: float
    """Of all records, those that no split takes among them."""
    kept_bytes: float
    """Of the splits."""
    encoding: float
    """Seconds that the tokenizer took for a byte."""


@dataclass(frozen=True)
class Amount:
    """What an epoch of training takes: windows (or examples), and the tokens that are learned (end-of-text included)."""

    windows: float
    tokens: float
    exact: bool
    read: float | None = None
    """All tokens of the examples, where not each of them is learned."""

    @property
    def length(self) -> float:
        """Of an example, in tokens."""
        return (self.read or self.tokens) / max(1, self.windows)


def amount_of(tokens: Stage, sample: Sample | None, store: Store) -> Amount | None:
    """Of the training split: counted where the stage `tokens` has run, else by the sample."""
    record, data = store.find(tokens), store.find(tokens.inputs["data"])
    if record is not None and data is not None:
        windows = record.metrics["windows_train"]
        if "read_tokens_train" in record.metrics:
            read = record.metrics["read_tokens_train"]
            return Amount(windows, record.metrics["tokens_train"] + windows, exact=True, read=read)
        # Each example adds its end-of-text. Where examples are skipped, those that are left have one window each.
        examples = windows if record.metrics["skipped_examples"] else data.metrics["examples_train"]
        return Amount(windows, record.metrics["tokens_train"] + examples, exact=True)
    if sample is None:
        return None
    share, length = sample.shares["train"], tokens.config["max_length"]
    branches = [(text.context, branch) for text in sample.texts for branch in text.branches]
    learned = sum(branch.completion + 1 for _, branch in branches) * share
    if sample.plain:
        windows = sum(math.ceil((branch.completion + 1) / (length - 1)) for _, branch in branches)
        return Amount(windows * share, learned, exact=False)
    read = learned + sum(1 + context + branch.prompt for context, branch in branches) * share
    return Amount(len(branches) * share, learned, exact=False, read=read)


def counted(sample: Sample, tokens: Stage, store: Store) -> Sample:
    """The sample with the sizes of the splits as the stage `tokens` counted them; as it is before it has run."""
    record = store.find(tokens)
    if record is None:
        return sample
    examples = sum(len(text.branches) for text in sample.texts)
    of_sample = sum(branch.completion for text in sample.texts for branch in text.branches)
    shares = {}
    for split in SPLITS:
        # By tokens: the records of a small split are longer or shorter than the sample.
        by_tokens = record.metrics[f"tokens_{split}"] / max(1, of_sample)
        shares[split] = by_tokens if sample.plain else record.metrics[f"windows_{split}"] / max(1, examples)
    return replace(sample, shares=shares)


def sample_of(tokens: Stage, dataset: Dataset) -> Sample | None:
    """From the first records; None for a hub dataset, which is not at hand yet. DataError if the data is bad."""
    role = "source" if "source" in dataset.sources else "source.train"
    source, resource = dataset.sources[role], tokens.inputs["data"].resources[role]
    if source.hub:
        return None
    files = [file for path in resource.paths for file in data_files(Path(path), source.format)] if source.paths else []
    format = (source.resolved_format or format_of_file(files[0])) if files else None
    whole = not source.paths or format in _WHOLE
    read = load_function("paretune.data.sources:iterate_rows")(source, resource.paths)
    rows = list(itertools.islice(read, None if whole else _ROWS))
    num_records = float(len(rows))
    if not whole and len(rows) == _ROWS:  # how many the file holds, by its size and that of its first rows
        if format == "parquet":
            import pyarrow.parquet

            num_records = float(sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files))
        else:
            csv = format == "csv"
            texts = (",".join(row.values.values()) if csv else json.dumps(row.values, ensure_ascii=False) for row in rows)
            num_records *= _size(source, resource) / sum(len(text.encode()) + 1 for text in texts)
    chosen = rows[:: math.ceil(len(rows) / _SAMPLE)]
    each = num_records / len(chosen)
    if role == "source":
        shares = {split: each * getattr(dataset.split, split) for split in SPLITS}
    else:
        sources = tokens.inputs["data"].resources
        sizes = {s: _size(dataset.sources[f"source.{s}"], sources[f"source.{s}"]) for s in SPLITS}
        shares = {split: each * (sizes[split] / sizes["train"] if sizes["train"] else 1) for split in SPLITS}
    parse, record_of = (load_function(f"paretune.data.records:{name}") for name in ("parse_form", "read_record"))
    form = parse(dataset, "data")
    records = [record_of(form, row) for row in chosen]
    num_bytes = sum(len(record.text.encode()) for record in records)
    started = time.process_time()
    base, length, rule = tokens.resources["base"], tokens.config["max_length"], tokens.config["too_long"]
    held = _of_tasks(records, base, length, rule) if dataset.completes else _plain(records, base, length, rule)
    encoding = (time.process_time() - started) / max(1, num_bytes)
    in_all = sum(shares.values()) if role != "source" else each
    kept = num_bytes * sum(shares.values())
    return Sample(held, shares, not dataset.completes, num_bytes * in_all, kept, encoding)


def count_tokens(texts: Sequence[str], base: Resource) -> list[int]:
    """Of each text, by the tokenizer of the base, or about, where that is not at hand."""
    directory = base.directory()
    definition = directory / "tokenizer.json" if directory else None
    if definition is None or not definition.is_file():
        return [math.ceil(len(text.encode()) * _TOKENS_PER_BYTE) for text in texts]
    return list(_counts(tuple(texts), definition))


@functools.lru_cache(maxsize=8)
def _counts(texts: tuple[str, ...], definition: Path) -> tuple[int, ...]:
    encodings = read_tokenizer(definition).encode_batch(list(texts), add_special_tokens=False)
    return tuple(len(encoding.ids) for encoding in encodings)


def _plain(records: Sequence[Any], base: Resource, length: int, rule: str) -> tuple[Text, ...]:
    counts = count_tokens([record.text for record in records if record.text.strip()], base)
    if rule in ("cut", "keep_end"):
        counts = [min(count, length - 2) for count in counts]
    return tuple(Text(0, (Branch("", 0, count),)) for count in counts if rule != "skip" or count + 2 <= length)


def _of_tasks(records: Sequence[Any], base: Resource, length: int, rule: str) -> tuple[Text, ...]:
    """Of records with prompts and completions; prefix and end-of-text are a token each."""
    contexts = count_tokens([record.context for record in records], base)
    branches = [branch for record in records for branch in record.branches]
    prompts, completions = (count_tokens([getattr(b, side) for b in branches], base) for side in ("prompt", "completion"))
    sizes = iter(zip(branches, prompts, completions, strict=True))
    texts = []
    for record, context in zip(records, contexts, strict=True):
        of_record = [
            Branch(b.task, prompt, completion) for b, prompt, completion in itertools.islice(sizes, len(record.branches))
        ]
        if rule in ("keep_end", "keep_latest") and not context:
            of_record = [replace(b, prompt=max(0, min(b.prompt, length - 2 - b.completion))) for b in of_record]
        elif rule in ("cut", "keep_end"):
            # The few examples that no context would fit beside are not told apart here.
            longest = max((branch.prompt + branch.completion for branch in of_record), default=0)
            context = max(0, min(context, length - 2 - longest))
        kept = [b for b in of_record if rule == "error" or context + b.prompt + b.completion <= length - 2]
        if kept:
            texts.append(Text(context, tuple(kept)))
    return tuple(texts)


def _size(source: Source, resource: Resource) -> float:
    """Bytes of the files of a source, as text, 0 of one without files; Arrow holds about as many as JSON."""
    files = [file for path in resource.paths for file in data_files(Path(path), source.format)] if source.paths else []
    pieces = [file for each in files for file in (each.glob("*.arrow") if each.is_dir() else (each,))]
    return float(sum(map(load_function("paretune.data.files:size_as_text"), pieces)))
