"""Stage bodies: read a dataset and split it, and look for the same text on two sides.

`documents.parquet` holds `split, document, example, text` in the order of the source, and `contents`: digests of the longer
fields of a record, by which the leakage check finds one content under two titles.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.data.leakage import Contents, Pair, Texts, block_message, content_digest, find_item_pairs, find_pairs
from paretune.data.sources import Row, iterate_rows
from paretune.data.splits import UNUSED, split_documents
from paretune.data.templates import Template, named_value, parse_template, render
from paretune.errors import DataError
from paretune.pipeline.stage import StageContext
from paretune.spec.data import SPLITS, Dataset, Source, SplitSources
from paretune.spec.registry import load_function

CONTENT_SHARE = 0.1
"""A field with fewer distinct long values than this share of the records is a system prompt or label, not content."""
_WRITE_ROWS = 10_000
_EMIT_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Example:
    """One record as text."""

    document: str
    number: int
    """Of the record in its source, from 0; those that are left out count."""
    text: str
    stratum: str
    contents: tuple[tuple[str, int], ...]
    """Field and `content_digest` of the longer fields."""


Parts = dict[str, list[Example]]
"""Split to its examples in the order of the source."""


def prepare_data(context: StageContext) -> dict[str, Any]:
    """Stage `data`: writes `documents.parquet`; with `items` in its config (`leakage: remove`) `removed.jsonl`, the pairs, too.

    Memory: the rendered texts and some 350 bytes a record (10 million records of 90 characters: 5 GB). Raises SpecError for the
    template, DataError for what is wrong with the data, and NeedsError for a missing file or hub.
    """
    dataset = Dataset.model_validate_json(json.dumps(context.config["dataset"]))
    template = parse_template(dataset.template)
    if isinstance(dataset.source, SplitSources):
        read = {split: list(_read(dataset, getattr(dataset.source, split), template, split, context)) for split in SPLITS}
        parts, unused = {split: _filled(examples, f"source.{split}") for split, examples in read.items()}, 0
        _refuse_shared(parts, dataset)
    else:
        read = {"": list(_read(dataset, dataset.source, template, None, context))}
        parts, unused = _split(_filled(read[""], "source"), dataset)
    records = sum(map(len, read.values()))
    empty = sum(not example.text for examples in read.values() for example in examples)
    fields = _content_fields(parts)
    removed = _remove_leaks(parts, fields, context) if "items" in context.config else set()
    _write(context.draft / "documents.parquet", parts, fields)
    context.emit(done=1, total=1, records=records)
    totals = {"records": records, "records_empty": empty, "documents_unused": unused, "documents_removed": len(removed)}
    return totals | {name: number for split in SPLITS for name, number in _measured(split, parts[split]).items()}


def check_leakage(context: StageContext) -> dict[str, Any]:
    """Stage `leakage`: writes `pairs.jsonl`; DataError with the first pairs if there are any and the mode is `block`.

    Memory: the texts and some 800 bytes a document, and for the held-out part about 75 bytes a word.
    """
    texts, contents = read_documents(context.inputs["data"].path / "documents.parquet")
    items = _items(context)
    context.emit(done=0, total=2)
    between = find_pairs(texts, contents)
    context.emit(done=1, total=2)
    with_items = find_item_pairs(texts["train"], items)
    pairs = between + with_items
    context.emit(done=2, total=2)
    _write_pairs(context.draft / "pairs.jsonl", pairs)
    if pairs and context.config["mode"] == "block":
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
    import pyarrow.parquet

    texts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    contents: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_WRITE_ROWS):
        for row in batch.to_pylist():
            texts[row["split"]].setdefault(row["document"], []).append(row["text"])
            if row["contents"]:
                contents[row["split"]].setdefault(row["document"], []).extend(row["contents"])
    joined = {split: {name: "\n".join(parts) for name, parts in documents.items()} for split, documents in texts.items()}
    return joined, contents


def _read(dataset: Dataset, source: Source, template: Template, split: str | None, context: StageContext) -> Iterator[Example]:
    """The records of `source` (of `split`, if each has its own) as examples; one that renders to white space has no text."""
    place = context.resources["source" if split is None else f"source.{split}"]
    # The characters rendered so far, out of the bytes of the file: near enough for the time left.
    size, rendered = Path(place).stat().st_size if source.path and Path(place).exists() else 0, 0
    for number, row in enumerate(iterate_rows(source, place)):
        text = render(template, row.values, row.where)
        rendered += len(text)
        if size and number % _EMIT_ROWS == 0:
            context.emit(done=min(rendered, size), total=size, records=number)
        if not text.strip():
            yield Example("", number, "", "", ())
            continue
        _refuse_surrogates(text, row.where)
        yield Example(
            _document(dataset, source, row, number, split),
            number,
            text,
            "" if dataset.stratify is None else named_value(row.values, dataset.stratify, "stratify", row.where),
            _contents(dataset, template, row.values),
        )


def _document(dataset: Dataset, source: Source, row: Row, number: int, split: str | None) -> str:
    if dataset.document is not None:
        name = named_value(row.values, dataset.document, "document", row.where)
        _refuse_surrogates(name, row.where)
        return name
    name = row.values["document"] if source.resolved_format == "text" else str(number)
    # Sources of their own for the splits count from 0 each; the names must differ all the same.
    return name if split is None else f"{split} {name}"


def _refuse_surrogates(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            f"{where}: character {error.start + 1} of the text is half of a surrogate pair ({code}), no character; "
            "repair the record (an emoji cut in two by an earlier program?)"
        ) from None


def _contents(dataset: Dataset, template: Template, values: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    fields = [name for name in template.fields if isinstance(values.get(name), str)]
    if len(fields) < 2:
        return ()
    digests = {name: content_digest(values[name]) for name in fields if name != dataset.document}
    return tuple((name, digest) for name, digest in digests.items() if digest is not None)


def _content_fields(parts: Parts) -> frozenset[str]:
    """The fields whose longer values are mostly the record's own; a system prompt that all records share is none."""
    values: dict[str, list[int]] = {}
    for examples in parts.values():
        for name, digest in (content for example in examples for content in example.contents):
            values.setdefault(name, []).append(digest)
    return frozenset(name for name, digests in values.items() if len(set(digests)) >= CONTENT_SHARE * len(digests))


