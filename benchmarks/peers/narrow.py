"""MLPs narrowed by OptiPFair, by its weights alone and with what calibration text adds.

    python narrow.py FILE

FILE is what `narrower.py` left; the models stand then in the folder that it names. Runs in the environment of the peers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optipfair import prune_model
from transformers import AutoModelForCausalLM


def main(file: Path) -> None:
    given = json.loads(file.read_text())
    torch.set_num_threads(given["threads"])
    batches = [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        for ids in given["windows"]
    ]
    for percent in given["percents"]:
        for name, data in (("weights", None), ("text", batches)):
            model: Any = AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32)
            how = {"neuron_selection_method": "MAW", "pruning_percentage": percent, "expansion_divisor": 32}
            model = prune_model(model, pruning_type="MLP_GLU", dataloader=data, show_progress=False, **how)
            model.save_pretrained(f"{given['out']}/{name}-{percent}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
