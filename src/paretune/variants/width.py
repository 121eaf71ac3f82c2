"""Narrow every block of a model alike: fewer channels of its MLP, or fewer heads, so that an ordinary config says it.

Both are units that one projection of each block reads on its way back to the hidden states: channels of the MLP, or heads with
the keys and values they share. What stays is chosen by how much of the projection's output it makes up on training text, by
the size of its weights, or by a first-order estimate of the loss; what leaves can be made up for by the others, in least
squares, folded into the projection. No architecture is named: a second model is built from the narrower config on the meta
device, the weights that differ are those to cut, and the projection is the module that reads fewer. What is removed is zeroed
first, in the whole model, whose logits the narrow one must then give.

Legend: C channels that a projection reads, U units of them, D width of the hidden states.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from paretune.model.adapters import count_parameters
from paretune.model.blocks import BASE_FINGERPRINT, refusing
from paretune.model.forward import along_trees, head_of
from paretune.model.load import load_model
from paretune.model.loss import loss_of
from paretune.pipeline.stage import Emit, StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import Narrower, PruneHeads, PruneMlp
from paretune.variants.calibration import Window, amount_of, read_windows, share_contexts, window_batches
from paretune.variants.cuts import Cut, Narrowing, find_cuts, narrow_heads, narrow_mlp
from paretune.variants.finish import leave
from paretune.variants.proof import SurgeryProof, compute_at_once, prove_saved

MOMENT_BYTES = 1 << 30
"""Of the second moments that are held at a time; blocks that do not fit are measured after those before them were narrowed."""
RIDGE = 1e-3
"""Of the mean second moment of the channels that stay, added to each in the least squares."""

By = Literal["activation", "magnitude", "taylor"]


def prune_mlp(context: StageContext) -> dict[str, Any]:
    """Stage body: fewer channels in every MLP; of the record, `channels_before` and `channels_after`."""
    config = context.parse(MethodConfig[PruneMlp])
    return _narrowed(context, config, lambda of: narrow_mlp(of, config.method.stay), "channels")


def prune_heads(context: StageContext) -> dict[str, Any]:
    """Stage body: fewer heads in every block; of the record, `heads_before` and `heads_after`, which count groups where heads
    share keys and values, and `removed_heads` of each block."""
    config = context.parse(MethodConfig[PruneHeads])
    return _narrowed(context, config, lambda of: narrow_heads(of, config.method.count), "heads")


def _narrowed(
    context: StageContext, config: MethodConfig[Any], narrower: Callable[[PreTrainedConfig], Narrowing], noun: str
) -> dict[str, Any]:
    method: Narrower = config.method
    loaded = load_model(context, torch.float32)
    before, _ = count_parameters(loaded.model)
    windows = read_windows(context, config, loaded.tokenizer.prefix_id) if method.reads_text else []
    narrowing = narrower(loaded.model.config)
    model, scores, kept, proof = narrow(
        loaded.model,
        narrowing,
        windows,
        context.draft,
        by=method.by,
        compensate=method.compensate,
        base_fingerprint=config.base.digest,
        forward_tokens=context.options.forward_tokens,
        emit=context.emit,
    )
    table = {
        "block": np.repeat(np.arange(len(scores)), narrowing.units),
        "unit": np.tile(np.arange(narrowing.units), len(scores)),
        "score": torch.cat(scores).double().numpy(),
        "kept": torch.cat([torch.isin(torch.arange(narrowing.units), keep) for keep in kept]).numpy(),
    }
    pq.write_table(pa.table(table), context.draft / "unit_scores.parquet")
    removed = [sorted({*range(narrowing.units)} - {*keep.tolist()}) for keep in kept]
    return {
        f"{noun}_before": narrowing.units,
        f"{noun}_after": narrowing.keep,
        **({"removed_heads": removed} if noun == "heads" else {}),
        **amount_of(windows),
        **leave(context, model, loaded.tokenizer, before, proof),
    }


@torch.no_grad()
def narrow(
    model: PreTrainedModel,
    narrowing: Narrowing,
    windows: Sequence[Window],
    directory: Path,
    *,
    by: By,
    compensate: bool,
    base_fingerprint: str,
    forward_tokens: int,
    emit: Emit = lambda **_: None,
) -> tuple[PreTrainedModel, list[torch.Tensor], list[torch.Tensor], SurgeryProof]:
    """The narrower model, saved into `directory` and proven; of each block the importance of all units, and those kept.

    `model` is in evaluation mode and holds zeros for what was removed afterwards. `windows` are only read where they matter.
    """
    cuts = find_cuts(model, narrowing)
    scores = _magnitudes(model, cuts, narrowing.units) if by == "magnitude" else []
    if by == "taylor":
        scores = loss_slopes(model, [cut.projection for cut in cuts], [cut.channels_C for cut in cuts], windows, emit=emit)
    kept: list[torch.Tensor] = []
    at_once = max(1, MOMENT_BYTES // (4 * len(cuts[0].channels_C) ** 2))
    for start in range(0, len(cuts), at_once):
        group = cuts[start : start + at_once]
        moments = [None] * len(group)
        if by == "activation" or compensate:
            moments = second_moments(model, [cut.projection for cut in group], windows, forward_tokens, emit)
        for cut, moment_CC in zip(group, moments, strict=True):
            if by == "activation":
                scores.append(_output_norms(cut, moment_CC, narrowing.units))
            best = scores[len(kept)].argsort(descending=True, stable=True)[: narrowing.keep]
            kept.append(best.sort().values)
            _zero(cut, kept[-1], moment_CC if compensate else None)
    reference = compute_at_once(model)
    stays = {
        name: (dim, (torch.isin(units, keep) | (units < 0)).nonzero()[:, 0])
        for cut, keep in zip(cuts, kept, strict=True)
        for name, (dim, units) in cut.weights.items()
    }
    smaller = built(model, narrowing.config, stays, base_fingerprint)
    return smaller, scores, kept, prove_saved(smaller, directory, reference)


@torch.no_grad()
def second_moments(
    model: PreTrainedModel, projections: Sequence[nn.Module], windows: Sequence[Window], forward_tokens: int, emit: Emit
) -> list[torch.Tensor]:
    """Of what each projection reads, over all tokens of `windows`: the mean of x x^T, float32 [C, C]."""
    sums: dict[nn.Module, torch.Tensor] = {}
    held_P = torch.zeros(0)

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        rows_NC = args[0].flatten(0, -2).index_select(0, held_P).float()
        product_CC = rows_NC.T @ rows_NC
        sums[module] = sums[module].add_(product_CC) if module in sums else product_CC

    handles = [projection.register_forward_pre_hook(add) for projection in projections]
    done = num_tokens = 0
    try:
        for numbers, batch in window_batches(
            model, windows, forward_tokens=forward_tokens, trees=share_contexts(model, windows)
        ):
            emit(done=done, total=sum(len(window.examples) for window in windows), part="measuring what is read")
            held_P = batch.held_P
            with along_trees(model, batch):
                model.base_model(input_ids=batch.ids_RT, use_cache=False)
            done, num_tokens = done + len(numbers), num_tokens + len(held_P)
    finally:
        for handle in handles:
            handle.remove()
    return [sums[projection] / num_tokens for projection in projections]


def loss_slopes(
    model: PreTrainedModel,
    projections: Sequence[nn.Module],
    units_of: Sequence[torch.Tensor],
    windows: Sequence[Window],
    *,
    emit: Emit = lambda **_: None,
) -> list[torch.Tensor]:
    """First-order importance of the units that projections read: by how much the loss of each window would change if a unit
    were taken away, were it linear; the mean of the absolute values over windows (Molchanov et al. 2019, arXiv 1906.10771)."""
    gates = [torch.ones(int(units.max()) + 1, device=model.device, requires_grad=True) for units in units_of]
    slopes = [torch.zeros_like(gate) for gate in gates]
    loss, trees = loss_of(head_of(model.requires_grad_(False)), model.dtype), share_contexts(model, windows)

    @contextmanager
    def gated() -> Iterator[None]:
        handles = []
        for projection, gate, units in zip(projections, gates, units_of, strict=True):

            def multiply(_: nn.Module, args: tuple[Any, ...], gate: Any = gate, units: Any = units) -> tuple[Any, ...]:
                return (args[0] * gate.to(args[0].dtype)[units.to(gate.device)], *args[1:])

            handles.append(projection.register_forward_pre_hook(multiply))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    with torch.enable_grad(), gated():
        for done, window in enumerate(windows):
            emit(done=done, total=len(windows), part="measuring slopes of the loss")
            of_window = [torch.zeros_like(gate) for gate in gates]
            for _, batch in window_batches(model, [window], forward_tokens=1, trees=trees):
                with along_trees(model, batch):
                    hidden_RTD = model.base_model(input_ids=batch.ids_RT, use_cache=False).last_hidden_state
                    nats, _ = loss(hidden_RTD.flatten(0, 1).index_select(0, batch.hidden_N), batch.targets_N)
                    for slope, gradient in zip(of_window, torch.autograd.grad(nats, gates), strict=True):
                        slope += gradient
            for slope, gradient in zip(slopes, of_window, strict=True):
                slope += gradient.abs()
    return [slope.cpu() / len(windows) for slope in slopes]


def _magnitudes(model: PreTrainedModel, cuts: Sequence[Cut], num_units: int) -> list[torch.Tensor]:
    """The norm of all weights that belong to each unit."""
    weights, norms = model.state_dict(), []
    for cut in cuts:
        squares = torch.zeros(num_units, dtype=torch.float64)
        for key, (dim, units) in cut.weights.items():
            of_index = weights[key].double().square().movedim(dim, 0).reshape(len(units), -1).sum(1).cpu()
            squares.index_add_(0, units[units >= 0], of_index[units >= 0])
        norms.append(squares.sqrt())
    return norms


def _output_norms(cut: Cut, moment_CC: torch.Tensor, num_units: int) -> torch.Tensor:
    """Root mean square of what each unit adds to the projection's output, sqrt(tr(W_u M_uu W_u^T)): of a channel, the size of
    its activation times the norm of its weights."""
    of_unit = (num_units, len(cut.channels_C) // num_units)
    moments_UCC = moment_CC.double().unflatten(0, of_unit).unflatten(2, of_unit).diagonal(dim1=0, dim2=2).movedim(2, 0)
    weights_UDC = cut.matrix_DC().double().unflatten(1, of_unit).movedim(1, 0)
    return torch.einsum("udc,uce,ude->u", weights_UDC, moments_UCC, weights_UDC).clamp_min(0).sqrt().cpu()


def _zero(cut: Cut, keep: torch.Tensor, moment_CC: torch.Tensor | None) -> None:
    """Let the projection read nothing of the units that leave; with second moments, let the others stand in for them.

    W' = W_K + W_L M_LK (M_KK + ridge)^-1, K the channels that stay and L those that leave, minimises E |W x - W' x_K|^2 with a
    small ridge on what is changed.
    """
    matrix_DC = cut.matrix_DC()
    stays_C = torch.isin(cut.channels_C, keep).to(matrix_DC.device)
    if moment_CC is not None:
        moment = moment_CC.double()
        among_KK, gone_LK = moment[stays_C][:, stays_C], moment[~stays_C][:, stays_C]
        among_KK.diagonal().add_(RIDGE * among_KK.diagonal().mean().clamp_min(1e-30))
        made_up_LK = torch.linalg.solve(among_KK, gone_LK.T).T
        matrix_DC[:, stays_C] += (matrix_DC[:, ~stays_C].double() @ made_up_LK).to(matrix_DC.dtype)
    matrix_DC[:, ~stays_C] = 0


def built(
    model: PreTrainedModel, config: PreTrainedConfig, cuts: Mapping[str, tuple[int, torch.Tensor]], base_fingerprint: str
) -> PreTrainedModel:
    """A model of `config` with the weights of `model`, in its precision and on its device; `cuts` are, by name, the dimension
    of a weight that is cut and the indices of it that stay."""
    if getattr(config, BASE_FINGERPRINT, None) is None:
        setattr(config, BASE_FINGERPRINT, base_fingerprint)
    weights = model.state_dict()
    for name, (dim, index) in cuts.items():
        weights[name] = weights[name].index_select(dim, index.to(weights[name].device))
    with refusing(f"cannot narrow `{type(model).__name__}`"), torch.random.fork_rng(devices=[]):
        smaller = type(model)(config).to(model.device, model.dtype).eval()
        smaller.load_state_dict(weights)
    smaller.generation_config = model.generation_config
    return smaller
