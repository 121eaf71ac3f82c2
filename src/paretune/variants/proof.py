"""Prove on the spot that a changed model means the same live, with a cache, and read again from disk.

Every way in which removing blocks goes wrong leaves some of these alone: a wrong cache index shows only with a cache, a
forgotten list only after a reload, a wrong mask only beyond the sliding window. So all are compared, on the logits of
random tokens, for every model that is pruned, also one whose architecture nobody has tried. Sliding windows are narrowed
for the occasion, so that a few tokens leave them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.errors import StageError
from paretune.model.blocks import block_list, check_blocks, refusing, remove_blocks, skipped_blocks

TOKENS = 16
"""Of the probe, which is computed at once and one by one."""
NARROW = 8
"""Tokens that a sliding window or an attention chunk has for the second half of the proof."""
WINDOWS = ("sliding_window", "attention_chunk_size")
"""What transformers calls them, in configs and in modules."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Rounding alone, with a cache against without, over 28 blocks: 2e-6 in float32, 3e-3 in float16, 2e-2 in bfloat16. Real
weights may amplify it further, so it is this or what the model shows, up to the largest: a wrong scale moves logits by 4e-2."""
_OPERATIONS = 16
"""Of a block, that round; the noise that shows how a model amplifies rounding stands for one of them."""

_COMPARED = {
    "identity": "live, against the whole model with the dropped blocks skipped",
    "cache": "live with a cache, against live without",
    "reload": "reloaded, against live",
    "reload_cache": "reloaded with a cache, against reloaded without",
}
"""Fields of the proof, and what is compared."""


@dataclass(frozen=True)
class SurgeryProof:
    """Largest differences of logits, relative to the largest logit of the model without its dropped blocks."""

    identity: float
    """live without cache, against the full model whose dropped blocks return their input"""
    cache: float
    """live token by token with a cache, against live without"""
    reload: float
    """saved and reloaded without cache, against live without"""
    reload_cache: float
    """saved and reloaded token by token with a cache, against the same without"""
    left_window: bool
    """the model has a sliding window, and all was compared beyond it too"""
    tolerance: float


def prune_blocks(model: PreTrainedModel, drop: Sequence[int], directory: Path, *, base_fingerprint: str) -> SurgeryProof:
    """Remove the blocks `drop` of `model` in place, save it into `directory`, and prove both.

    Writes config and safetensors, no tokenizer. Raises SpecError on a wrong `drop`, StageError where the architecture
    cannot be pruned or a comparison does not hold; `directory` is then not to be used.
    """
    training = model.training
    model.eval()
    reference = _without(model, drop, base_fingerprint)
    proof = prove_saved(model, directory, reference)
    model.train(training)
    return proof


def skip_blocks(model: PreTrainedModel, drop: Sequence[int], *, base_fingerprint: str) -> float:
    """The same of a model in evaluation mode that is not saved; the largest difference."""
    reference = _without(model, drop, base_fingerprint)
    with refusing(f"`{type(model).__name__}` cannot compute with a cache after its change"):
        live, cached = compute_at_once(model), compute_one_by_one(model)
    compared = {"identity": largest_difference(live, reference), "cache": largest_difference(cached, live)}
    _refuse(model, compared, tolerance_of(model, live))
    return max(compared.values())


def _without(model: PreTrainedModel, drop: Sequence[int], base_fingerprint: str) -> torch.Tensor:
    """Remove the blocks `drop` in place; what `compute_at_once` gave where they returned their input."""
    dropped = check_blocks(len(block_list(model)[1]), drop)
    with refusing(f"`{type(model).__name__}` cannot compute without blocks {list(dropped)}"), skipped_blocks(model, dropped):
        reference = compute_at_once(model)
    remove_blocks(model, dropped, base_fingerprint=base_fingerprint)
    return reference


def prove_saved(model: PreTrainedModel, directory: Path, reference: torch.Tensor) -> SurgeryProof:
    """Save `model` into `directory`, read it again, and compare both with `reference`, as `compute_at_once` gives it.

    The model is in eval mode. Raises StageError where a comparison does not hold, or weights are missing or left over.
    """
    name = type(model).__name__
    with refusing(f"`{name}` cannot compute with a cache after its change"):
        live, live_cached = compute_at_once(model), compute_one_by_one(model)
    with refusing(f"`{name}` cannot be saved and read again after its change"):
        model.save_pretrained(directory)
        again, info = AutoModelForCausalLM.from_pretrained(
            directory, dtype=model.dtype, attn_implementation=model.config._attn_implementation, output_loading_info=True
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if info[problem]:
                raise StageError(f"`{directory}` reloads with {problem}: {sorted(map(str, info[problem]))[:4]}")
        again.to(model.device).eval()
        read, read_cached = compute_at_once(again), compute_one_by_one(again)
    proof = SurgeryProof(
        identity=largest_difference(live, reference),
        cache=largest_difference(live_cached, live),
        reload=largest_difference(read, live),
        reload_cache=largest_difference(read_cached, read),
        left_window=bool(windows_of(model)),
        tolerance=tolerance_of(model, live),
    )
    _refuse(model, {field: getattr(proof, field) for field in _COMPARED}, proof.tolerance)
    return proof


def _refuse(model: PreTrainedModel, compared: Mapping[str, float], tolerance: float) -> None:
    for field, difference in compared.items():
        if not difference <= tolerance:  # also true of a NaN
            raise StageError(
                f"`{type(model).__name__}` does not keep its meaning: the logits {_COMPARED[field]}, differ by "
                f"{difference:.1e} of the largest (tolerance {tolerance:.0e}); this architecture cannot be pruned"
            )


@torch.no_grad()
def tolerance_of(model: PreTrainedModel, live: torch.Tensor) -> float:
    """How far two computations of the logits `live` of `compute_at_once` may differ by rounding, relative to the largest: by
    what one rounding of the states before each block, drawn at random, does to them."""
    generator, epsilon = torch.Generator().manual_seed(0), torch.finfo(model.dtype).eps

    def round_anew(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs["hidden_states"]
        noise = torch.rand(states.shape, generator=generator).to(states)
        rounded = states * (1 + epsilon * (noise - 0.5))
        return ((rounded, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": rounded})

    handles = [block.register_forward_pre_hook(round_anew, with_kwargs=True) for block in block_list(model)[1]]
    try:
        shown = _OPERATIONS * largest_difference(compute_at_once(model), live)
    finally:
        for handle in handles:
            handle.remove()
    return max(TOLERANCE[model.dtype], min(shown, max(TOLERANCE.values())))


@torch.no_grad()
def compute_at_once(model: PreTrainedModel, probe: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of the probe without a cache, shape (1, tokens, vocabulary), once more with narrow windows if it has any."""
    probe = probe_of(model) if probe is None else probe
    wide = model(probe, use_cache=False).logits
    if not windows_of(model):
        return wide
    with narrow_windows(model):
        return torch.cat([wide, model(probe, use_cache=False).logits])


