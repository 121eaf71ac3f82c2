"""Stage bodies: read a dataset and split it, and look for the same text on two sides.

`documents.parquet` holds `split, document, example, text` in the order of the source, and `contents`: digests of the longer
fields of a record, by which the leakage check finds one content under two titles. Where there are tasks a row is one of a
record, with `task, context, prompt, completion`; those of a document, and of one context in it, stand side by side.

A document is never on two sides. Where it stands depends on the seed and the set of documents, not on the order of the file:
documents are ordered by the SHA-256 of seed and name. Shares become counts by largest remainder, in exact decimal arithmetic.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from paretune.data.cleaning import clean_row, masked
from paretune.data.leakage import Pair, block_message, content_digest, find_item_pairs, find_pairs
from paretune.data.records import PromptCompletion, Rendered, chat_texts, parse_form, read_record, refuse_surrogates
from paretune.data.safety import load_filter
from paretune.data.sources import iterate_rows
from paretune.data.templates import is_blank, named_value
from paretune.errors import DataError
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import DataConfig, ItemsConfig, LeakageConfig, SafetyConfig
from paretune.study.data import SPLITS, Dataset, Source, Split, SplitSources
from paretune.study.registry import load_function

UNUSED = "unused"
CONTENT_SHARE = 0.1
"""A field with fewer distinct long values than this share of the records is a system prompt or label, not content."""
_WRITE_ROWS = 10_000
_EMIT_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One record of a source as text."""

    document: str
    number: int
    """Of the record in its source, from 0; those that are left out count."""
    rendered: Rendered
    stratum: str = ""
    contents: tuple[tuple[str, int], ...] = ()
    """Field and `content_digest` of the longer fields."""

    @property
    def text(self) -> str:
        """Empty where there is nothing to learn."""
        return self.rendered.text


Parts = dict[str, list[SourceRecord]]
"""Split to its records in the order of the source."""


def prepare_data(context: StageContext) -> dict[str, Any]:
    """Stage `data`: writes `documents.parquet`; with `items` in its config (`leakage: remove`) `removed.jsonl`, the pairs, too.

    Memory: the rendered texts and some 350 bytes a record (10 million records of 90 characters: 5 GB). Raises SpecError for the
    template, DataError for what is wrong with the data, and NeedsError for a missing file or hub.
    """
    config = context.parse(DataConfig)
    dataset = Dataset.model_validate_json(json.dumps(config.dataset))
    counts: Counter[str] = Counter()
    sources = {"": dataset.source} if isinstance(dataset.source, Source) else dict(dataset.source)
    read = {split: list(_read(dataset, source, split, counts, context)) for split, source in sources.items()}
    wanted = {split: _wanted(records, split, dataset, counts, config.safety, context) for split, records in read.items()}
    parts, unused = _split(wanted, dataset)
    if dataset.clean.mask:
        parts = _with_masked_names(parts, dataset)
    # The fields whose longer values are mostly the record's own; a system prompt that all records share is none.
    values: dict[str, list[int]] = {}
    for name, digest in (content for records in parts.values() for record in records for content in record.contents):
        values.setdefault(name, []).append(digest)
    fields = {name for name, digests in values.items() if len(set(digests)) >= CONTENT_SHARE * len(digests)}
    removed = _remove_leaks(parts, fields, context, config.items) if config.items is not None else set()
    if dataset.completes:
        # Records of one document stand together, and those of one context in it, in the order in which each first occurs.
        for split, records in parts.items():
            documents: dict[str, dict[str, list[SourceRecord]]] = {}
            for record in records:
                documents.setdefault(record.document, {}).setdefault(record.rendered.context, []).append(record)
            parts[split] = [record for contexts in documents.values() for group in contexts.values() for record in group]
    _write(context.draft / "documents.parquet", parts, fields, completes=dataset.completes)
    every = [record for records in read.values() for record in records]
    metrics = {"records": len(every), "records_empty": sum(not record.text for record in every)}
    empty = Counter(task for record in every for task in record.rendered.empty)
    metrics |= {f"completions_empty_{task}": count for task, count in sorted(empty.items())}
    metrics |= {"documents_unused": unused, "documents_removed": len(removed), **dict(sorted(counts.items()))}
    for split in SPLITS:
        metrics[f"documents_{split}"] = len({record.document for record in parts[split]})
        metrics[f"examples_{split}"] = sum(max(1, len(record.rendered.branches)) for record in parts[split])
        metrics[f"bytes_{split}"] = sum(len(record.text.encode("utf-8")) for record in parts[split])
    context.emit(done=1, total=1, records=metrics["records"])
    return metrics


