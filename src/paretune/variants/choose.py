"""Which blocks to remove, measured on training text: by the loss without them, or by how little they turn the hidden states.

`loss` goes by a budget (`paretune.pipeline.block_search`): where it pays for all sets, they are tried, exactly, in one walk
over the depth (`walk.py`), else candidates race (`race.py`). Asked for all, it tries all sets of one or two blocks, and of more
where they are few, else one after the other, each time the one whose absence costs least (as SLEB, arXiv 2402.09025).
`influence` (ShortGPT, arXiv 2403.03853) and `angular` (arXiv 2403.17887) look at the whole model's hidden states alone; both
are means over all predicting positions here.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from paretune.data.trees import Batch
from paretune.errors import StageError
from paretune.model.blocks import block_list, check_count
from paretune.model.forward import SLOW, along_trees, head_of
from paretune.model.load import load_model
from paretune.model.loss import loss_of, token_nats
from paretune.pipeline.block_search import (
    LEAST_DOCUMENTS,
    exhaustive,
    live_passes,
    num_calls,
    num_removed,
    num_sets,
    race_passes,
    round_ends,
    runs_of,
    search_passes,
)
from paretune.pipeline.stage import Emit, StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.variants.calibration import (
    Window,
    amount_of,
    document_numbers,
    read_windows,
    share_contexts,
    window_batches,
    write_block_scores,
)
from paretune.variants.race import Race, paired_low
from paretune.variants.walk import Removed, agrees, block_inputs, live_removals, make_walk, sets_of

STATE_BYTES = 1 << 29
"""Of the hidden states that a walk holds at a time."""

RESAMPLES = 1000
"""Of the documents, that a choice is made on again."""

Scores = dict[Removed, np.ndarray]
"""By the blocks removed: the sum over each window's targets (float64, in the order of the windows)."""


@dataclass(frozen=True, eq=False)
class Choice:
    removed: Removed
    scores: Scores
    computed: Literal["walk", "one by one", "states"]
    """All removals in one walk; each by itself, where the architecture cannot be walked; no removals, but hidden states."""
    tried: Literal["all sets", "one at a time", "race", "runs", "blocks"]
    search: Mapping[str, Any] = field(default_factory=dict)
    """Of a race, what it took and how far it came."""


def choose_measured(context: StageContext, config: MethodConfig[Any]) -> tuple[Removed, dict[str, Any]]:
    """The blocks that a stage's config asks for by a measured choice, and what the record says of it.

    Leaves `block_scores.parquet`. SpecError if `count` does not fit the model.
    """
    method, started = config.method, time.perf_counter()
    loaded = load_model(context)
    windows = read_windows(context, config, loaded.tokenizer.prefix_id)
    num_blocks = len(block_list(loaded.model)[1])
    count = check_count(num_blocks, num_removed(method.model_dump(mode="json"), num_blocks))
    if method.choose == "loss":
        how = {"forward_tokens": context.options.forward_tokens, "emit": context.emit}
        head = head_passes(loaded.model)
        first = round_ends(document_numbers(windows)[1].tolist())[0] / len(windows)
        way, passes = search_passes(num_blocks, method.model_dump(mode="json"), head, first)
        if way == "race":
            minutes = method.budget.minutes if method.budget else None
            choice = race_by_loss(loaded.model, windows, count, passes=passes, minutes=minutes, protect=method.protect, **how)
        elif way == "runs":
            choice = choose_run(loaded.model, windows, runs_of(num_blocks, count, method.protect), emit=context.emit)
        else:
            choice = choose_by_loss(loaded.model, windows, count, protect=method.protect, **how)
    else:
        given = {"protect": method.protect, "contiguous": method.contiguous, "emit": context.emit}
        choice = choose_by_turn(loaded.model, windows, count, choose=method.choose, **given)
    write_block_scores(choice.scores, choice.removed, windows, context)
    means = mean_scores(choice.scores, windows)
    if broken := [list(removed) for removed, score in means.items() if not math.isfinite(score)]:
        raise StageError(
            f"without blocks {broken[0]} the model's {method.choose} is no finite number in {config.precision}; "
            "write `precision: {evaluate: float32}`, or name the blocks"
        )
    return choice.removed, {
        "computed": choice.computed,
        "tried": choice.tried,
        **amount_of(windows),
        **({"search": dict(choice.search)} if choice.search else {}),
        **stability(choice, windows, method.contiguous or method.choose == "angular"),
        "choice_seconds": time.perf_counter() - started,
        "block_scores": [{"removed": list(removed), "score": score} for removed, score in means.items()],
    }