def _filled(examples: Sequence[Example], where: str) -> list[Example]:
    found = [example for example in examples if example.text]
    if not found:
        raise DataError(
            f"`{where}`: all {len(examples)} records render to nothing but white space; look at `text` and its fields"
        )
    return found


def _split(examples: Sequence[Example], dataset: Dataset) -> tuple[Parts, int]:
    """The examples of each split, and how many documents are unused."""
    strata: dict[str, str] = {}
    for example in examples:
        stratum = strata.setdefault(example.document, example.stratum)
        if stratum != example.stratum:
            raise DataError(
                f"document `{example.document}` has several values of `stratify: {dataset.stratify}` (`{stratum}` and "
                f"`{example.stratum}`); a document stands in one split whole, so stratify by a field that is the same in all "
                "its records, or leave `stratify` out"
            )
    side = split_documents(strata, dataset.split, strata if dataset.stratify else None)
    parts: Parts = {split: [] for split in (*SPLITS, UNUSED)}
    for example in examples:
        parts[side[example.document]].append(example)
    del parts[UNUSED]
    return parts, sum(part == UNUSED for part in side.values())


def _refuse_shared(parts: Parts, dataset: Dataset) -> None:
    """Documents of sources that somebody else split; DataError if one stands on two sides."""
    first: dict[str, str] = {}
    for split, examples in parts.items():
        for example in examples:
            other = first.setdefault(example.document, split)
            if other != split:
                raise DataError(
                    f"document `{example.document}` stands in `source.{other}` and in `source.{split}`; a document is never on "
                    "two sides, so take it out of one, or name a field that tells them apart instead of "
                    f"`document: {dataset.document}`"
                )


def _remove_leaks(parts: Parts, fields: frozenset[str], context: StageContext) -> set[tuple[str, str]]:
    """Take the training side of every pair out of `parts`; returns its (split, document).

    Repeated until nothing is found: an n-gram that was boilerplate may no longer be, with fewer documents.
    """
    items, removed, told = _items(context), set[tuple[str, str]](), list[Pair]()
    while True:
        texts, contents = _texts(parts), _digests(parts, fields)
        pairs = find_pairs(texts, contents) + find_item_pairs(texts["train"], items)
        if not pairs:
            break
        told += pairs
        removed |= {(pair.split, pair.document) for pair in pairs}
        for split in SPLITS:
            parts[split] = [example for example in parts[split] if (split, example.document) not in removed]
        empty = [split for split in SPLITS if not parts[split]]
        if empty:
            raise DataError(f"`leakage: remove` leaves no document in `{empty[0]}`; {block_message(told)}")
    _write_pairs(context.draft / "removed.jsonl", told)
    return removed


def _texts(parts: Parts) -> dict[str, Texts]:
    texts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for split, examples in parts.items():
        for example in examples:
            texts[split].setdefault(example.document, []).append(example.text)
    return {split: {name: "\n".join(found) for name, found in documents.items()} for split, documents in texts.items()}


def _digests(parts: Parts, fields: frozenset[str]) -> dict[str, Contents]:
    digests: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for split, examples in parts.items():
        for example in examples:
            digests[split].setdefault(example.document, []).extend(_kept(example, fields))
    return dict(digests)


def _kept(example: Example, fields: frozenset[str]) -> list[int]:
    return [digest for name, digest in example.contents if name in fields]


def _items(context: StageContext) -> dict[str, list[str]]:
    """The texts of each evaluation's items, read by the reader that its row names."""
    items = context.config.get("items", {})
    return {name: load_function(item["reader"])(context.resources[f"items.{name}"]) for name, item in items.items()}


def _write(file: Path, parts: Parts, fields: frozenset[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    columns = {"split": text, "document": text, "example": text, "text": text, "contents": pyarrow.list_(number)}
    schema = pyarrow.schema(list(columns.items()))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for split in SPLITS:
            for begin in range(0, len(parts[split]), _WRITE_ROWS):
                rows = [_row(split, example, fields) for example in parts[split][begin : begin + _WRITE_ROWS]]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _row(split: str, example: Example, fields: frozenset[str]) -> dict[str, Any]:
    return {
        "split": split,
        "document": example.document,
        "example": str(example.number),
        "text": example.text,
        "contents": _kept(example, fields),
    }


def _measured(split: str, examples: Sequence[Example]) -> dict[str, int]:
    return {
        f"documents_{split}": len({example.document for example in examples}),
        f"examples_{split}": len(examples),
        f"bytes_{split}": sum(len(example.text.encode("utf-8")) for example in examples),
    }


def _write_pairs(file: Path, pairs: Iterable[Pair]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(dataclasses.asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