def check_leakage(context: StageContext) -> dict[str, Any]:
    """Stage `leakage`: writes `pairs.jsonl`; DataError with the first pairs if there are any and the mode is `block`.

    Memory: the texts and some 800 bytes a document, and for the held-out part about 75 bytes a word.
    """
    texts, contents = read_documents(context.inputs["data"].path / "documents.parquet")
    config = context.parse(LeakageConfig)
    items = _items(context, config.items)
    context.emit(done=0, total=2)
    between = find_pairs(texts, contents)
    context.emit(done=1, total=2)
    with_items = find_item_pairs(texts["train"], items)
    pairs = between + with_items
    context.emit(done=2, total=2)
    _write_pairs(context.draft / "pairs.jsonl", pairs)
    if pairs and config.mode == "block":
        raise DataError(block_message(pairs))
    touched = {(pair.split, pair.document) for pair in pairs} | {(pair.other, pair.other_document) for pair in between}
    asked = {(pair.other, pair.other_document) for pair in with_items}
    return {
        "pairs": len(pairs),
        **{f"documents_touched_{split}": sum(side == split for side, _ in touched) for split in SPLITS},
        **{f"items_touched_{name}": sum(evaluation == name for evaluation, _ in asked) for name in items},
    }


def read_documents(file: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, list[int]]]]:
    """Text (examples joined by line ends) and content digests of each document of each split."""
    rows = ((of_record[0], record_text(of_record)) for of_record in iterate_records(file))
    return _by_document((row["split"], row["document"], text, row["contents"] or ()) for row, text in rows)