def choose_random(num_blocks: int, count: int, seed: int, protect: Sequence[int] = ()) -> Removed:
    """`count` blocks drawn without replacement, of those that are not protected."""
    free = [block for block in range(num_blocks) if block not in protect]
    drawn = np.random.default_rng(seed).choice(free, check_count(num_blocks, count), replace=False)
    return tuple(sorted(int(index) for index in drawn))


@torch.no_grad()
def choose_by_loss(
    model: PreTrainedModel,
    windows: Sequence[Window],
    count: int,
    *,
    forward_tokens: int,
    protect: Sequence[int] = (),
    state_bytes: int = STATE_BYTES,
    emit: Emit = lambda **_: None,
) -> Choice:
    """The set of `count` blocks, none of them protected, without which the mean loss of `windows` is lowest, and all scores.

    The model is in evaluation mode. The whole model and the smaller sets on the way are among the scores. `forward_tokens`
    and `state_bytes` bound memory and move float rounding only.
    """
    num_blocks = len(block_list(model)[1])
    walk = make_walk(model, forward_tokens=forward_tokens)
    # Rows through a block, of all that there will be; of an architecture that cannot be walked, rows through the whole model.
    progress = {"done": 0, "total": 0}

    def tell(rows: int) -> None:
        progress["done"] += rows
        emit(**progress, part="choosing blocks")

    free = [block for block in range(num_blocks) if block not in protect]
    exact = exhaustive(len(free), count) == "all sets"
    at_once, rounds = (count, 1) if exact else (1, count)
    is_walked = agrees(walk, at_once)
    if not is_walked:
        SLOW.warning("each removal is computed by itself: the blocks of %s do not compute apart", type(model).__name__)
    removals = replace(walk, emit=tell).removals if is_walked else partial(_live_removals, model)
    if is_walked:
        each = [num_calls(num_blocks - turn, at_once, () if turn else protect) for turn in range(rounds)]
    else:
        each = [num_sets(len(free) - turn, at_once) for turn in range(rounds)]
    batches = list(_batches(model, windows, num_blocks, state_bytes, share_contexts(model, windows)))
    progress["total"] = sum(len(batch.ids_RT) for _, batch in batches) * sum(each)
    tell(0)
    head = head_of(model)
    scores: Scores = {}
    removed: Removed = ()
    for _ in range(rounds):
        remaining = [block for block in range(num_blocks) if block not in removed]
        sums: Scores = {}
        for numbers, batch in batches:
            with along_trees(model, batch):
                for without, final_RTD in removals(batch.ids_RT, remaining, at_once, [b for b in free if b not in removed]):
                    nats_N = token_nats(head, _predicting(final_RTD, batch), batch.targets_N)[0]
                    np.add.at(sums.setdefault(without, np.zeros(len(windows))), numbers, _sums(nats_N, batch))
                    tell(0 if is_walked else len(batch.ids_RT))
        scores |= sums
        size = len(removed) + at_once
        removed = min((without for without in sums if len(without) == size), key=lambda without: sums[without].sum())
    return Choice(removed, scores, "walk" if is_walked else "one by one", "all sets" if exact else "one at a time")