@torch.no_grad()
def compute_one_by_one(model: PreTrainedModel) -> torch.Tensor:
    """Logits of the probe, as `compute_at_once` gives them, token after token with a cache; with narrow windows the first few
    at once, as a prompt is."""
    probe = probe_of(model)
    wide = _decode(model, probe, prompt=1)
    if not windows_of(model):
        return wide
    with narrow_windows(model):
        return torch.cat([wide, _decode(model, probe, prompt=NARROW // 2)])


def _decode(model: PreTrainedModel, probe: torch.Tensor, *, prompt: int) -> torch.Tensor:
    output = model(probe[:, :prompt], use_cache=True)
    logits = [output.logits]
    for index in range(prompt, probe.shape[1]):
        output = model(probe[:, index : index + 1], past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def probe_of(model: PreTrainedModel) -> torch.Tensor:
    """Random token ids, shape (1, tokens), the same for models of one vocabulary."""
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or TOKENS
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, min(TOKENS, longest)), generator=generator).to(model.device)


def windows_of(model: PreTrainedModel) -> list[tuple[Any, str]]:
    """Config and modules that hold the length of a window, with the name of the attribute."""
    holders = (model.config.get_text_config(decoder=True), *model.modules())
    return [(holder, name) for holder in holders for name in WINDOWS if type(vars(holder).get(name)) is int]


@contextmanager
def narrow_windows(model: PreTrainedModel) -> Iterator[None]:
    """Sliding windows and chunks of `NARROW` tokens at most, as they were afterwards."""
    before = [(holder, name, getattr(holder, name)) for holder, name in windows_of(model)]
    try:
        for holder, name, window in before:
            setattr(holder, name, min(window, NARROW))
        yield
    finally:
        for holder, name, window in before:
            setattr(holder, name, window)


def largest_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest of `expected`."""
    return ((logits.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
