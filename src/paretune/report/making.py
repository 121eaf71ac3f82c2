"""What variants cost and how they were made: sizes and times, trainings, what tuning tried, and which blocks were removed."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from paretune.analysis.costs import DISTURBED, cost_name, timed_evaluations, trial_cost
from paretune.analysis.decision import as_compared
from paretune.analysis.findings import Findings, Group
from paretune.analysis.healing import LeavingEarly, Skipping
from paretune.analysis.scores import Entrant, Quantity
from paretune.analysis.training import BlockScore, Epoch
from paretune.pipeline.records import Trial, Tuning
from paretune.report import words
from paretune.report.blocks import Block, Paragraph, Picture, Section, as_blocks
from paretune.report.figures import comparison_name, curves_name
from paretune.report.tables import VARIANT, Column, Subject, cost_column, cost_text, interval_name, make_table, signed, subjects
from paretune.study.evaluations import Latency
from paretune.study.registry import metric_of

_DISTURBED = "~"
"""Behind the heading of a column of disturbed times."""
_EPOCHS_SHOWN = 12
_SETS_SHOWN = 16
"""Of the sets of blocks that could have been removed, the best first."""
_BLOCK_SCORES = {"loss": "loss", "taylor": "loss by its slope", "influence": "block influence", "angular": "angular distance"}


def cost_section(findings: Findings, group: Group) -> Section | None:
    """Sizes, training cost and latency of every evaluation that measures it."""
    costs = {entrant: findings.costs.get(entrant, {}) for entrant in group.entrants}
    if not any(costs.values()):
        return None

    def trained(row: Subject) -> str | None:
        own = costs[row.entrant]
        if "trainable_parameters" not in own:
            return None if findings.is_trained(row.entrant) else "0"
        part = own["trainable_parameters"].mean
        return f"{100 * part / own['parameters'].mean:.4g} %" if "parameters" in own else f"{part:,.0f}"

    disturbed, latency = dict[str, float](), list[Column[Subject]]()
    speed = group.noise.get("train_tokens_per_second", 1.0)
    disturbed |= {"training speed": speed} if speed > DISTURBED else {}
    median = False
    timed = timed_evaluations(findings.study)
    for evaluation in timed:
        name = cost_name("ms_per_token", evaluation, timed)
        measured = [entrant for entrant in group.entrants if name in costs[entrant]]
        names = [as_compared(findings, cost_name(m, evaluation, timed), measured) for m in ("first_token_ms", "ms_per_token")]
        noise = group.noise.get(names[1], 1.0)
        disturbed |= {words.cost_noun(names[1]): noise} if noise > DISTURBED else {}
        mark = _DISTURBED if noise > DISTURBED else ""
        latency += [cost_column(findings, name, mark=mark, optional=True) for name in names]
        median = median or bool(measured and metric_of(names[1]).median_of)
    columns = [
        VARIANT,
        cost_column(findings, "parameters"),
        Column(metric_of("trainable_parameters").column, trained),
        cost_column(findings, "model_bytes"),
        cost_column(findings, "adapter_bytes"),
        cost_column(findings, "train_seconds", mark=_DISTURBED if "training speed" in disturbed else ""),
        cost_column(findings, "peak_memory_bytes"),
        *latency,
    ]
    differ = words.listed([f"{what} by {words.times(factor)}" for what, factor in disturbed.items()] or [""])
    caption = f"{_DISTURBED}: disturbed times, as equal runs, parts of one, or wall and processor time differ in {differ}"
    middle = "; milliseconds are medians over the repeats" if median else ""
    said = f"Model: the weights as exported, adapter merged. Training: optimizer steps only. Means over seeds{middle}."
    blocks = [
        make_table(subjects(group), columns, caption if disturbed else ""),
        *_speeds(findings, group, timed),
        *as_blocks(findings.facts.groups[group.base, group.dataset].trained),
        Paragraph(said),
        Picture(f"figures/{comparison_name(group.dataset)}", f"quality and cost of all variants on {group.dataset}"),
    ]
    return Section("Cost", blocks, level=3)


def _speeds(findings: Findings, group: Group, timed: Sequence[str]) -> list[Block]:
    """How fast prompts are read and texts are written, by prompt length and batch size."""
    settings = {name: use.config for name, use in findings.study.evaluate.items() if isinstance(use.config, Latency)}
    key = "new_tokens_per_second"
    rows = [(entrant, name) for name in settings for entrant in group.entrants]
    rows = [row for row in rows if cost_name(key, row[1], timed) in findings.costs.get(row[0], {})]
    if not rows:
        return []
    records = [cell.evaluations[name] for cell in findings.results.cells for name in settings if name in cell.evaluations]
    threads = sorted({record.metrics["threads"] for record in records if "threads" in record.metrics})

    def column(metric: str) -> Column[tuple[Entrant, str]]:
        def cell(row: tuple[Entrant, str]) -> str | None:
            name = cost_name(metric, row[1], timed)
            cost = findings.costs[row[0]].get(name)
            return None if cost is None else cost_text(name, cost)

        return Column(metric_of(metric).column, cell, optional=True)

    columns = [
        Column[tuple[Entrant, str]]("variant", lambda row: row[0].variant),
        Column("prompt, tokens", lambda row: str(settings[row[1]].prompt_tokens)),
        Column("sequences", lambda row: str(settings[row[1]].batch_size)),
        *map(column, ("prefill_tokens_per_second", key, "joules_per_token")),
    ]
    told = f"; threads: {words.listed(list(map(str, threads)))}" if threads else ""
    caption = f"Tokens of all sequences that are read and written at once{told}"
    return [make_table(rows, columns, caption)]


class _EpochRow(NamedTuple):
    variant: str
    epochs: list[Epoch]
    """The same one of every seed that came so far."""


def training_section(findings: Findings, group: Group) -> Section | None:
    """Loss and time of each epoch, totals and speed, and what the curves show."""
    rows, trained, num_seeds = list[_EpochRow](), list[Subject](), 0
    for entrant in group.entrants:
        runs = [epochs for (owner, _), epochs in findings.epochs.items() if owner == entrant and epochs]
        if not runs:
            continue
        trained.append(Subject(entrant))
        num_seeds, longest = max(num_seeds, len(runs)), max(map(len, runs))
        shown = range(0, longest, math.ceil(longest / _EPOCHS_SHOWN))
        for index in dict.fromkeys((*shown, longest - 1)):
            rows.append(_EpochRow(entrant.variant, [epochs[index] for epochs in runs if index < len(epochs)]))
    if not trained:
        return None
    columns: list[Column[_EpochRow]] = [
        Column("variant", lambda row: row.variant),
        Column("epoch", _epoch_name),
        Column("train loss", lambda row: _mean_spread([epoch.train_loss for epoch in row.epochs])),
        Column("validation loss", lambda row: _mean_spread([epoch.validation_loss for epoch in row.epochs])),
        Column("token accuracy", _token_accuracy),
        Column("time", lambda row: words.seconds(fmean(epoch.seconds for epoch in row.epochs))),
    ]
    spread = "; mean over seeds, ± is half their range" if num_seeds > 1 else ""
    caption = f"Losses in nats per token, accuracy on validation{spread}"
    blocks: list[Block] = [make_table(rows, columns, caption, grouped=True)]
    names = (
        "train_tokens_read",
        "train_tokens",
        "train_seconds",
        "train_tokens_per_second",
        "wall_seconds",
        "peak_memory_bytes",
    )
    totals = [VARIANT, *(cost_column(findings, name) for name in names)]
    if group.baseline is not None and Subject(group.baseline) in trained:
        totals.append(_speed_column(findings, group.baseline))
    caption = "Totals; training is optimizer steps only, tokens are without padding, those read hold contexts and prompts too"
    blocks.append(make_table(trained, totals, caption))
    blocks += as_blocks(findings.facts.groups[group.base, group.dataset].training)
    blocks.append(Picture(f"figures/{curves_name(findings, group)}", f"loss curves of {group.base} on {group.dataset}"))
    return Section("Training", blocks, level=3)


def _epoch_name(row: _EpochRow) -> str:
    epoch = row.epochs[0]
    whole = math.isclose(epoch.end, epoch.number, abs_tol=1e-6)
    return str(epoch.number) if whole else f"{epoch.number} (ended at {epoch.end:.2f} epochs)"


def _mean_spread(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = fmean(known)
    half = f" ± {(max(known) - min(known)) / 2:.{max(3, words.decimals(mean))}f}" if len(known) > 1 else ""
    return f"{words.number(mean)}{half}"


def _token_accuracy(row: _EpochRow) -> str | None:
    known = [epoch.validation_token_accuracy for epoch in row.epochs if epoch.validation_token_accuracy is not None]
    return words.share(fmean(known)) if known else None


def _speed_column(findings: Findings, reference: Entrant) -> Column[Subject]:
    name = "train_tokens_per_second"

    def cell(row: Subject) -> str | None:
        if row.entrant == reference:
            return "1 (baseline)"
        ratio = findings.ratios.get((name, row.entrant, reference))
        if ratio is None:
            both = all(name in findings.costs.get(entrant, {}) for entrant in (row.entrant, reference))
            return "other conditions" if both else None
        return words.times(ratio.value) + ("" if ratio.clear else " (not clear)")

    return Column(f"speed against {reference.variant}", cell)


def tuning_section(findings: Findings, group: Group) -> Section | None:
    """Every trial of the tuned variants with what it was judged by."""
    here = [one for one in findings.results.tunings if (one.base, one.dataset) == (group.base, group.dataset)]
    if not here:
        return None
    judged = Quantity("training", "validation", findings.study.train.chosen_by)
    what, best = f"validation {metric_of(judged.metric).column}", words.better_word(judged)

    def num_steps(row: tuple[Tuning, Trial]) -> str | None:
        _, steps = trial_cost(row[1])
        return words.count(steps) if steps else None

    def training(row: tuple[Tuning, Trial]) -> str | None:
        seconds, steps = trial_cost(row[1])
        return words.seconds(seconds) if steps else None

    def state(row: tuple[Tuning, Trial]) -> str:
        tuning, trial = row
        if tuning.chosen is not None and trial is tuning.trials[tuning.chosen]:
            return "chosen"
        return "diverged" if trial.divergence else "" if trial.methods else "has not run"

    columns = [
        Column[tuple[Tuning, Trial]]("variant", lambda row: row[0].variant),
        Column("trial", lambda row: row[1].name),
        Column(what, lambda row: None if row[1].score is None else words.number(row[1].score, 4)),
        Column("steps", num_steps),
        Column("training", training),
        Column("", state),
    ]
    caption = f"Trials, all with seed {here[0].seed}; the {best} {what} is chosen and trained with every seed"
    rows = [(tuning, trial) for tuning in here for trial in tuning.trials]
    told = as_blocks(findings.facts.groups[group.base, group.dataset].tuning)
    return Section("Tuning", [make_table(rows, columns, caption, words=2, grouped=True), *told], level=3)


def blocks_section(findings: Findings, group: Group) -> Section | None:
    """Which blocks a measured choice removed, and how sure it is: every set that was tried, against the one that was chosen."""
    blocks, interval = list[Block](), interval_name(findings)
    choices = findings.block_choices[group.base, group.dataset]
    facts = findings.facts.groups[group.base, group.dataset].blocks
    for choice, fact in zip(choices, facts[: len(choices)], strict=True):
        reference = next(score for score in choice.scores if score.is_reference)
        whole = [score for score in choice.scores if not score.removed]
        tried = [score for score in choice.scores if score.removed]
        columns: list[Column[BlockScore]] = [
            Column("without", lambda row: _blocks(row.removed)),
            Column(
                f"{_BLOCK_SCORES[choice.criterion]} ({interval})", lambda row: words.with_interval(row.mean, row.low, row.high)
            ),
            Column(f"more than {_blocks(reference.removed)} ({interval})", _more),
            Column("", lambda row: "removed" if row.is_removed else ""),
        ]
        told = f"the best {_SETS_SHOWN} of {len(tried)}" if len(tried) > _SETS_SHOWN else f"all {len(tried)}"
        caption = f"Sets of blocks by {choice.criterion}, {told}; an interval around 0: this text does not tell the two apart"
        blocks += [Paragraph(fact), make_table([*whole, *tried[:_SETS_SHOWN]], columns, caption)]
    blocks += as_blocks(facts[len(choices) :])
    title = "Depth" if all(isinstance(fact, Skipping | LeavingEarly) for fact in facts) else "Removed blocks"
    return Section(title, blocks, level=3) if blocks else None


def _blocks(removed: Sequence[int]) -> str:
    if not removed:
        return "no block"
    return f"{'block' if len(removed) == 1 else 'blocks'} {words.listed([str(index) for index in removed])}"


def _more(row: BlockScore) -> str | None:
    places = max(words.decimals(abs(row.more)), 3)
    return None if row.is_reference else signed(row.more, row.more_low, row.more_high, places)
