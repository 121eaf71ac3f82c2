"""The contract of removing blocks, measured with code of its own: the largest logit difference of each comparison.

`python -m tests.surgery_table` prints one row for each architecture of `tests.tiny`, the worst over dropping block 0, a
middle one, the last, and two together. Sequences are longer than the sliding window.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from paretune.model.blocks import remove_blocks
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, SLIDING_WINDOW, make_model

DROPS = ([0], [1], [NUM_BLOCKS - 1], [0, 2])
TOKENS = 2 * SLIDING_WINDOW + 5
COMPARISONS = ("identity", "cache", "reload", "reload cache", "generate", "adapter", "adapter cache", "merged")


def measure_surgery(base: Path, drop: Sequence[int], directory: Path) -> dict[str, float]:
    """Drop blocks of the model in `base`, with intermediate models in `directory`; difference by name of comparison.

    identity: live against the whole model with the dropped blocks replaced by the identity. cache: token by token against
    all at once. reload, reload cache: the same after saving. generate: tokens that differ between greedy decoding with
    the cache and without. adapter, adapter cache: a LoRA adapter on the pruned model, saved and loaded again, against
    live. merged: the adapter merged, saved and reloaded, against live.
    """
    live = _load(base)
    remove_blocks(live, drop, base_fingerprint="base")
    return measure_change(live, _with_identity(_load(base), drop), directory)


def measure_change(live: PreTrainedModel, same: nn.Module, directory: Path) -> dict[str, float]:
    """The same comparisons for any changed model and the whole one that should give its logits."""
    torch.manual_seed(0)
    tokens = torch.randint(2, live.config.vocab_size, (2, TOKENS))
    reference = _at_once(same, tokens)
    live.save_pretrained(directory / "pruned")
    reloaded = _load(directory / "pruned")
    live_logits, reloaded_logits = _at_once(live, tokens), _at_once(reloaded, tokens)
    differences = {
        "identity": _difference(live_logits, reference),
        "cache": _difference(_one_by_one(live, tokens), live_logits),
        "reload": _difference(reloaded_logits, live_logits),
        "reload cache": _difference(_one_by_one(reloaded, tokens), reloaded_logits),
        "generate": (_generated(reloaded, tokens, use_cache=True) != _generated(live, tokens, use_cache=False)).sum(),
    }
    return {name: float(value) for name, value in (differences | _measure_adapter(live, directory, tokens)).items()}


def _measure_adapter(live: PreTrainedModel, directory: Path, tokens: torch.Tensor) -> dict[str, float]:
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(live, config).eval()
    expected = _at_once(adapted, tokens)
    adapted.save_pretrained(directory / "adapter")
    attached = PeftModel.from_pretrained(_load(directory / "pruned"), directory / "adapter").eval()
    cached = _one_by_one(attached, tokens)
    attached_logits = _at_once(attached, tokens)
    attached.merge_and_unload().save_pretrained(directory / "merged")
    return {
        "adapter": _difference(attached_logits, expected),
        "adapter cache": _difference(cached, expected),
        "merged": _difference(_one_by_one(_load(directory / "merged"), tokens), expected),
    }


def _load(directory: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def _with_identity(model: PreTrainedModel, drop: Sequence[int]) -> PreTrainedModel:
    """The whole model with the dropped blocks replaced by one that returns its input, as a tuple where blocks do."""

    class Identity(nn.Module):
        def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return hidden_states

    blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    for index in drop:
        blocks[index] = Identity()
    return model


@torch.no_grad()
def _at_once(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, use_cache=False).logits


@torch.no_grad()
def _one_by_one(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    output = model(tokens[:, :5], use_cache=True)
    logits = [output.logits]
    for index in range(5, tokens.shape[1]):
        output = model(tokens[:, index : index + 1], past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def _generated(model: PreTrainedModel, tokens: torch.Tensor, *, use_cache: bool) -> torch.Tensor:
    lengths = {"min_new_tokens": SLIDING_WINDOW, "max_new_tokens": SLIDING_WINDOW}
    mask = torch.ones_like(tokens[:, :5])
    return model.generate(tokens[:, :5], attention_mask=mask, do_sample=False, use_cache=use_cache, pad_token_id=0, **lengths)


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def write_table() -> None:
    sys.stdout.write(f"{'architecture':22}" + "".join(f"{name:>15}" for name in COMPARISONS) + "\n")
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            base = make_model(architecture, Path(folder) / "base")
            rows = [measure_surgery(base, drop, Path(folder) / str(index)) for index, drop in enumerate(DROPS)]
        worst = {name: max(row[name] for row in rows) for name in COMPARISONS}
        sys.stdout.write(f"{architecture:22}" + "".join(f"{worst[name]:15.1e}" for name in COMPARISONS) + "\n")


if __name__ == "__main__":
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    write_table()
