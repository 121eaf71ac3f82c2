"""What `plan` says of the time before anything has run, against what a run then takes: the example studies in fresh stores.

    PARETUNE_BENCH_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/forecast.py [NAME ...] [--keep DIR]

DIR holds the data of the studies, and `models` beside it their bases (without it only `examples/` is run); real bases lie in
`bases` beside the checkout. Studies that would take hours are made shorter: fewer records, epochs, repeats and seeds, the same
stages. A stage's time is its CPU time where one thread computes, which other work on the machine lengthens less than the wall
time that stands beside it. `learned` is the same forecast after the run, as the next plan of a changed study would have it.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from paretune.api import open_study
from paretune.pipeline.forecast import forecast
from paretune.pipeline.rates import measure_rates

ROOT = Path(__file__).parents[1]
SHORTER: dict[str, dict[str, Any]] = {
    "quickstart": {"seeds": [0]},
    "book": {"data.sherlock.split": {"train": 0.3, "validation": 0.1, "test": 0.1}},
    "book-neox": {"data.sherlock.split": {"train": 0.3, "validation": 0.1, "test": 0.1}},
    "stories": {"data.tinystories.split": {"train": 0.05, "validation": 0.01, "test": 0.02}, "train.epochs": 1},
    "bmw-depth": {"data.news.split": {"train": 0.02, "validation": 0.01, "test": 0.02}, "seeds": [0]},
    "bmw-tasks": {"data.news.split": {"train": 0.05, "validation": 0.02, "test": 0.03}, "train.epochs": 1, "seeds": [0]},
    "matrix": {"train.max_steps": 10, "train.evaluate_every": 10},
    "conversations": {
        "data.counsel.split": {"train": 0.06, "validation": 0.02, "test": 0.03},
        "data.instructions.split": {"train": 0.08, "validation": 0.02, "test": 0.05},
        "train.epochs": 1,
    },
    **{f"real-{name}": {} for name in ("depth", "tasks", "chat", "book", "ship")},
}
"""Fields by study; those that a study does without are added."""


def write_shorter(name: str, folder: Path) -> Path:
    """The study called `name` as it is run here; returns its file."""
    text = next(ROOT.glob(f"*/{name}.yaml")).read_text(encoding="utf-8")
    data = Path(os.environ.get("PARETUNE_BENCH_DATA", ""))
    text = text.replace("../../shared/data", str(data)).replace("../../shared/models", str(data.parent / "models"))
    text = text.replace("../../bases", str(ROOT.parent / "bases"))
    study = yaml.safe_load(text)
    for field, value in SHORTER.get(name, {}).items():
        *path, last = field.split(".")
        section = study
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(SHORTER) if os.environ.get("PARETUNE_BENCH_DATA") else ["quickstart"]
    parser.add_argument("names", nargs="*", default=names)
    parser.add_argument("--keep", type=Path, help="a directory for the studies and their stores")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    within = {}
    for name in options.names:
        file = write_shorter(name, folder)
        store = folder / f"store-{name}"
        opened = open_study(file, store)
        rates = measure_rates(opened.study, opened.lock, opened.plan, opened.store, lambda _: None)
        before = forecast(opened.study, opened.lock, opened.plan, opened.store, rates=rates)
        command = [sys.executable, "-m", "paretune.cli", "run", str(file), "--store", str(store), "--out", str(folder / name)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            print(f"{name}: failed: {finished.stderr[-500:]}")
            continue
        after = open_study(file, store)
        learned = forecast(after.study, after.lock, after.plan, after.store, rates=rates)
        kinds: dict[str, list[float]] = {}
        for stage in after.plan.stages:
            record, said = opened.store.find(stage), before.get(stage, learned[stage]).seconds
            if record is not None:
                cpu = record.seconds if record.cpu_seconds is None else record.cpu_seconds
                again = learned[stage].seconds
                row = (1, said or math.nan, cpu, record.seconds, again or math.nan)
                kinds[stage.kind] = [a + b for a, b in zip(kinds.get(stage.kind, [0] * 5), row, strict=True)]
        total = [sum(values) for values in zip(*(row for row in kinds.values() if not math.isnan(row[1])), strict=True)]
        within[name] = total[1] / total[2]
        print(f"\n{name:24} {'stages':>6} {'forecast':>9} {'CPU s':>8} {'wall s':>8} {'forecast/CPU':>13} {'learned/CPU':>12}")
        for kind, row in [*sorted(kinds.items()), ("all", total)]:
            print(
                f"  {kind:22} {row[0]:6.0f} {row[1]:9.1f} {row[2]:8.1f} {row[3]:8.1f} {row[1] / row[2]:13.2f} "
                f"{row[4] / row[2]:12.2f}",
                flush=True,
            )
    good = sum(1 / 1.5 <= ratio <= 1.5 for ratio in within.values())
    print(f"\nwithin a factor of 1.5: {good} of {len(within)} studies; " + ", ".join(f"{n} {r:.2f}" for n, r in within.items()))


if __name__ == "__main__":
    main()
