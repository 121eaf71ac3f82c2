"""The contract of `tests.surgery_table` for every way of making real bases smaller, beyond their sliding windows.

`python -m tests.real_contract DIR...` prints one row for each method and directory of a model: the largest logit difference of
each comparison over the largest logit, and of `generate` the tokens that differ. Windows are narrowed in a copy of the config.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from paretune.data.trees import Example
from paretune.errors import ParetuneError
from paretune.variants.cuts import narrow_heads, narrow_mlp
from paretune.variants.exits import prove_exits
from paretune.variants.proof import compute_at_once, compute_one_by_one, largest_difference
from paretune.variants.stages import prune_blocks, skip_blocks
from paretune.variants.vocabulary import prune_vocabulary
from paretune.variants.width import narrow
from tests.surgery_table import COMPARISONS, measure_change, measure_surgery
from tests.tiny import SLIDING_WINDOW
from tests.variants import test_choose, test_depth, test_vocabulary, test_width

Row = Mapping[str, float]


def main(directories: list[str]) -> None:
    sys.stdout.write("| base | method | " + " | ".join(COMPARISONS) + " |\n" + "|---" * (len(COMPARISONS) + 2) + "|\n")
    for directory in directories:
        with tempfile.TemporaryDirectory() as folder:
            base = narrowed(Path(directory).resolve(), Path(folder) / "base")
            for number, (method, measure) in enumerate(METHODS.items()):
                draft = Path(folder) / str(number)
                draft.mkdir()
                try:
                    row = measure(base, draft)
                    cells = [f"{row[name]:.1e}" if name in row else "-" for name in COMPARISONS]
                except ParetuneError as refused:
                    cells = [f"refused: {refused}"]
                sys.stdout.write(f"| {Path(directory).name} | {method} | {' | '.join(cells)} |\n")
                sys.stdout.flush()


def narrowed(base: Path, directory: Path) -> Path:
    """The same model in float32 with windows of a few tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    if config.get("sliding_window"):
        config["sliding_window"] = SLIDING_WINDOW
    (directory / "config.json").write_text(json.dumps(config))
    for file in base.iterdir():
        if not (directory / file.name).exists() and file.suffix != ".safetensors":
            (directory / file.name).symlink_to(file)
    return directory


def num_blocks(base: Path) -> int:
    return int(AutoConfig.from_pretrained(base).num_hidden_layers)


def of_blocks(base: Path, draft: Path) -> Row:
    """The worst of the first, a middle, the last, and two together."""
    last = num_blocks(base) - 1
    rows = [measure_surgery(base, drop, draft / str(n)) for n, drop in enumerate(([0], [last // 2], [last], [1, last - 1]))]
    return {name: max(row[name] for row in rows) for name in COMPARISONS}


def of_seam(base: Path, draft: Path) -> Row:
    context = test_choose.context_of(base, {"blocks": [num_blocks(base) // 2], "count": None, "seam": "linear"}, draft / "sewn")
    prune_blocks(context)
    live = test_width.load(context.draft)
    return measure_change(live, live, draft)


def of_width(kind: str) -> Callable[[Path, Path], Row]:
    def measure(base: Path, draft: Path) -> Row:
        model = test_width.load(base)
        config = model.config
        width = config.intermediate_size * 3 // 4 // 32 * 32
        of_mlp = kind == "mlp"
        count = 1 if config.num_key_value_heads > 1 else 2  # of heads that share one, as many as divide the width
        narrowing = narrow_mlp(config, lambda _: width) if of_mlp else narrow_heads(config, count)
        generator = np.random.default_rng(0)
        examples = [Example(generator.integers(2, 256, 40).astype(np.int32)) for _ in range(8)]
        windows = test_choose.windows_of(examples)
        live, _, kept, _ = narrow(model, narrowing, windows, draft / "narrow", **test_width.PLAIN)
        units = 1 if of_mlp else config.head_dim * config.num_attention_heads // narrowing.units
        names = test_width.READS_CHANNELS if of_mlp else test_width.READS_HEADS
        return measure_change(live, test_width.without(test_width.load(base), names, kept, units), draft)

    return measure


def of_vocabulary(base: Path, draft: Path) -> Row:
    context = test_vocabulary.context_of(base, draft / "smaller")
    prune_vocabulary(context)
    kept = torch.tensor(json.loads((context.draft / "vocabulary.json").read_text()))
    return measure_change(test_width.load(context.draft), test_vocabulary.Rows(test_width.load(base), kept), draft)


def of_skipping(base: Path, draft: Path) -> Row:
    """What skips beside what was pruned and saved."""
    method = {"blocks": [1, num_blocks(base) - 2]}
    pruned, skipping = (test_depth.made(body, base, draft / body.__name__, method) for body in (prune_blocks, skip_blocks))
    same, model = (test_depth.loaded_from(base, each, draft / "x").model for each in (pruned, skipping))
    live = compute_at_once(model)
    return {
        "identity": largest_difference(live, compute_at_once(same)),
        "cache": largest_difference(compute_one_by_one(model), live),
    }


def of_exits(base: Path, draft: Path) -> Row:
    after = (num_blocks(base) // 3, num_blocks(base) * 2 // 3)
    return {"cache": max(prove_exits(test_width.load(base), after, kind) for kind in ("probability", "margin"))}


METHODS: Mapping[str, Callable[[Path, Path], Row]] = {
    "prune.blocks": of_blocks,
    "prune.blocks, seam: linear": of_seam,
    "prune.mlp, a quarter": of_width("mlp"),
    "prune.heads, a group": of_width("heads"),
    "prune.vocabulary": of_vocabulary,
    "skip.blocks": of_skipping,
    "exit.early": of_exits,
}


if __name__ == "__main__":
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    main(sys.argv[1:])