@torch.no_grad()
def race_by_loss(
    model: PreTrainedModel,
    windows: Sequence[Window],
    count: int,
    *,
    passes: float,
    forward_tokens: int,
    minutes: float | None = None,
    protect: Sequence[int] = (),
    state_bytes: int = STATE_BYTES,
    emit: Emit = lambda **_: None,
) -> Choice:
    """The set of `count` blocks that a race within `passes` passes, or `minutes`, finds, and the scores of all that took part.

    The model is in evaluation mode. With `minutes` the answer depends on the machine.
    """
    num_blocks, trees = len(block_list(model)[1]), share_contexts(model, windows)
    walk = make_walk(model, forward_tokens=forward_tokens)
    is_walked = agrees(walk, 1)
    if not is_walked:
        SLOW.warning("each removal is computed by itself: the blocks of %s do not compute apart", type(model).__name__)
    head, began = head_of(model), time.monotonic()

    def measure(part: Sequence[int], remaining: Sequence[int], among: Sequence[int]) -> Scores:
        batches = list(_batches(model, [windows[index] for index in part], num_blocks, state_bytes, trees))
        rows, of_part = 0, sum(len(batch.ids_RT) for _, batch in batches)

        def tell(count: int) -> None:
            nonlocal rows
            rows += count
            spent = race.spent + rows / of_part * len(part) / len(windows)
            if minutes is None:
                emit(done=round(min(spent, passes)), total=round(passes), part="choosing blocks")
            else:
                emit(done=round(time.monotonic() - began), total=round(60 * minutes), part="choosing blocks")

        sums: Scores = {}
        gone = [block for block in range(num_blocks) if block not in remaining]
        sets = [tuple(sorted(gone)), *(tuple(sorted((*gone, block))) for block in among)]
        for numbers, batch in batches:
            with along_trees(model, batch):
                walked = replace(walk, emit=tell).removals(batch.ids_RT, remaining, 1, among)
                for without, final_RTD in walked if is_walked else live_removals(model, batch.ids_RT, sets):
                    nats_N = token_nats(head, _predicting(final_RTD, batch), batch.targets_N)[0]
                    np.add.at(sums.setdefault(without, np.zeros(len(part))), numbers, _sums(nats_N, batch))
        return sums

    race = Race(
        num_blocks=num_blocks,
        documents=document_numbers(windows)[1],
        tokens=np.array([window.num_targets for window in windows]),
        measure=measure,
        head=head_passes(model),
        passes=passes,
        cost=race_passes if is_walked else live_passes,
        protect=tuple(protect),
        deadline=math.inf if minutes is None else began + 60 * minutes,
    )
    removed = race.search(count)
    num_measured = sum(len(without) == count for without in race.scores)
    search = {
        "passes": round(race.spent, 1),
        "budget": {"minutes": minutes} if minutes else {"passes": passes},
        "races": race.races,
        "sets_of_this_size": math.comb(num_blocks - len(protect), count),
        "sets_measured": num_measured,
        "alike_at_the_end": race.alike,
        "cut_short": race.cut_short,
        "share_of_text": len(race.scores[removed]) / len(windows),
    }
    told = f"raced {num_measured} of {search['sets_of_this_size']} sets on up to {search['share_of_text']:.0%} of the text"
    told += ", until the budget ended" if race.cut_short else ""
    if race.documents.max() + 1 < LEAST_DOCUMENTS:
        told += f"; none was dropped, as of fewer than {LEAST_DOCUMENTS} documents there is no interval"
    emit(done=0, total=1, part=f"{told}; another may do better (`budget: {{search: all}}` tries all)")
    return Choice(removed, race.scores, "walk" if is_walked else "one by one", "race", search)


def head_passes(model: PreTrainedModel) -> float:
    """What a call of the head takes, in calls of a block, by their weights."""
    block, head = block_list(model)[1][0], model.get_output_embeddings()
    return float(sum(p.numel() for p in head.parameters()) / sum(p.numel() for p in block.parameters()))