def iterate_records(file: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of each record of `documents.parquet`, some of the file at a time."""
    import pyarrow.parquet

    batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_WRITE_ROWS)
    rows = (row for batch in batches for row in batch.to_pylist())
    for _, of_record in itertools.groupby(rows, lambda row: (row["split"], row["document"], row["example"])):
        yield list(of_record)


def record_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a record from its rows: its context once."""
    if "task" not in rows[0]:
        return str(rows[0]["text"])
    branches = (PromptCompletion(row["task"], row["prompt"], row["completion"], messages=row.get("messages")) for row in rows)
    return Rendered(rows[0]["context"], tuple(branches)).text


def split_documents(documents: Collection[str], split: Split, strata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Document to `train`, `validation`, `test` or `unused`, for distinct `documents`.

    With `strata` (document to stratum) each stratum keeps the shares as nearly as whole documents allow: what rounding owes a
    split is carried to the next stratum, largest first, so that many small strata still add up to the shares.
    Raises DataError if a split would be empty.
    """
    groups: dict[str, list[str]] = {}
    for document in documents:
        groups.setdefault(strata[document] if strata else "", []).append(document)
    shares = [Fraction(repr(share)) for share in (split.train, split.validation, split.test)]
    shares.append(1 - sum(shares) if split.unused else Fraction(0))
    shares = [share / sum(shares) for share in shares]
    names = (*SPLITS, UNUSED)
    owed = [Fraction(0)] * len(names)
    side: dict[str, str] = {}
    for stratum in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        digests = {name: hashlib.sha256(f"{split.seed}\0{name}".encode("utf-8", "surrogatepass")) for name in groups[stratum]}
        members = sorted(digests, key=lambda name: digests[name].digest())
        quotas = [owes + len(members) * share for owes, share in zip(owed, shares, strict=True)]
        counts = whole_counts(quotas, len(members))
        owed = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        sides = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
        side.update(zip(members, sides, strict=True))
    totals = {name: sum(part == name for part in side.values()) for name in SPLITS}
    empty = [name for name in SPLITS if not totals[name]]
    if empty:
        numbers = ", ".join(f"{name} {getattr(split, name):g} is {totals[name]}" for name in SPLITS)
        needed = math.ceil(1 / min(split.train, split.validation, split.test))
        raise DataError(
            f"{len(side)} document(s) cannot fill the splits: {numbers}, and `{empty[0]}` would be empty. "
            f"These shares need about {needed} documents; name a finer `document`, change `split`, "
            "or cut a text into more (`chapters`, `blocks`)"
        )
    return side


def whole_counts(quotas: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each the floor of its quota or one more: the largest remainders get the rest.

    `quotas` sum to `total`. Ties go to the earlier one; a quota below 0 counts as 0. (Hamilton's method of apportionment.)
    """
    counts = [max(0, math.floor(quota)) for quota in quotas]
    remainder = [quota - count for quota, count in zip(quotas, counts, strict=True)]
    while rest := total - sum(counts):
        # Below 0 only where several negative quotas were raised to 0.
        change = 1 if rest > 0 else -1
        candidates = (part for part in range(len(counts)) if change > 0 or counts[part])
        part = max((change * remainder[part], -change * part, part) for part in candidates)[2]
        counts[part] += change
        remainder[part] -= change
    return counts


def _read(dataset: Dataset, source: Source, split: str, counts: Counter[str], context: StageContext) -> Iterator[SourceRecord]:
    """The records of `source`; one of nothing but white space has no text. `counts` gains what was cleaned."""
    files, form = context.resources[_role(split)].paths, parse_form(dataset, "the dataset")
    named = [name for name in (dataset.document, dataset.stratify) if name is not None]
    # The characters rendered so far, out of the bytes of the file: near enough for the time left.
    size, done = sum(Path(file).stat().st_size for file in files if source.path and Path(file).is_file()), 0
    for number, row in enumerate(iterate_rows(source, files)):
        cleaned = clean_row(row, dataset.clean, counts)
        # Without its document or stratum a record is left out, where `clean` says so.
        nameless = any(name in row.values and is_blank(row.values[name]) for name in named)
        rendered = Rendered("") if nameless and "empty" in dataset.clean.drop else read_record(form, cleaned)
        text = rendered.text
        done += len(text)
        if size and number % _EMIT_ROWS == 0:
            context.emit(done=min(done, size), total=size, records=number)
        if not text.strip() or (dataset.completes and not rendered.branches):
            yield SourceRecord("", number, Rendered("", (), rendered.empty))
            continue
        refuse_surrogates(text, row.where)
        if dataset.document is not None:
            document = named_value(row.values, dataset.document, "document", row.where)
            refuse_surrogates(document, row.where)
        else:
            document = row.values["document"] if source.resolved_format == "text" else str(number)
            # Sources of their own for the splits count from 0 each; the names must differ all the same.
            document = f"{split} {document}" if split else document
        stratum = "" if dataset.stratify is None else named_value(row.values, dataset.stratify, "stratify", row.where)
        said = [("messages", text) for text in chat_texts(cleaned.values, form, row.where)]
        fields = [name for name in form.fields if isinstance(cleaned.values.get(name), str)]
        if len(fields) >= 2:
            said += [(name, cleaned.values[name]) for name in fields if name != dataset.document]
        digests = ((name, content_digest(text)) for name, text in said)
        contents = tuple((name, digest) for name, digest in digests if digest is not None)
        yield SourceRecord(document, number, rendered, stratum, contents)


def _role(split: str) -> str:
    return f"source.{split}" if split else "source"


def _wanted(
    records: Sequence[SourceRecord],
    split: str,
    dataset: Dataset,
    counts: Counter[str],
    safety: SafetyConfig | None,
    context: StageContext,
) -> list[SourceRecord]:
    """The records with text, without repetitions and unsafe ones where the study says so; DataError where none is left."""
    wanted = [record for record in records if record.text]
    if not wanted and dataset.completes:
        raise DataError(
            f"`{_role(split)}`: none of {len(records)} records has a completion that is not empty; look at its fields"
        )
    if not wanted:
        raise DataError(
            f"`{_role(split)}`: all {len(records)} records render to nothing but white space"
            f"{', or lack a field that is needed' if 'empty' in dataset.clean.drop else ''}; look at `text` and its fields"
        )
    if "duplicate" in dataset.clean.drop:
        first: dict[str, SourceRecord] = {}
        for record in wanted:
            first.setdefault(record.text, record)
        counts["records_duplicate"] += len(wanted) - len(first)
        wanted = list(first.values())
    if safety is not None:
        unsafe = load_filter(safety, context.resources).flags([record.text for record in wanted])
        counts["records_unsafe"] += sum(unsafe)
        wanted = [record for record, flag in zip(wanted, unsafe, strict=True) if not flag]
        if not wanted:
            raise DataError(f"`safety: {{data: drop}}` leaves no record of `{_role(split)}`; look at its words and threshold")
    return wanted


def _split(wanted: Parts, dataset: Dataset) -> tuple[Parts, int]:
    """The records of each split, and how many documents are unused; of sources that somebody else split, as they are."""
    if isinstance(dataset.source, SplitSources):
        first: dict[str, str] = {}
        for split, records in wanted.items():
            for record in records:
                if (other := first.setdefault(record.document, split)) != split:
                    raise DataError(
                        f"document `{record.document}` stands in `source.{other}` and in `source.{split}`; a document is never "
                        "on two sides, so take it out of one, or name a field that tells them apart instead of "
                        f"`document: {dataset.document}`"
                    )
        return wanted, 0
    strata: dict[str, str] = {}
    for record in wanted[""]:
        stratum = strata.setdefault(record.document, record.stratum)
        if stratum != record.stratum:
            raise DataError(
                f"document `{record.document}` has several values of `stratify: {dataset.stratify}` (`{stratum}` and "
                f"`{record.stratum}`); a document stands in one split whole, so stratify by a field that is the same in all "
                "its records, or leave `stratify` out"
            )
    side = split_documents(strata, dataset.split, strata if dataset.stratify else None)
    parts = {split: [record for record in wanted[""] if side[record.document] == split] for split in SPLITS}
    return parts, sum(part == UNUSED for part in side.values())


def _with_masked_names(parts: Parts, dataset: Dataset) -> Parts:
    """Documents under names without personal data; those that were changed are told apart by a number, in their order."""
    names: dict[str, str] = {}
    for document in dict.fromkeys(record.document for records in parts.values() for record in records):
        name = masked(document, dataset.clean, Counter())
        names[document] = document if name == document else f"{name} {len(names) + 1}"
    return {
        split: [dataclasses.replace(record, document=names[record.document]) for record in records]
        for split, records in parts.items()
    }


def _remove_leaks(
    parts: Parts, fields: Collection[str], context: StageContext, configs: Mapping[str, ItemsConfig]
) -> set[tuple[str, str]]:
    """Take the training side of every pair out of `parts`; returns its (split, document).

    Repeated until nothing is found: an n-gram that was boilerplate may no longer be, with fewer documents.
    """
    items, removed, all_pairs = _items(context, configs), set[tuple[str, str]](), list[Pair]()
    while True:
        texts, contents = _by_document(
            (split, record.document, record.text, _digests(record, fields))
            for split, records in parts.items()
            for record in records
        )
        pairs = find_pairs(texts, contents) + find_item_pairs(texts["train"], items)
        if not pairs:
            break
        all_pairs += pairs
        removed |= {(pair.split, pair.document) for pair in pairs}
        for split in SPLITS:
            parts[split] = [record for record in parts[split] if (split, record.document) not in removed]
        empty = [split for split in SPLITS if not parts[split]]
        if empty:
            raise DataError(f"`leakage: remove` leaves no document in `{empty[0]}`; {block_message(all_pairs)}")
    _write_pairs(context.draft / "removed.jsonl", all_pairs)
    return removed


def _by_document(
    records: Iterable[tuple[str, str, str, Sequence[int]]],
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, list[int]]]]:
    """Texts, joined by line ends, and content digests by split and document, of (split, document, text, digests)."""
    texts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    contents: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for split, document, text, digests in records:
        texts[split].setdefault(document, []).append(text)
        if digests:
            contents[split].setdefault(document, []).extend(digests)
    joined = {split: {name: "\n".join(parts) for name, parts in documents.items()} for split, documents in texts.items()}
    return joined, contents


