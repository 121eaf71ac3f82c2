"""Stage bodies: read a dataset and split it, and look for the same text on two sides.

`documents.parquet` holds `split, document, example, text` in the order of the source, and `contents`: digests of the longer
fields of a record, by which the leakage check finds one content under two titles. Where there are tasks a row is one of a
record, with `task, context, prompt, completion`; those of a document, and of one context in it, stand side by side.

A document is never on two sides. Where it stands depends on the seed and the set of documents, not on the order of the file:
documents are ordered by the SHA-256 of seed and name. Shares become counts by largest remainder, in exact decimal arithmetic.
"""

import hashlib
import itertools
import json
import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.cleaning import clean_row, masked
from paretune.data.documents import DocumentTexts, document_rows
from paretune.data.groups import groupings
from paretune.data.leakage import Pair, Side, block_message, content_digest, find_item_pairs, find_pairs, text_digest
from paretune.data.places import write_pairs
from paretune.data.records import PromptCompletion, Rendered, chat_texts, parse_form, read_record, refuse_surrogates
from paretune.data.safety import Filter, load_filter
from paretune.data.sources import iterate_rows
from paretune.data.spool import Spool
from paretune.data.templates import is_blank, named_value
from paretune.errors import DataError
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import DataConfig, ItemsConfig, LeakageConfig, SafetyConfig
from paretune.study.data import SPLITS, Dataset, Source, Split
from paretune.study.registry import load_function

UNUSED = "unused"
PAIRS, REMOVED = "pairs.csv", "removed.csv"
"""The pairs that the leakage check has found, and those whose training side `leakage: remove` has dropped."""
CONTENT_SHARE = 0.1
"""A field with fewer distinct long values than this share of the records is a system prompt or label, not content."""
_WRITE_ROWS, _WRITE_CHARACTERS = 10_000, 2**24
"""Of a row group: whatever is reached first."""
_EMIT_ROWS = 20_000
_SAFETY_RECORDS = 20_000
"""That a classifier is given at a time, which it sorts by length."""
_NEITHER = len(SPLITS)
"""The side of a document in no split: one that is unused, or was removed."""


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


class _Kept:
    """The records that are kept, in the order of the sources: rendered on disk, and a few numbers of each in memory."""

    def __init__(self, directory: Path) -> None:
        self.rendered = Spool[Rendered](directory)
        self.names: dict[str, int] = {}
        """The documents by name, numbered as they first occur."""
        self.documents, self.numbers, self.contexts = array("q"), array("q"), array("q")
        """Of each record: its document, its number in the source, and its context, numbered by its digest."""
        self.fields: dict[str, int] = {}
        self.contents = tuple(array("q") for _ in range(3))
        """Record, field and digest of each content."""
        self._contexts: dict[bytes, int] = {}

    def add(self, record: SourceRecord) -> None:
        self.documents.append(self.names.setdefault(record.document, len(self.names)))
        self.numbers.append(record.number)
        if record.rendered.branches:
            self.contexts.append(self._contexts.setdefault(text_digest(record.rendered.context), len(self._contexts)))
        for name, digest in record.contents:
            content = (len(self.rendered), self.fields.setdefault(name, len(self.fields)), digest)
            for column, value in zip(self.contents, content, strict=True):
                column.append(value)
        self.rendered.append(record.rendered)

    def in_order(self, sides: np.ndarray, split: str, *, completes: bool) -> np.ndarray:
        """Those of a split, whose documents are in it by `sides`, in the order in which they are written."""
        documents = np.asarray(self.documents)
        chosen = np.flatnonzero(sides[documents] == SPLITS.index(split))
        if not completes:
            return chosen
        # Records of one document stand together, and those of one context in it, in the order in which each first occurs.
        documents, contexts = documents[chosen], np.asarray(self.contexts)[chosen]
        _, first, which = np.unique(documents * len(self._contexts) + contexts, return_index=True, return_inverse=True)
        return chosen[np.lexsort((first[which], documents))]


