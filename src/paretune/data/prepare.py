"""Stage bodies: read a dataset and split it, and look for the same text on two sides.

`documents.parquet` holds `split, document, example, text` in the order of the source, and `contents`: digests of the longer
fields of a record, by which the leakage check finds one content under two titles. Where there are tasks a row is one of a
record, with `task, context, prompt, completion`; those of a document, and of one context in it, stand side by side.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.data.cleaning import clean_row, masked
from paretune.data.leakage import Contents, Pair, Texts, block_message, content_digest, find_item_pairs, find_pairs
from paretune.data.records import Branch, Form, Rendered, chat_texts, parse_form, read_record, refuse_surrogates
from paretune.data.safety import load_filter
from paretune.data.sources import Row, iterate_rows
from paretune.data.splits import UNUSED, split_documents
from paretune.data.templates import is_blank, named_value
from paretune.errors import DataError
from paretune.pipeline.stage import StageContext
from paretune.study.data import SPLITS, Dataset, Source, SplitSources
from paretune.study.registry import load_function

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
    rendered: Rendered
    stratum: str = ""
    contents: tuple[tuple[str, int], ...] = ()
    """Field and `content_digest` of the longer fields."""

    @property
    def text(self) -> str:
        """Empty where there is nothing to learn."""
        return self.rendered.text


Parts = dict[str, list[Example]]
"""Split to its examples in the order of the source."""


def prepare_data(context: StageContext) -> dict[str, Any]:
    """Stage `data`: writes `documents.parquet`; with `items` in its config (`leakage: remove`) `removed.jsonl`, the pairs, too.

    Memory: the rendered texts and some 350 bytes a record (10 million records of 90 characters: 5 GB). Raises SpecError for the
    template, DataError for what is wrong with the data, and NeedsError for a missing file or hub.
    """
    dataset = Dataset.model_validate_json(json.dumps(context.config["dataset"]))
    counts: Counter[str] = Counter()
    read = {split: list(_read(dataset, source, split, counts, context)) for split, source in _sources(dataset)}
    wanted = {split: _wanted(examples, split, dataset, counts, context) for split, examples in read.items()}
    if isinstance(dataset.source, SplitSources):
        parts, unused = wanted, 0
        _refuse_shared(parts, dataset)
    else:
        parts, unused = _split(wanted[""], dataset)
    if dataset.clean.mask:
        parts = _with_masked_names(parts, dataset)
    fields = _content_fields(parts)
    removed = _remove_leaks(parts, fields, context) if "items" in context.config else set()
    if dataset.completes:
        parts = {split: _side_by_side(examples) for split, examples in parts.items()}
    _write(context.draft / "documents.parquet", parts, fields, completes=dataset.completes)
    metrics = _totals([example for examples in read.values() for example in examples])
    metrics |= {"documents_unused": unused, "documents_removed": len(removed), **dict(sorted(counts.items()))}
    context.emit(done=1, total=1, records=metrics["records"])
    return metrics | {name: number for split in SPLITS for name, number in _measured(split, parts[split]).items()}


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
    texts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    contents: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for record in iterate_records(file):
        split, document = record[0]["split"], record[0]["document"]
        texts[split].setdefault(document, []).append(record_text(record))
        if record[0]["contents"]:
            contents[split].setdefault(document, []).extend(record[0]["contents"])
    joined = {split: {name: "\n".join(parts) for name, parts in documents.items()} for split, documents in texts.items()}
    return joined, contents


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
    branches = (Branch(row["task"], row["prompt"], row["completion"], messages=row.get("messages")) for row in rows)
    return Rendered(rows[0]["context"], tuple(branches)).text


def _sources(dataset: Dataset) -> list[tuple[str, Source]]:
    """Each source with the split that it is all of; none for a split that is drawn."""
    return [("", dataset.source)] if isinstance(dataset.source, Source) else list(dataset.source)


def _read(dataset: Dataset, source: Source, split: str, counts: Counter[str], context: StageContext) -> Iterator[Example]:
    """The records of `source` as examples; one of nothing but white space has no text. `counts` gains what was cleaned."""
    place, form = context.resources[_role(split)], parse_form(dataset, "the dataset")
    # The characters rendered so far, out of the bytes of the file: near enough for the time left.
    size, done = Path(place).stat().st_size if source.path and Path(place).exists() else 0, 0
    for number, row in enumerate(iterate_rows(source, place)):
        cleaned = clean_row(row, dataset.clean, counts)
        rendered = Rendered("") if _is_nameless(dataset, row) else read_record(form, cleaned)
        text = rendered.text
        done += len(text)
        if size and number % _EMIT_ROWS == 0:
            context.emit(done=min(done, size), total=size, records=number)
        if not text.strip() or (dataset.completes and not rendered.branches):
            yield Example("", number, Rendered("", (), rendered.empty))
            continue
        refuse_surrogates(text, row.where)
        yield Example(
            _document(dataset, source, row, number, split),
            number,
            rendered,
            "" if dataset.stratify is None else named_value(row.values, dataset.stratify, "stratify", row.where),
            _contents(dataset, form, cleaned),
        )


def _role(split: str) -> str:
    return f"source.{split}" if split else "source"


def _is_nameless(dataset: Dataset, row: Row) -> bool:
    """Whether a record is left out because nothing stands where its document or stratum should."""
    names = [name for name in (dataset.document, dataset.stratify) if name is not None]
    return "empty" in dataset.clean.drop and any(name in row.values and is_blank(row.values[name]) for name in names)


def _wanted(
    examples: Sequence[Example], split: str, dataset: Dataset, counts: Counter[str], context: StageContext
) -> list[Example]:
    """The examples with text, without repetitions and unsafe ones where the study says so."""
    found = _filled(examples, _role(split), dataset)
    if "duplicate" in dataset.clean.drop:
        first: dict[str, Example] = {}
        for example in found:
            first.setdefault(example.text, example)
        counts["records_duplicate"] += len(found) - len(first)
        found = list(first.values())
    if "safety" in context.config:
        unsafe = load_filter(context.config["safety"], context.resources).flags([example.text for example in found])
        counts["records_unsafe"] += sum(unsafe)
        found = [example for example, flag in zip(found, unsafe, strict=True) if not flag]
        if not found:
            raise DataError(f"`safety: {{data: drop}}` leaves no record of `{_role(split)}`; look at its words and threshold")
    return found


def _with_masked_names(parts: Parts, dataset: Dataset) -> Parts:
    """Documents under names without personal data; those that were changed are told apart by a number, in their order."""
    found: dict[str, str] = {}
    for document in dict.fromkeys(example.document for examples in parts.values() for example in examples):
        name = masked(document, dataset.clean, Counter())
        found[document] = document if name == document else f"{name} {len(found) + 1}"
    return {
        split: [dataclasses.replace(example, document=found[example.document]) for example in examples]
        for split, examples in parts.items()
    }


def _document(dataset: Dataset, source: Source, row: Row, number: int, split: str) -> str:
    if dataset.document is not None:
        name = named_value(row.values, dataset.document, "document", row.where)
        refuse_surrogates(name, row.where)
        return name
    name = row.values["document"] if source.resolved_format == "text" else str(number)
    # Sources of their own for the splits count from 0 each; the names must differ all the same.
    return f"{split} {name}" if split else name


def _contents(dataset: Dataset, form: Form, row: Row) -> tuple[tuple[str, int], ...]:
    said = [("messages", content_digest(text)) for text in chat_texts(row.values, form, row.where)]
    fields = [name for name in form.fields if isinstance(row.values.get(name), str)]
    if len(fields) >= 2:
        said += [(name, content_digest(row.values[name])) for name in fields if name != dataset.document]
    return tuple((name, digest) for name, digest in said if digest is not None)


def _content_fields(parts: Parts) -> frozenset[str]:
    """The fields whose longer values are mostly the record's own; a system prompt that all records share is none."""
    values: dict[str, list[int]] = {}
    for examples in parts.values():
        for name, digest in (content for example in examples for content in example.contents):
            values.setdefault(name, []).append(digest)
    return frozenset(name for name, digests in values.items() if len(set(digests)) >= CONTENT_SHARE * len(digests))


