"""Prove on the spot that a changed model means the same live, with a cache, and read again from disk.

Every way in which removing blocks goes wrong leaves some of these alone: a wrong cache index shows only with a cache, a
forgotten list only after a reload, a wrong mask only beyond the sliding window. So all are compared, on the logits of
random tokens, for every model that is pruned, also one whose architecture nobody has tried. It costs about ten forward
passes over a few dozen tokens, or over the sliding window where that is affordable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.errors import StageError
from paretune.variants.blocks import block_list, check_blocks, refusing, remove_blocks, skipped_blocks

SHORT = 24
"""Tokens of the short probe, which is decoded token by token from an empty cache."""
AFFORDABLE = 1024
"""Tokens of the longest probe: a sliding window beyond it is proven by the attributes of the modules alone."""
DECODED = 12
"""Tokens that are decoded one at a time around the end of the sliding window, a third of them before it."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}


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
    probe_tokens: tuple[int, ...]
    tolerance: float


def prune_blocks(model: PreTrainedModel, drop: Sequence[int], directory: Path, *, base_fingerprint: str) -> SurgeryProof:
    """Remove the blocks `drop` of `model` in place, save it into `directory`, and prove both.

    Writes config and safetensors, no tokenizer. Raises SpecError on a wrong `drop`, StageError where the architecture
    cannot be pruned or a comparison does not hold; `directory` is then not to be used.
    """
    _, blocks = block_list(model)
    dropped = check_blocks(len(blocks), drop)
    probes = make_probes(model)
    training = model.training
    model.eval()
    with skipped_blocks(model, dropped), torch.no_grad():
        reference = [model(probe, use_cache=False).logits for probe in probes]
    remove_blocks(model, dropped, base_fingerprint=base_fingerprint)
    proof = prove_saved(model, directory, probes, reference)
    model.train(training)
    return proof


def make_probes(model: PreTrainedModel) -> list[torch.Tensor]:
    """Random token ids, each of shape (1, tokens): a short row, and one that leaves the sliding window if affordable."""
    config = model.config.get_text_config(decoder=True)
    longest = min(AFFORDABLE, getattr(config, "max_position_embeddings", None) or AFFORDABLE)
    lengths = [min(SHORT, longest)]
    window = getattr(config, "sliding_window", None)
    if window is not None and SHORT < window + DECODED <= longest:
        lengths.append(window + DECODED)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    rows = [torch.randint(vocabulary, (1, length), generator=generator) for length in lengths]
    return [row.to(model.device) for row in rows]


def prove_saved(
    model: PreTrainedModel, directory: Path, probes: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]
) -> SurgeryProof:
    """Save `model` into `directory`, read it again, and compare both with `reference`, the logits meant for `probes`.

    The model is in eval mode. Raises StageError where a comparison does not hold, or weights are missing or left over.
    """
    name = type(model).__name__
    with refusing(f"`{name}` cannot compute with a cache after its change"), torch.no_grad():
        live = [model(probe, use_cache=False).logits for probe in probes]
        live_cached = [_decode(model, probe) for probe in probes]
    with refusing(f"`{name}` cannot be saved and read again after its change"), torch.no_grad():
        model.save_pretrained(directory)
        again = _read_again(model, directory)
        read = [again(probe, use_cache=False).logits for probe in probes]
        read_cached = [_decode(again, probe) for probe in probes]
    proof = SurgeryProof(
        identity=_largest_difference(live, reference),
        cache=_largest_difference(live_cached, live),
        reload=_largest_difference(read, live),
        reload_cache=_largest_difference(read_cached, read),
        probe_tokens=tuple(probe.shape[1] for probe in probes),
        tolerance=TOLERANCE[model.dtype],
    )
    _refuse_unproven(name, proof)
    return proof


def _decode(model: PreTrainedModel, probe: torch.Tensor) -> torch.Tensor:
    """Logits of `probe` (1, tokens) with a cache: the long probe is read up to the window's end, the rest one by one."""
    prefill = 1 if probe.shape[1] <= SHORT else probe.shape[1] - DECODED - DECODED // 3
    output = model(probe[:, :prefill], use_cache=True)
    logits = [output.logits]
    for index in range(prefill, probe.shape[1]):
        output = model(probe[:, index : index + 1], past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def _read_again(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    again, info = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[problem]:
            raise StageError(f"`{directory}` reloads with {problem}: {sorted(map(str, info[problem]))[:4]}")
    return again.to(model.device).eval()


def _largest_difference(logits: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    pairs = [(one.double(), other.double()) for one, other in zip(logits, expected, strict=True)]
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def _refuse_unproven(name: str, proof: SurgeryProof) -> None:
    meanings = {
        "identity": "live, against the whole model with the dropped blocks skipped",
        "cache": "live with a cache, against live without",
        "reload": "reloaded, against live",
        "reload_cache": "reloaded with a cache, against reloaded without",
    }
    for field, meaning in meanings.items():
        difference = getattr(proof, field)
        if not difference <= proof.tolerance:  # also true of a NaN
            raise StageError(
                f"`{name}` does not keep its meaning: the logits {meaning}, differ by {difference:.1e} of the largest "
                f"(tolerance {proof.tolerance:.0e}); this architecture cannot be pruned"
            )