@torch.no_grad()
def choose_by_turn(
    model: PreTrainedModel,
    windows: Sequence[Window],
    count: int,
    *,
    choose: str,
    protect: Sequence[int] = (),
    contiguous: bool = False,
    state_bytes: int = STATE_BYTES,
    emit: Emit = lambda **_: None,
) -> Choice:
    """`influence`: the `count` blocks with the smallest 1 - cosine of what goes in and comes out. `taylor`: those without which
    the loss would be lowest, were it linear. `angular`: the run of `count` blocks with the smallest angle between them, over
    pi. The blocks are none that is protected, and a run where they are to be contiguous."""
    num_blocks = len(block_list(model)[1])
    span = count if choose == "angular" else 1
    runs = runs_of(num_blocks, span, protect)
    if choose == "taylor":
        slopes = block_slopes(model, windows, emit=emit)
        return _lowest({run: slopes[run[0]] for run in runs}, count, num_blocks, protect, contiguous)
    scores = {run: np.zeros(len(windows)) for run in runs}
    done, total = 0, sum(len(window.examples) for window in windows)
    emit(done=0, total=total, part="choosing blocks")
    for numbers, batch in _batches(model, windows, num_blocks, state_bytes, share_contexts(model, windows)):
        with along_trees(model, batch):
            states = [_predicting(states_RTD, batch).float() for states_RTD in block_inputs(model, batch.ids_RT)]
        for run in runs:
            cosine_N = functional.cosine_similarity(states[run[0]], states[run[-1] + 1], dim=-1).clamp(-1, 1)
            turn_N = torch.arccos(cosine_N) / math.pi if choose == "angular" else 1 - cosine_N
            np.add.at(scores[run], numbers, _sums(turn_N, batch))
        done += len(numbers)
        emit(done=done, total=total, part="choosing blocks")
    if choose == "angular":
        return Choice(min(runs, key=lambda run: scores[run].sum()), scores, "states", "runs")
    return _lowest(scores, count, num_blocks, protect, contiguous)


def _lowest(scores: Scores, count: int, num_blocks: int, protect: Sequence[int], contiguous: bool) -> Choice:
    """The blocks with the lowest scores, or the run of them with the lowest sum."""
    totals = {run[0]: sums.sum() for run, sums in scores.items()}
    if contiguous:
        removed = min(runs_of(num_blocks, count, protect), key=lambda run: sum(totals[block] for block in run))
    else:
        removed = tuple(sorted(sorted(totals, key=lambda block: totals[block])[:count]))
    return Choice(removed, scores, "states", "blocks")


@torch.no_grad()
def choose_run(
    model: PreTrainedModel, windows: Sequence[Window], runs: Sequence[Removed], *, emit: Emit = lambda **_: None
) -> Choice:
    """The run without which the mean loss is lowest, each left out by itself, and their scores and that of the whole model."""
    num_blocks, head, done = len(block_list(model)[1]), head_of(model), 0
    sets = [(), *runs]
    scores: Scores = {without: np.zeros(len(windows)) for without in sets}
    total = len(sets) * sum(len(window.examples) for window in windows)
    for numbers, batch in _batches(model, windows, num_blocks, STATE_BYTES, share_contexts(model, windows)):
        with along_trees(model, batch):
            for without, final_RTD in live_removals(model, batch.ids_RT, sets):
                emit(done=done, total=total, part="choosing blocks")
                nats_N = token_nats(head, _predicting(final_RTD, batch), batch.targets_N)[0]
                np.add.at(scores[without], numbers, _sums(nats_N, batch))
                done += len(numbers)
    return Choice(min(runs, key=lambda run: scores[run].sum()), scores, "one by one", "runs")


def block_slopes(model: PreTrainedModel, windows: Sequence[Window], *, emit: Emit = lambda **_: None) -> list[np.ndarray]:
    """Of each block the loss that each window would gain without it, were the loss linear in what the block adds: minus the
    slope of the loss in a factor of that, at 1."""
    blocks, loss = block_list(model)[1], loss_of(head_of(model.requires_grad_(False)), model.dtype)
    gates = torch.ones(len(blocks), device=model.device, requires_grad=True)
    slopes, trees = np.zeros((len(blocks), len(windows))), share_contexts(model, windows)

    def scaled(index: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple | list) else output
        after = states + gates[index].to(after.dtype) * (after - states)
        return type(output)((after, *output[1:])) if isinstance(output, tuple | list) else after

    handles = [
        block.register_forward_hook(
            lambda _module, args, kwargs, output, index=index: scaled(index, args, kwargs, output), with_kwargs=True
        )
        for index, block in enumerate(blocks)
    ]
    try:
        with torch.enable_grad():
            for number, window in enumerate(windows):
                emit(done=number, total=len(windows), part="choosing blocks")
                for _, batch in window_batches(model, [window], forward_tokens=1, trees=trees):
                    with along_trees(model, batch):
                        hidden_RTD = model.base_model(input_ids=batch.ids_RT, use_cache=False).last_hidden_state
                        nats, _ = loss(_predicting(hidden_RTD, batch), batch.targets_N)
                        slopes[:, number] -= torch.autograd.grad(nats, gates)[0].double().cpu().numpy()
    finally:
        for handle in handles:
            handle.remove()
    return list(slopes)


