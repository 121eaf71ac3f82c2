"""Training curves of the tree layout on top of those of the padded layout, on real articles with four tasks each.

    python benchmarks/layouts.py --articles articles.jsonl --base DIR [--steps 120] [--precision float32] [--figure layouts.png]

Two studies that differ in `layout` alone train the same adapters on the same examples, without dropout. Prints the largest
difference of the loss of a step and of an evaluation, and the seconds of the optimizer steps; draws the curves.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paretune.analysis.training import read_curve
from paretune.api import open_results, run
from paretune.report.looks import COLOURS, STYLE

LAYOUTS = ("padded", "trees")
TASKS = {"summary": "{{ summary }}", "title": "{{ title }}", "tags": "{{ tags | join(', ') }}", "type": "{{ type }}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--figure", default="layouts.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {layout: train(Path(folder), layout, arguments) for layout in LAYOUTS}
    one, other = (curves[layout] for layout in LAYOUTS)
    print(f"{arguments.steps} steps of 8 examples in {arguments.precision}")
    for column in ("train_loss", "validation_loss"):
        apart = (one[column] - other[column]).abs()
        print(f"{column}: at most {apart.max():.1e} nats apart, from {one[column].max():.3f} down to {one[column].min():.3f}")
    seconds = {layout: curve["seconds"].iloc[-1] for layout, curve in curves.items()}
    print(", ".join(f"{layout} {value:.1f} s" for layout, value in seconds.items()) + " of optimizer steps")
    with mpl.rc_context(fname=STYLE):
        draw(curves).savefig(arguments.figure)


def train(folder: Path, layout: str, arguments: argparse.Namespace) -> pd.DataFrame:
    """The curve of one layout."""
    data = {
        "source": {"path": os.path.abspath(arguments.articles)},
        "document": "title",
        "leakage": "allow",
        "too_long": "cut",
        "context": "{{ content }}\n\n",
        "tasks": {name: {"prompt": f"{name}: ", "completion": text} for name, text in TASKS.items()},
    }
    study = {
        "study": f"layout-{layout}",
        "bases": {"base": {"path": os.path.abspath(arguments.base)}},
        "data": {"articles": data},
        "precision": {"compute": arguments.precision},
        "train": {
            "layout": layout, "max_steps": arguments.steps, "batch_size": 8, "max_length": 256, "base_dropout": 0.0,
            "evaluate_every": max(1, arguments.steps // 8),
        },
        "variants": {"lora": [{"train.lora": {"r": 8, "alpha": 16, "dropout": 0.0, "learning_rate": 1e-3}}]},
        "evaluate": {"perplexity": {}},
    }  # fmt: skip
    file = folder / f"{layout}.json"
    file.write_text(json.dumps(study))
    outcome = run(file, store=folder / "store")
    assert not outcome.failed, outcome.failed
    (cell,) = open_results(file, folder / "store").cells
    return read_curve(cell)


def draw(curves: dict[str, pd.DataFrame]) -> Figure:
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    wide = {"padded": 4.0, "trees": 1.2}
    for layout, colour in zip(LAYOUTS, COLOURS, strict=False):
        curve = curves[layout]
        evaluated = curve["validation_loss"].notna()
        line = {"color": colour, "linewidth": wide[layout], "alpha": 0.5 if layout == "padded" else 1.0}
        axes.plot(curve["step"], curve["train_loss"], label=f"{layout}, training", **line)
        axes.plot(
            curve["step"][evaluated], curve["validation_loss"][evaluated], "o--", markersize=wide[layout] + 2,
            label=f"{layout}, validation", **line,
        )  # fmt: skip
    gap = np.nanmax((curves["padded"]["train_loss"] - curves["trees"]["train_loss"]).abs())
    axes.set(xlabel="optimizer steps", ylabel="loss, nats per token", title=f"Two layouts, at most {gap:.1e} nats apart")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