def prepare_data(context: StageContext) -> dict[str, Any]:
    """Stage `data`: writes `documents.parquet`; with `items` in its config (`leakage: remove`) `removed.csv`, the pairs, too.

    Memory: some 250 bytes a record; the rendered texts wait on disk. Raises SpecError for the template, DataError for what is
    wrong with the data, and NeedsError for a missing file or hub.
    """
    config = context.parse(DataConfig)
    dataset = Dataset.model_validate_json(json.dumps(config.dataset))
    counts, seen = Counter[str](), Counter[str]()
    sources = {"": dataset.source} if isinstance(dataset.source, Source) else dict(dataset.source)
    kept, sides, strata = _Kept(context.draft), array("b"), dict[str, str]()
    for split, source in sources.items():
        records = _noted(_read(dataset, source, split, counts, context), seen)
        for record in _wanted(records, split, dataset, counts, config.safety, context):
            kept.add(record)
            if len(sides) < len(kept.names):
                sides.append(SPLITS.index(split) if split else _NEITHER)
            if split and (other := SPLITS[sides[kept.documents[-1]]]) != split:
                raise DataError(
                    f"document `{record.document}` stands in `source.{other}` and in `source.{split}`; a document is never "
                    "on two sides, so take it out of one, or name a field that tells them apart instead of "
                    f"`document: {dataset.document}`"
                )
            stratum = strata.setdefault(record.document, record.stratum) if dataset.stratify and not split else record.stratum
            if stratum != record.stratum:
                raise DataError(
                    f"document `{record.document}` has several values of `stratify: {dataset.stratify}` (`{stratum}` and "
                    f"`{record.stratum}`); a document stands in one split whole, so stratify by a field that is the same in "
                    "all its records, or leave `stratify` out"
                )
    sides_D = np.array(sides)
    if isinstance(dataset.source, Source):
        sides_D = draw_sides(kept.names, dataset.split, strata if dataset.stratify else None)
    unused = int((sides_D == _NEITHER).sum())
    names = np.array(list(kept.names), object)
    if dataset.clean.mask:
        _mask_names(names, sides_D, dataset)
    records_C, fields_C, digests_C = map(np.asarray, kept.contents)
    # The fields whose longer values are mostly the record's own; a system prompt that all records share is none.
    used = sides_D[np.asarray(kept.documents)[records_C]] != _NEITHER
    of_fields = (digests_C[used & (fields_C == field)] for field in range(len(kept.fields)))
    own = [field for field, values in enumerate(of_fields) if 0 < CONTENT_SHARE * len(values) <= len(np.unique(values))]
    of_own = np.isin(fields_C, own)
    contents = (records_C[of_own], digests_C[of_own])
    context.emit(done=0, total=1, part="comparing documents")
    removed = (
        _remove_leaks(kept, dataset, names, sides_D, contents, context, config.items) if config.items is not None else set()
    )
    metrics: dict[str, Any] = {"records": seen["records"], "records_empty": seen["records_empty"]}
    metrics |= {name: count for name, count in sorted(seen.items()) if name not in metrics}
    metrics |= {"documents_unused": unused, "documents_removed": len(removed), **dict(sorted(counts.items()))}
    documents = np.asarray(kept.documents)
    per_document = np.bincount(documents[sides_D[documents] != _NEITHER])
    metrics |= {"records_used": int(per_document.sum()), "records_largest_document": int(per_document.max())}
    first = next(iter(dataset.sources.items()))
    if first[1].resolved_format != "text" and per_document.max() == 1:
        # Nothing is grouped: whether a column would is looked for in the first records.
        rows = (row.values for row in iterate_rows(first[1], context.resources[first[0]].paths))
        metrics["groups"] = [[g.column, g.num_values, g.num_records] for g in groupings(rows) if g.column != dataset.document]
    context.emit(done=0, total=1, part="writing")
    metrics |= _write(context.draft / "documents.parquet", kept, names, sides_D, contents, completes=dataset.completes)
    context.emit(done=1, total=1, records=metrics["records"])
    return metrics