def _filled(examples: Sequence[Example], where: str, dataset: Dataset) -> list[Example]:
    found = [example for example in examples if example.text]
    if not found and dataset.completes:
        raise DataError(f"`{where}`: none of {len(examples)} records has a completion that is not empty; look at its fields")
    if not found:
        raise DataError(
            f"`{where}`: all {len(examples)} records render to nothing but white space"
            f"{', or lack a field that is needed' if 'empty' in dataset.clean.drop else ''}; look at `text` and its fields"
        )
    return found


def _side_by_side(examples: Sequence[Example]) -> list[Example]:
    """Records of one document together, and those of one context in it, in the order in which each first occurs."""
    documents: dict[str, dict[str, list[Example]]] = {}
    for example in examples:
        documents.setdefault(example.document, {}).setdefault(example.rendered.context, []).append(example)
    return [example for contexts in documents.values() for group in contexts.values() for example in group]


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
    return {
        name: load_function(item["reader"])(context.resources[f"items.{name}"], **item.get("fields", {}))
        for name, item in items.items()
    }


def _write(file: Path, parts: Parts, fields: frozenset[str], *, completes: bool) -> None:
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
                some = parts[split][begin : begin + _WRITE_ROWS]
                rows = [row for example in some for row in _rows(split, example, fields)]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _rows(split: str, example: Example, fields: frozenset[str]) -> list[dict[str, Any]]:
    row = {
        "split": split,
        "document": example.document,
        "example": str(example.number),
        "text": example.text,
        "contents": _kept(example, fields),
    }
    context = example.rendered.context
    return [
        row
        | {"text": context + branch.prompt + branch.completion, "context": context, "part": branch.part}
        | {"task": branch.task, "prompt": branch.prompt, "completion": branch.completion, "messages": branch.messages}
        for branch in example.rendered.branches
    ] or [row]


def _totals(examples: Sequence[Example]) -> dict[str, int]:
    """Counts over all splits."""
    totals = {"records": len(examples), "records_empty": sum(not example.text for example in examples)}
    empty = Counter(task for example in examples for task in example.rendered.empty)
    return totals | {f"completions_empty_{task}": count for task, count in sorted(empty.items())}


def _measured(split: str, examples: Sequence[Example]) -> dict[str, int]:
    return {
        f"documents_{split}": len({example.document for example in examples}),
        f"examples_{split}": sum(max(1, len(example.rendered.branches)) for example in examples),
        f"bytes_{split}": sum(len(example.text.encode("utf-8")) for example in examples),
    }


def _write_pairs(file: Path, pairs: Iterable[Pair]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(dataclasses.asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
