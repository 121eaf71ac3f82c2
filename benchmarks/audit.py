"""What the audit finds in a file and what it costs: seconds and memory for each 100,000 documents.

python benchmarks/audit.py articles.jsonl --text "{{ title }}\\n\\n{{ content }}"
python benchmarks/audit.py articles.jsonl --text "{{ title }}\\n\\n{{ content }}" --found phone url
python benchmarks/audit.py --scale 100000
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from paretune.data.audit import audit_data
from paretune.data.cleaning import find_personal
from paretune.data.prepare import iterate_records, prepare_data, record_text
from paretune.pipeline.records import Record
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact, RunOptions, StageContext
from paretune.study.data import SPLITS, Dataset
from paretune.study.validate import validate

_AROUND = 30
"""Characters shown on each side of what was found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?")
    parser.add_argument("--text", default="{{ text }}", help="template over the fields of a record")
    parser.add_argument("--found", nargs="*", default=[], help="print every address and number of these kinds: phone, url ...")
    parser.add_argument("--scale", type=int, default=0, help="time and memory on so many documents of 150 words")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or write_documents(Path(folder) / "made.jsonl", arguments.scale)
        dataset = {"source": {"path": str(path)}, "text": arguments.text.replace("\\n", "\n"), "leakage": "allow"}
        data = prepared(Path(folder), dataset)
        audited(Path(folder), data)
        for kind in arguments.found:
            show_found(data, kind)


def write_documents(file: Path, count: int) -> Path:
    """English-like words; one in a hundred with an accent, an address, a number or HTML, one in a thousand twice."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(20_000)]
    more = [
        "\u00e9t\u00e9 \u2013 \u201cwell\u201d",
        "it\u00e2\u20ac\u2122s",
        "write to a.b@example.org",
        "+49 89 382-18634",
        "<p>see</p>",
    ]
    with file.open("w", encoding="utf-8") as out:
        text = ""
        for _ in range(count):
            if draw.random() > 0.001:
                text = " ".join([*draw.choices(words, k=150), *([draw.choice(more)] if draw.random() < 0.01 else [])])
            out.write(json.dumps({"text": text}) + "\n")
    return file


def prepared(folder: Path, dataset: dict[str, Any]) -> Artifact:
    spec = validate(Dataset, dataset, "data")
    content = spec.content
    content["source"] |= {"path": "sha256:0", "format": spec.source.resolved_format}
    place = Path(str(spec.source.path))
    metrics, seconds = run(prepare_data, folder / "data", {"dataset": content}, {"source": Resource(path=place)}, {})
    print(f"data stage: {metrics['records']} records in {seconds:.1f} s of one core, peak {peak_mib()} MiB")
    record = Record("0", "data", 1, {}, {}, "", 0.0, "cpu", {}, 0, {}, None, (), {}, metrics, {})
    return Artifact(folder / "data", record, {})


def audited(folder: Path, data: Artifact) -> None:
    metrics, seconds = run(audit_data, folder / "audit", {"labels": []}, {}, {"data": data})
    count = sum(metrics[f"records_{split}"] for split in SPLITS)
    rate = 100_000 * seconds / count
    print(f"audit: {count} records in {seconds:.1f} s of one core, {rate:.0f} s for 100,000; peak {peak_mib()} MiB")
    print(f"languages: {metrics['languages']}")
    for line in (folder / "audit" / "audit.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        where = ", ".join(map(str, row["records"][:5]))
        print(f"{row['finding']:<18}{row['split']:<12}{row['count']:>7} of {row['of']:<8}{row['detail']:<24}{where}")


def show_found(data: Artifact, kind: str) -> None:
    for rows in iterate_records(data.path / "documents.parquet"):
        text = record_text(rows)
        for _, start, end in find_personal(text, [kind]):
            around = text[max(0, start - _AROUND) : start] + f"[[{text[start:end]}]]" + text[end : end + _AROUND]
            print(f"{kind} {int(rows[0]['example']) + 1}: {' '.join(around.split())}")


def run(body: Any, draft: Path, config: Any, resources: Any, inputs: Any) -> tuple[dict[str, Any], float]:
    draft.mkdir()
    # Of the processor, so that what else runs on the machine does not count.
    begin = time.process_time()
    metrics = body(StageContext(config, inputs, resources, RunOptions(), draft, lambda **_: None))
    return metrics, time.process_time() - begin


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