def check_leakage(context: StageContext) -> dict[str, Any]:
    """Stage `leakage`: writes `pairs.csv`, with the documents of one held-out split that are alike.

    DataError with the first pairs between splits and with items if there are any and the mode is `block`; the file then stands
    beside the draft.

    Memory: some 500 bytes a document, and for the held-out part about 20 bytes a word; the texts wait on disk.
    """
    texts, contents = read_documents(context.inputs["data"].path / "documents.parquet", context.draft)
    config = context.parse(LeakageConfig)
    items = _items(context, config.items)
    context.emit(done=0, total=1, part="comparing documents")
    found = find_pairs(texts, contents, within=True)
    between = [pair for pair in found if pair.split != pair.other]
    within = [pair for pair in found if pair.split == pair.other]
    context.emit(done=0, total=1, part="comparing with questions")
    with_items = find_item_pairs(texts["train"], items)
    pairs = between + with_items
    blocks = bool(pairs) and config.mode == "block"
    file = (context.resume if blocks else context.draft) / PAIRS  # what a failure leaves in its draft is gone
    named = {side for pair in pairs + within for side in ((pair.split, pair.document), (pair.other, pair.other_document))}
    records: dict[Side, list[tuple[int, str]]] = {}
    for of_record in iterate_records(context.inputs["data"].path / "documents.parquet") if named else ():
        if (side := (of_record[0]["split"], of_record[0]["document"])) in named:
            records.setdefault(side, []).append((int(of_record[0]["example"]), record_text(of_record)))
    dataset = Dataset.model_validate_json(json.dumps(context.inputs["data"].record.config["dataset"]))
    write_pairs(file, pairs + within, records, dataset, context.resources)
    if blocks:
        raise DataError(block_message(pairs, file))
    alike = {(pair.split, document) for pair in within for document in (pair.document, pair.other_document)}
    touched = {(pair.split, pair.document) for pair in pairs} | {(pair.other, pair.other_document) for pair in between}
    asked = {(pair.other, pair.other_document) for pair in with_items}
    return {
        "pairs": len(pairs),
        **{f"documents_touched_{split}": sum(side == split for side, _ in touched) for split in SPLITS},
        **{f"documents_alike_{split}": sum(side == split for side, _ in alike) for split in SPLITS[1:]},
        **{f"items_touched_{name}": sum(evaluation == name for evaluation, _ in asked) for name in items},
    }


def read_documents(
    file: Path, directory: Path | None = None
) -> tuple[dict[str, DocumentTexts], dict[str, dict[str, list[int]]]]:
    """Text (examples joined by line ends) of each document of each split, and its content digests that several records share.

    The texts wait in `directory`, that of the system for temporary files unless given.
    """
    spool: Spool[str] = Spool(directory)
    texts = {split: DocumentTexts(spool.__getitem__) for split in SPLITS}
    sides, documents, digests = array("b"), array("q"), array("q")
    for rows in iterate_records(file):
        document = texts[rows[0]["split"]].add(rows[0]["document"], len(spool))
        for digest in rows[0]["contents"] or ():
            sides.append(SPLITS.index(rows[0]["split"]))
            documents.append(document)
            digests.append(digest)
        spool.append(record_text(rows))
    names = [list(texts[split]) for split in SPLITS]
    of_several = _of_several(np.asarray(digests))
    contents: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for n in np.flatnonzero(of_several).tolist():
        contents[SPLITS[sides[n]]].setdefault(names[sides[n]][documents[n]], []).append(digests[n])
    return texts, contents


def _of_several(digests: np.ndarray) -> np.ndarray:
    """Which of the digests stand there more than once: of the others nothing is a pair."""
    _, which, times = np.unique(digests, return_inverse=True, return_counts=True)
    return np.asarray(times[which] > 1)


