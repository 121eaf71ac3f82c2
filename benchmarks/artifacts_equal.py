"""Whether two stores hold the same artifacts: of two versions of the code, or of a changed way to write them.

python benchmarks/artifacts_equal.py OLD/.paretune NEW/.paretune

Compared are the stages by name, their tables by content (`tokens.parquet` with `tokens.arrow`), other files by their bytes, and
metrics of records but for times and memory. Ends with 1 where anything differs.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_OF_A_RUN = re.compile("seconds|memory|options|_ms|tokens_per")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs=2, type=Path)
    old, new = parser.parse_args().stores
    count, wrong = 0, []
    for file in sorted(file for file in old.glob("*-*/**/*") if file.is_file() and "drafts" not in file.parts):
        count += 1
        wrong += differences(file, new / file.relative_to(old))
    stages = [{record.parent.name for record in store.glob("*/record.json")} for store in (new, old)]
    wrong += [f"{name}: only in {new}" for name in sorted(stages[0] - stages[1])]
    print("\n".join([*wrong, f"{count} files compared, {len(wrong)} differences"]))
    raise SystemExit(bool(wrong))


def differences(file: Path, other: Path) -> Iterator[str]:
    if file.suffix == ".parquet" and not other.exists():
        other = other.with_suffix(".arrow")
    if not other.exists():
        yield f"{other}: missing"
    elif file.suffix in (".parquet", ".arrow"):
        one, two = table(file), table(other)
        if one.schema.names != two.schema.names or not one.cast(two.schema).equals(two):
            yield f"{other}: another table"
    elif file.name == "record.json":
        one, two = metrics(file), metrics(other)
        different = (name for name in one | two if one.get(name) != two.get(name))
        yield from (f"{other}: {name}: {one.get(name)}, {two.get(name)}" for name in different)
    elif file.name in ("curves.jsonl", "generations.jsonl"):
        if without_times(file) != without_times(other):
            yield f"{other}: other rows"
    elif file.read_bytes() != other.read_bytes():
        yield f"{other}: other bytes"


def table(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all() if file.suffix == ".arrow" else pq.read_table(file)


def metrics(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    return {name: value for name, value in found.items() if not _OF_A_RUN.search(name)}


def without_times(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


if __name__ == "__main__":
    main()
