"""Narrower MLPs by `prune.mlp` beside those by OptiPFair on the same test documents, scored by the same code.

    python benchmarks/narrower.py STUDY [--store DIR] [--threads 1] [--peers-environment DIR]

STUDY has variants `mlp[fraction=...]` that have run (`studies/real-compression.yaml`). OptiPFair (`MAW`: largest magnitudes
of gate and up projections) takes the same share in multiples of 32, by the weights alone and with activations on as much
training text. Nothing is trained. Loss of the test split, and how much higher its exp is than that of the whole model, as
rows of Markdown.
"""

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from against_peers import OFFLINE, install_peers

from paretune.api import open_study
from paretune.data.examples import examples_of
from paretune.data.tokenizer import load_tokenizer, read_tokens
from paretune.data.trees import Example
from paretune.model.forward import packed_model, score
from paretune.model.load import load_pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-environment", default=".venv-peers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    opened = open_study(arguments.study, store=arguments.store)
    cells = {cell.variant: cell for cell in opened.plan.cells if cell.variant.startswith("mlp[")}
    ours = {
        name: (cell.methods[0].config["method"], opened.store.artifact(cell.methods[0]).path) for name, cell in cells.items()
    }
    (tokens,) = (opened.store.artifact(stage).path for stage in opened.plan.tokens.values())
    stage = next(iter(cells.values())).methods[0]
    base, length = stage.resources["base"].directory(), opened.study.train.max_length
    tokenizer = load_tokenizer(stage.config["base"], stage.resources["base"])
    test = list(examples_of(read_tokens(tokens, "test"), tokenizer, length))
    wanted = next(iter(ours.values()))[0]["calibration"]["tokens"]
    windows = [each.ids.tolist() for each in examples_of(read_tokens(tokens, "train"), tokenizer, length)][: wanted // length]
    percents = [round(100 * method["fraction"]) for method, _ in ours.values()]
    whole = loss_of(base, test)
    print("| taken | `prune.mlp` | OptiPFair, weights and text | OptiPFair, weights |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        given = {"base": str(base), "windows": windows, "percents": percents, "out": folder, "threads": arguments.threads}
        file = Path(folder) / "given.json"
        file.write_text(json.dumps(given))
        python = install_peers(arguments.peers_environment)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "optipfair==0.4.2"], check=True)
        subprocess.run([str(python), Path(__file__).parent / "peers/narrow.py", file], env=OFFLINE, check=True)
        for percent, (_, path) in zip(percents, ours.values(), strict=True):
            losses = [loss_of(Path(each), test) for each in (path, f"{folder}/text-{percent}", f"{folder}/weights-{percent}")]
            print(
                f"| {percent} % | " + " | ".join(f"{loss:.4f} ({math.expm1(loss - whole):+.1%})" for loss in losses) + " |",
                flush=True,
            )


def loss_of(model: Path, examples: Sequence[Example]) -> float:
    """Nats of a target."""
    packed = packed_model(load_pretrained(str(model), torch.float32).eval())
    scores = [one.nats for one in score(packed, examples, forward_tokens=2048)]
    return float(sum(nats.sum() for nats in scores)) / sum(len(nats) for nats in scores)


if __name__ == "__main__":
    main()