def _digests(record: SourceRecord, fields: Collection[str]) -> list[int]:
    return [digest for name, digest in record.contents if name in fields]


def _items(context: StageContext, configs: Mapping[str, ItemsConfig]) -> dict[str, list[str]]:
    """The texts of each evaluation's items, read by the reader that its row names."""
    return {
        name: load_function(config.reader)(str(context.resources[f"items.{name}"]), **config.fields)
        for name, config in configs.items()
    }


def _write(file: Path, parts: Parts, fields: Collection[str], *, completes: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    columns = {"split": text, "document": text, "example": text, "text": text, "contents": pyarrow.list_(number)}
    if completes:
        columns |= dict.fromkeys(("task", "part", "context", "prompt", "completion", "messages"), text)
    schema = pyarrow.schema(list(columns.items()))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for split in SPLITS:
            for begin in range(0, len(parts[split]), _WRITE_ROWS):
                rows: list[dict[str, Any]] = []
                for record in parts[split][begin : begin + _WRITE_ROWS]:
                    whole = {"split": split, "document": record.document, "example": str(record.number)}
                    whole |= {"text": record.text, "contents": _digests(record, fields)}
                    context = record.rendered.context
                    for branch in record.rendered.branches:
                        row = whole | {"context": context, "text": context + branch.prompt + branch.completion}
                        row |= {"task": branch.task, "part": branch.part, "prompt": branch.prompt}
                        rows.append(row | {"completion": branch.completion, "messages": branch.messages})
                    if not record.rendered.branches:
                        rows.append(whole)
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _write_pairs(file: Path, pairs: Iterable[Pair]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(dataclasses.asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
