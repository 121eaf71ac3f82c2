"""Memory and CPU time of every stage over data of 10, 100 and 1,000 MB.

python benchmarks/large_text.py --text FILE ... --base DIR --megabytes 10 100 1000
python benchmarks/large_text.py --text FILE ... --base DIR --megabytes 1000 --held-out 0.1 --only data leakage tokenize
python benchmarks/large_text.py --text FILE ... --base DIR --megabytes 100 --tasks

The records are made from the words of the files: each next word is one that follows the last one somewhere in them, so that
spelling, names and lengths are those of the text and hardly a run of 13 words stands twice. Every stage runs in a process of
its own, as in a run. Its memory is the highest sum of private pages (RssAnon and RssShmem of /proc/PID/status, looked at every
20 ms, imports included): pages of mapped files, which the system takes back when it needs them, are not part of it and stand
beside it as the highest RssFile. CPU time is that of the process and all its threads, by its resource usage.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paretune.api import open_study
from paretune.pipeline.stage import RunOptions
from paretune.pipeline.store import Store
from paretune.pipeline.worker import PRELOAD, RunContext, run_stage

_RECORDS = 2_000
"""That are made side by side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="files with the words of the records")
    parser.add_argument("--base", help="a model in Hugging Face format; the built-in one unless given")
    parser.add_argument("--megabytes", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--words", type=int, default=200, help="of a record, on average")
    parser.add_argument("--held-out", type=float, default=0.0005, help="share of validation, and of test")
    parser.add_argument("--tasks", action="store_true", help="tasks over a context instead of plain text")
    parser.add_argument("--only", nargs="*", help="kinds of stages")
    parser.add_argument("--folder", help="where data and store are kept, for a second look")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in the worker of a run
    for module in PRELOAD:
        __import__(module)
    print("| MB | stage | private MiB | mapped MiB | CPU s | wall s | written MB |\n|---|---|---|---|---|---|---|", flush=True)
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(arguments.folder or temporary) / f"{megabytes}"
            folder.mkdir(parents=True, exist_ok=True)
            measure(folder, megabytes, arguments)


def measure(folder: Path, megabytes: int, arguments: argparse.Namespace) -> None:
    if not (records := folder / "records.jsonl").exists():
        write_records(records, arguments.text, megabytes * 10**6, arguments.words)
    held_out = arguments.held_out
    data = {
        "source": {"path": "records.jsonl"},
        "split": {"train": 1 - 2 * held_out, "validation": held_out, "test": held_out},
        "leakage": "allow",
        "too_long": "skip" if arguments.tasks else "windows",
    }
    if arguments.tasks:
        data |= {
            "document": "id",
            "context": "{{ text }}",
            "tasks": {"title": {"prompt": "\nTitle:", "completion": "{{ title }}"}},
        }
    else:
        data |= {"text": "{{ title }}\n\n{{ text }}"}
    study = {
        "study": "large",
        "bases": {"base": {"path": str(Path(arguments.base).resolve())} if arguments.base else {"builtin": "newsroom-base"}},
        "data": {"made": data},
        "train": {"max_steps": 4, "batch_size": 4, "max_length": 256},
        "variants": {
            "base": [],
            "tuned": [{"train.lora": {"r": 4, "alpha": 8, "targets": "all-linear", "learning_rate": 1e-3}}],
        },
        "evaluate": {"perplexity": {}},
    }
    file = folder / f"study-{held_out:g}{'-tasks' if arguments.tasks else ''}.yaml"
    file.write_text(json.dumps(study))  # which is YAML, too
    show(megabytes, "plan", *cost(lambda: open_study(file)), 0)
    opened = open_study(file)
    opened.store.prepare()
    for stage in opened.plan.stages:
        asked = arguments.only is None or any(stage.kind.startswith(kind) for kind in arguments.only)
        if stage.runs and asked and not opened.store.find(stage):
            figures = cost(lambda stage=stage: run_stage(stage, opened.store, context_of(opened.store)))
            written = sum(file.stat().st_size for file in opened.store.artifact(stage).path.iterdir() if file.is_file())
            show(megabytes, stage.kind, *figures, written)


def context_of(store: Store) -> RunContext:
    return RunContext(store.root.resolve(), "benchmark", RunOptions(), tuple(sys.argv), None)


def cost(work) -> tuple[float, float, float, float]:
    """The highest private and mapped MiB of a process that does `work`, its CPU seconds and wall seconds."""
    started, private, mapped = time.perf_counter(), 0, 0
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  shown, and told by the exit code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
        sizes = {name: int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem", "RssFile")}
        private, mapped = max(private, sizes["RssAnon"] + sizes["RssShmem"]), max(mapped, sizes["RssFile"])
        time.sleep(0.02)
    _, status, usage = ended
    if status:
        raise SystemExit("a stage failed")
    return private / 1024, mapped / 1024, usage.ru_utime + usage.ru_stime, time.perf_counter() - started


def show(megabytes: int, name: str, private: float, mapped: float, cpu: float, wall: float, written: int) -> None:
    print(
        f"| {megabytes:,} | {name} | {private:,.0f} | {mapped:,.0f} | {cpu:,.1f} | {wall:,.1f} | {written / 1e6:,.1f} |",
        flush=True,
    )


def write_records(file: Path, texts: Sequence[str], size: int, words: int) -> None:
    """Records with `id`, `title` of 8 words and `text`, of `size` bytes in all."""
    source = [word for text in texts for word in Path(text).read_text(encoding="utf-8").split()]
    names, codes = np.unique(source, return_inverse=True)
    vocabulary = np.array(names, object)
    # The words that follow each word stand side by side in `following`, as often as they do in the text.
    following = np.append(codes[1:], codes[0])[np.argsort(codes, kind="stable")]
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    draw, number = np.random.default_rng(0), 0
    with file.open("w", encoding="utf-8") as out:
        while out.tell() < size:
            lengths = np.maximum(12, draw.gamma(2, words / 2, _RECORDS).astype(int))
            walk = np.empty((lengths.max(), _RECORDS), np.int64)
            walk[0] = codes[draw.integers(len(codes), size=_RECORDS)]
            for step in range(1, len(walk)):
                last = walk[step - 1]
                walk[step] = following[starts[last] + (draw.random(_RECORDS) * counts[last]).astype(np.int64)]
            for column, length in zip(walk.T, lengths, strict=True):
                of_record, number = vocabulary[column[:length]].tolist(), number + 1
                record = {"id": f"record-{number}", "title": " ".join(of_record[:8]), "text": " ".join(of_record[8:])}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