def iterate_records(file: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of each record of `documents.parquet`, some of the file at a time."""
    for _, of_record in itertools.groupby(document_rows(file), lambda row: (row["split"], row["document"], row["example"])):
        yield list(of_record)


def record_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a record from its rows: its context once."""
    if "task" not in rows[0]:
        return str(rows[0]["text"])
    branches = []
    for row in rows:
        others = tuple(row.get("references") or ())
        branch = PromptCompletion(
            row["task"], row["prompt"], row["completion"], references=others, messages=row.get("messages")
        )
        branches.append(branch)
    return Rendered(rows[0]["context"], tuple(branches)).text


def split_documents(documents: Collection[str], split: Split, strata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Document to `train`, `validation`, `test` or `unused`, for distinct `documents`; as `draw_sides` draws it."""
    sides = draw_sides(documents, split, strata)
    return {document: (*SPLITS, UNUSED)[side] for document, side in zip(documents, sides.tolist(), strict=True)}


def draw_sides(documents: Collection[str], split: Split, strata: Mapping[str, str] | None = None) -> np.ndarray:
    """The side of each of distinct `documents`, int8: the number of its split, or the one after them where it is unused.

    With `strata` (document to stratum) each stratum keeps the shares as nearly as whole documents allow: what rounding owes a
    split is carried to the next stratum, largest first, so that many small strata still add up to the shares.
    Raises DataError if a split would be empty.
    """
    digests, groups = bytearray(), dict[str, "array[int]"]()
    for number, document in enumerate(documents):
        digests += hashlib.sha256(f"{split.seed}\0{document}".encode("utf-8", "surrogatepass")).digest()
        groups.setdefault(strata[document] if strata else "", array("q")).append(number)
    # Of equal length, so that it does not matter that zeros at the end are left aside.
    digests_D, sides_D = np.frombuffer(digests, "S32"), np.full(len(documents), _NEITHER, np.int8)
    shares = [Fraction(repr(share)) for share in (split.train, split.validation, split.test)]
    shares.append(1 - sum(shares) if split.unused else Fraction(0))
    shares = [share / sum(shares) for share in shares]
    owed = [Fraction(0)] * len(shares)
    for stratum in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        members = np.asarray(groups[stratum])
        members = members[np.argsort(digests_D[members], kind="stable")]
        quotas = [owes + len(members) * share for owes, share in zip(owed, shares, strict=True)]
        counts = whole_counts(quotas, len(members))
        owed = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        sides_D[members] = np.repeat(np.arange(len(counts)), counts)
    totals = {name: int((sides_D == number).sum()) for number, name in enumerate(SPLITS)}
    empty = [name for name in SPLITS if not totals[name]]
    if empty:
        numbers = ", ".join(f"{name} {getattr(split, name):g} is {totals[name]}" for name in SPLITS)
        needed = math.ceil(1 / min(split.train, split.validation, split.test))
        raise DataError(
            f"{len(sides_D)} document(s) cannot fill the splits: {numbers}, and `{empty[0]}` would be empty. "
            f"These shares need about {needed} documents; name a finer `document`, change `split`, "
            "or cut a text into more (`chapters`, `blocks`)"
        )
    return sides_D


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


def _noted(records: Iterable[SourceRecord], seen: Counter[str]) -> Iterator[SourceRecord]:
    """The records; `seen` gains how many there are, and what is empty of them."""
    for record in records:
        seen["records"] += 1
        seen["records_empty"] += not record.text
        seen.update(f"completions_empty_{task}" for task in record.rendered.empty)
        yield record


def _wanted(
    records: Iterator[SourceRecord],
    split: str,
    dataset: Dataset,
    counts: Counter[str],
    safety: SafetyConfig | None,
    context: StageContext,
) -> Iterator[SourceRecord]:
    """The records with text, without repetitions and unsafe ones where the study says so; DataError where none is left."""
    num_read = num_filled = num_safe = 0

    def filled() -> Iterator[SourceRecord]:
        nonlocal num_read, num_filled
        for record in records:
            num_read += 1
            if record.text:
                num_filled += 1
                yield record

    wanted = filled()
    if "duplicate" in dataset.clean.drop:
        wanted = _distinct(wanted, counts)
    if safety is not None:
        wanted = _safe(wanted, load_filter(safety, context.resources), counts)
    for record in wanted:
        num_safe += 1
        yield record
    if not num_filled and dataset.completes:
        raise DataError(f"`{_role(split)}`: none of {num_read} records has a completion that is not empty; look at its fields")
    if not num_filled:
        raise DataError(
            f"`{_role(split)}`: all {num_read} records render to nothing but white space"
            f"{', or lack a field that is needed' if 'empty' in dataset.clean.drop else ''}; look at `text` and its fields"
        )
    if not num_safe:
        raise DataError(f"`safety: {{data: drop}}` leaves no record of `{_role(split)}`; look at its words and threshold")


def _distinct(records: Iterable[SourceRecord], counts: Counter[str]) -> Iterator[SourceRecord]:
    """The first record of each text, by its digest."""
    digests = set[bytes]()
    for record in records:
        new = (digest := text_digest(record.text)) not in digests
        counts["records_duplicate"] += not new
        digests.add(digest)
        if new:
            yield record


def _safe(records: Iterator[SourceRecord], safety: Filter, counts: Counter[str]) -> Iterator[SourceRecord]:
    counts["records_unsafe"] += 0
    while batch := list(itertools.islice(records, _SAFETY_RECORDS)):
        for record, unsafe in zip(batch, safety.flags([record.text for record in batch]), strict=True):
            counts["records_unsafe"] += unsafe
            if not unsafe:
                yield record


def _mask_names(names: np.ndarray, sides: np.ndarray, dataset: Dataset) -> None:
    """Leave documents names without personal data; those that are changed are told apart by a number, in their order."""
    in_splits = np.concatenate([np.flatnonzero(sides == side) for side in range(len(SPLITS))])
    for number, document in enumerate(in_splits.tolist(), 1):
        name = masked(names[document], dataset.clean, Counter())
        if name != names[document]:
            names[document] = f"{name} {number}"


def _remove_leaks(
    kept: _Kept,
    dataset: Dataset,
    names: np.ndarray,
    sides: np.ndarray,
    contents: tuple[np.ndarray, np.ndarray],
    context: StageContext,
    configs: Mapping[str, ItemsConfig],
) -> set[Side]:
    """Take the training side of every pair out of the splits, in `sides`; returns its (split, document).

    Repeated until nothing is found: an n-gram that was boilerplate may no longer be, with fewer documents.
    """
    items, removed, all_pairs = _items(context, configs), set[Side](), list[Pair]()
    several = _of_several(contents[1])
    before = sides.copy()

    def write(folder: Path) -> Path:
        named = {side for pair in all_pairs for side in ((pair.split, pair.document), (pair.other, pair.other_document))}
        records: dict[Side, list[tuple[int, str]]] = {}
        for record, document in enumerate(kept.documents):
            if before[document] != _NEITHER and (side := (SPLITS[before[document]], names[document])) in named:
                records.setdefault(side, []).append((kept.numbers[record], kept.rendered[record].text))
        write_pairs(folder / REMOVED, all_pairs, records, dataset, context.resources)
        return folder / REMOVED

    while True:
        texts = {split: DocumentTexts(lambda record: kept.rendered[record].text) for split in SPLITS}
        for record, document in enumerate(kept.documents):
            if sides[document] != _NEITHER:
                texts[SPLITS[sides[document]]].add(names[document], record)
        digests: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
        for record, digest in zip(*(column[several].tolist() for column in contents), strict=True):
            if sides[document := kept.documents[record]] != _NEITHER:
                digests[SPLITS[sides[document]]].setdefault(names[document], []).append(digest)
        pairs = find_pairs(texts, digests) + find_item_pairs(texts["train"], items)
        if not pairs:
            break
        all_pairs += pairs
        leaks = {(pair.split, pair.document) for pair in pairs}
        removed |= leaks
        for document, side in enumerate(sides):
            if side != _NEITHER and (SPLITS[side], names[document]) in leaks:
                sides[document] = _NEITHER
        empty = [split for side, split in enumerate(SPLITS) if not (sides == side).any()]
        if empty:
            told = block_message(all_pairs, write(context.resume))
            raise DataError(f"`leakage: remove` leaves no document in `{empty[0]}`; {told}")
    write(context.draft)
    return removed


def _items(context: StageContext, configs: Mapping[str, ItemsConfig]) -> dict[str, list[str]]:
    """The texts of each evaluation's items, read by the reader that its row names."""
    return {
        name: load_function(config.reader)(str(context.resources[f"items.{name}"]), **config.fields)
        for name, config in configs.items()
    }


def _write(
    file: Path, kept: _Kept, names: np.ndarray, sides: np.ndarray, contents: tuple[np.ndarray, np.ndarray], *, completes: bool
) -> dict[str, int]:
    """Write `documents.parquet`; returns how many documents, examples and bytes of text each split has."""
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    columns = {"split": text, "document": text, "example": text, "text": text, "contents": pyarrow.list_(number)}
    if completes:
        columns |= dict.fromkeys(("task", "part", "context", "prompt", "completion", "messages"), text)
        columns["references"] = pyarrow.list_(text)
    schema = pyarrow.schema(list(columns.items()))
    bounds, digests = np.searchsorted(contents[0], np.arange(len(kept.numbers) + 1)), contents[1]
    metrics: dict[str, int] = {}
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for split in SPLITS:
            chosen = kept.in_order(sides, split, completes=completes)
            of_documents = names[np.unique(np.asarray(kept.documents)[chosen])]
            metrics[f"documents_{split}"], num_examples, num_bytes = len(set(of_documents)), 0, 0
            rows: list[dict[str, Any]] = []
            records = size = 0
            for record in chosen.tolist():
                rendered = kept.rendered[record]
                whole = {"split": split, "document": names[kept.documents[record]], "example": str(kept.numbers[record])}
                whole |= {"text": rendered.text, "contents": digests[bounds[record] : bounds[record + 1]].tolist()}
                for branch in rendered.branches:
                    row = whole | {"context": rendered.context, "text": rendered.context + branch.prompt + branch.completion}
                    row |= {"task": branch.task, "part": branch.part, "prompt": branch.prompt}
                    row |= {"completion": branch.completion, "references": branch.references or None}
                    rows.append(row | {"messages": branch.messages})
                if not rendered.branches:
                    rows.append(whole)
                num_examples += max(1, len(rendered.branches))
                num_bytes += len(rendered.text.encode("utf-8"))
                records += 1
                size += len(rendered.text) * max(1, len(rendered.branches))
                if records == _WRITE_ROWS or size >= _WRITE_CHARACTERS:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                    rows, records, size = [], 0, 0
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            metrics |= {f"examples_{split}": num_examples, f"bytes_{split}": num_bytes}
    return metrics