def stability(choice: Choice, windows: Sequence[Window], is_run: bool) -> dict[str, Any]:
    """How sure a choice is: `chosen_again`, the share of resamples of the documents that choose the same, and `sets_alike`, the
    sets of its size, or the blocks that were scored apart, that the text does not tell from the worst that was taken."""
    numbers = document_numbers(windows)[1]
    targets = np.array([window.num_targets for window in windows])
    size = len(choice.removed) if choice.removed in choice.scores else 1
    stop = len(choice.scores.get(choice.removed, targets))
    sets = [s for s, sums in choice.scores.items() if len(s) == size and len(sums) >= stop]
    sums_SD = np.stack([np.bincount(numbers[:stop], choice.scores[s][:stop]) for s in sets])
    tokens_D = np.bincount(numbers[:stop], targets[:stop])
    count, num_documents = len(choice.removed) // size, len(tokens_D)
    draws_ND = np.random.default_rng(0).multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=RESAMPLES)
    totals_NS = draws_ND @ sums_SD.T
    if is_run and count > 1:
        runs = [run for run in runs_of(max(sets)[0] + 1, count) if all((block,) in sets for block in run)]
        totals_NR = np.stack([totals_NS[:, [sets.index((block,)) for block in run]].sum(1) for run in runs], axis=1)
        again = np.array([runs[index] == choice.removed for index in totals_NR.argmin(1)])
    else:
        lowest = np.argsort(totals_NS, axis=1, kind="stable")[:, :count]
        again = np.array([{*choice.removed} == {block for n in row for block in sets[n]} for row in lowest])
    taken = [index for index, each in enumerate(sets) if {*each} <= {*choice.removed}]
    worst = max(taken, key=lambda index: sums_SD[index].sum())
    others = [index for index in range(len(sets)) if index not in taken]
    alike = [n for n in others if paired_low(sums_SD[n] - sums_SD[worst], tokens_D, 0.05) <= 0]
    return {"chosen_again": float(again.mean()), "sets_alike": [list(sets[index]) for index in alike]}


def mean_scores(scores: Mapping[Removed, np.ndarray], windows: Sequence[Window]) -> dict[Removed, float]:
    """The mean of each removal's score over all targets of the windows that it was measured on, in order of size and index."""
    tokens = np.cumsum([window.num_targets for window in windows])
    order = sorted(scores, key=lambda removed: (len(removed), removed))
    return {removed: float(scores[removed].sum() / tokens[len(scores[removed]) - 1]) for removed in order}


def _batches(
    model: PreTrainedModel, windows: Sequence[Window], num_blocks: int, state_bytes: int, trees: bool
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Windows, so many that the states of all depths fit into `state_bytes`, or one."""
    of_a_token = (num_blocks + 1) * model.config.get_text_config(decoder=True).hidden_size * model.dtype.itemsize
    return window_batches(model, windows, forward_tokens=state_bytes // of_a_token, trees=trees)


def _live_removals(
    model: PreTrainedModel, ids_RT: torch.Tensor, remaining: Sequence[int], count: int, among: Sequence[int]
) -> Iterator[tuple[Removed, torch.Tensor]]:
    """What `Walk.removals` gives, by one evaluation each."""
    gone = [block for block in range(len(block_list(model)[1])) if block not in remaining]
    return live_removals(model, ids_RT, [tuple(sorted((*gone, *more))) for more in sets_of(among, count)])


def _predicting(states_RTD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The states that predict the targets, [N, D]."""
    return states_RTD.flatten(0, 1).index_select(0, batch.hidden_N)


def _sums(values_N: torch.Tensor, batch: Batch) -> np.ndarray:
    """Sums over each example's targets, float64."""
    return torch.stack([part.sum() for part in values_N.double().split(batch.sizes)]).cpu().numpy()
