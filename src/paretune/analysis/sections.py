"""The measured parts of a report: held-out text, questions, cost and generations of one base on one dataset."""

import math
from collections.abc import Mapping, Sequence

from paretune.analysis import wording
from paretune.analysis.answers import ANSWER_METRICS
from paretune.analysis.caveats import TIME_PER_TOKEN, TRAINING_SPEED, disturbed_times
from paretune.analysis.cells import cost_cell, interval_cell, mean_cell, spread_cell
from paretune.analysis.choose import latency_name
from paretune.analysis.compare import Estimate
from paretune.analysis.confounded import confounded_fields
from paretune.analysis.costs import Cost
from paretune.analysis.deviations import Marks
from paretune.analysis.document import Block, Bullets, Paragraph, Picture, Section, SideBySide, Table, Text
from paretune.analysis.figures import comparison_name
from paretune.analysis.measured import (
    FORGETTING,
    HARNESS,
    Group,
    Measured,
    cell_generations,
    cells_of,
    chance_of,
    estimate_of,
    quantities_of,
)
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.task_scores import stopped, task_texts

_ROUGH = "~"
"""Behind the head of a column of disturbed times."""


def held_out_section(measured: Measured, group: Group, marks: Marks) -> Section | None:
    """Loss, perplexity, bits per byte and token accuracy with intervals; None if not measured."""
    blocks: list[Block] = []
    for task, split in _held_out(measured, group):
        blocks.append(_held_out_table(measured, group, task, split, marks))
    if held_out := [(task, split) for task, split in _held_out(measured, group) if split == "test"]:
        blocks += _by_task(measured, group, *held_out[0], marks)
    return Section("Held-out text", blocks, level=3) if blocks else None


def questions_section(measured: Measured, group: Group, marks: Marks) -> Section | None:
    blocks: list[Block] = []
    for task in (task for task, use in measured.study.evaluate.items() if use.kind == "qa"):
        slices = sorted({q.slice for q in quantities_of(measured, group) if q.task == task})
        if not slices:
            continue
        blocks.append(_answers_table(measured, group, task, marks))
        if told := _telling(measured, group, task, [name for name in slices if name]):
            blocks.append(_slices_table(measured, group, task, told, marks))
        if confounded := list(confounded_fields(measured, group, task)):
            blocks.append(Bullets(confounded))
    return Section("Questions and answers", blocks, level=3) if blocks else None


def cost_section(measured: Measured, group: Group, figures: frozenset[str], first: bool) -> Section | None:
    """Sizes, training cost and latency. `first`: the comparison figure of the dataset belongs here."""
    places = group.places
    if not any(measured.costs.get(place) for place in places):
        return None
    header = ["variant", "parameters", "trained", "model size", "adapter", "training", "peak memory"]
    latency = latency_name(measured, [place for place in places if "ms_per_token" in measured.costs.get(place, {})])
    first_token = latency.replace("ms_per_token", "first_token_ms")
    with_latency = any(latency in measured.costs.get(place, {}) for place in places)
    rows = []
    for place in places:
        costs = measured.costs.get(place, {})
        row = [
            place.variant,
            cost_cell(costs, "parameters", wording.count),
            _trained_share(costs, trains=any(use.row.trains for use in measured.study.variants[place.variant].methods)),
            cost_cell(costs, "model_bytes", wording.size),
            cost_cell(costs, "adapter_bytes", wording.size),
            cost_cell(costs, "train_seconds", wording.seconds),
            cost_cell(costs, "peak_memory_bytes", wording.size),
        ]
        if with_latency:
            row += [spread_cell(costs, first_token), spread_cell(costs, latency)]
        rows.append(row)
    if with_latency:
        header += ["first token, ms", "ms per token"]
    disturbed = disturbed_times(measured, group)
    marked = {"training"} if TRAINING_SPEED in disturbed else set()
    marked |= {"first token, ms", "ms per token"} if TIME_PER_TOKEN in disturbed else set()
    header = [f"{head} {_ROUGH}" if head in marked else head for head in header]
    told = [f"{word} by {wording.times(factor)}" for word, factor in disturbed.items()]
    caption = (
        f"{_ROUGH}: disturbed times, runs or parts of one that should be equally fast differ in {wording.listed(told)}"
        if told
        else ""
    )
    blocks: list[Block] = [Table(header, rows, caption)]
    blocks += [Bullets(lines)] if (lines := _trained_lines(measured, places)) else []
    middle = "; milliseconds are medians over the repeats" if with_latency and latency.endswith("median") else ""
    blocks.append(
        Paragraph(f"Model: the weights as exported, adapter merged. Training: optimizer steps only. Means over seeds{middle}.")
    )
    if first and comparison_name(group.dataset) in figures:
        blocks.append(
            Picture(f"figures/{comparison_name(group.dataset)}", f"quality and cost of all variants on {group.dataset}")
        )
    return Section("Cost", blocks, level=3)


def generations_section(measured: Measured, group: Group) -> Section | None:
    """Continuations of each prompt and answers to the tasks of some documents by every variant, of its first seed."""
    blocks: list[Block] = []
    for task, use in measured.study.evaluate.items():
        if use.kind != "generate":
            continue
        texts: dict[str, list[Text]] = {}
        for place in group.places:
            cells = [cell for cell in cells_of(measured, place) if task in cell.evaluations]
            for row in cell_generations(cells[0], task) if cells else ():
                seed = "" if cells[0].seed is None or len(cells) == 1 else f"seed {cells[0].seed}, "
                text = Text(place.variant, f"{seed}{stopped(row)}", row["text"])
                texts.setdefault(row["prompt"], []).append(text)
        blocks += [SideBySide(prompt, entries) for prompt, entries in texts.items()]
    blocks = [*_filtered(measured, group), *blocks, *task_texts(measured, group)]
    where = f", {group.base} on {group.dataset}" if len(measured.groups) > 1 else ""
    return Section(f"Generations side by side{where}", blocks) if blocks else None


def _filtered(measured: Measured, group: Group) -> list[Block]:
    """The share of each variant's texts that the study's `safety` filters; nothing where it has none."""
    found = {q for q in quantities_of(measured, group) if q.metric == "filtered"}
    asked = sorted({Quantity(q.task, q.split, q.metric) for q in found})
    if not asked:
        return []
    rows = []
    for place in group.places:
        estimates = [estimate_of(measured, place, quantity) for quantity in asked]
        rows.append(
            [
                place.variant,
                *(wording.UNKNOWN if e is None else wording.part_of_mean(e.mean, e.n_examples) for e in estimates),
            ]
        )
    header = ("variant", *(f"{quantity.task} {quantity.split}".strip() for quantity in asked))
    return [Table(header, rows, "Generated texts that are unsafe by `safety`")]


def _held_out(measured: Measured, group: Group) -> list[tuple[str, str]]:
    tasks = [name for name, use in measured.study.evaluate.items() if use.kind not in (FORGETTING, HARNESS)]
    known = [q for q in quantities_of(measured, group) if q.task in tasks]
    found = {(q.task, q.split) for q in known if q.metric == "bits_per_byte" and not q.slice}
    order = ("test", "validation", "train", "")
    return sorted(found, key=lambda pair: (tasks.index(pair[0]), order.index(pair[1]) if pair[1] in order else len(order)))


def _held_out_table(measured: Measured, group: Group, task: str, split: str, marks: Marks) -> Table:
    rows, counted = [], ""
    seeds = ["seeds, perplexity"] if len(measured.study.seeds) > 1 else []
    for place in group.places:
        found = {
            metric: estimate_of(measured, place, Quantity(task, split, metric))
            for metric in ("loss", "perplexity", "bits_per_byte", "token_accuracy")
        }
        if found["bits_per_byte"] is None:
            rows.append([place.variant, *[wording.UNKNOWN] * (4 + len(seeds))])
            continue
        mark = marks.of(place, task, split)
        counted = counted or wording.plural(found["bits_per_byte"].n_documents, "document")
        rows.append(
            [
                place.variant,
                mean_cell(found["loss"]) + mark,
                interval_cell(found["perplexity"]) + mark,
                interval_cell(found["bits_per_byte"]) + mark + marks.lossy(place),
                wording.share(found["token_accuracy"].mean) + mark if found["token_accuracy"] else wording.UNKNOWN,
                *([_seed_spread(found["perplexity"])] if seeds else []),
            ]
        )
    intervals = (f"{name} ({measured.interval})" for name in ("perplexity", "bits per byte"))
    header = ("variant", "loss", *intervals, "token accuracy", *seeds)
    title = (split or task).capitalize() if task == "perplexity" else f"{task}, {split}"
    alone = "; of completions alone, after what stands before them" if measured.study.data[group.dataset].completes else ""
    return Table(header, rows, f"{title}, {counted}{alone}")


def _by_task(measured: Measured, group: Group, task: str, split: str, marks: Marks) -> list[Block]:
    """Bits per byte of the completions of each task; nothing where there is one task, or plain text."""
    first = Quantity(task, split, "bits_per_byte")
    names = [name for name in measured.study.data[group.dataset].tasks if f"task: {name}" in _slices(measured, group, first)]
    if not names:
        return []
    rows = []
    for place in group.places:
        mark = marks.of(place, task, split) + marks.lossy(place)
        found = [estimate_of(measured, place, first._replace(slice=f"task: {name}")) for name in names]
        rows.append([place.variant, *(interval_cell(one) + mark * (one is not None) for one in found)])
    return [Table(("variant", *names), rows, f"Bits per byte of the completions by task, {split}, {measured.interval}s")]


def _slices(measured: Measured, group: Group, quantity: Quantity) -> set[str]:
    return {one.slice for one in quantities_of(measured, group) if one._replace(slice="") == quantity}


def _answers_table(measured: Measured, group: Group, task: str, marks: Marks) -> Table:
    metrics = [
        metric
        for metric in ANSWER_METRICS
        if any(q.task == task and q.metric == metric for q in quantities_of(measured, group))
    ]
    likelihood = any(q.task == task and q.metric == "log_likelihood" for q in quantities_of(measured, group))
    header = ["variant", *(_METRIC_HEADS[metric] for metric in metrics), *(["log-likelihood"] if likelihood else [])]
    rows = []
    for place in group.places:
        mark = marks.of(place, task, "")
        row = [place.variant, *(_answers(estimate_of(measured, place, Quantity(task, "", metric)), mark) for metric in metrics)]
        if likelihood:
            row.append(interval_cell(estimate_of(measured, place, Quantity(task, "", "log_likelihood"))) + mark)
        rows.append(row)
    caption = f"{task}: right answers, and the {measured.interval} of their share"
    means = ", means over seeds" if len(measured.study.seeds) > 1 else ""
    return Table(header, rows, caption + means + _chance(measured, group, task))


def _chance(measured: Measured, group: Group, task: str) -> str:
    """What guessing would answer, for the caption."""
    chance = chance_of(measured, group, task)
    known = (measured.samples.get(place, {}).get(Quantity(task, "", "accuracy")) for place in group.places)
    sample = next((one for one in known if one is not None), None)
    if chance is None or sample is None:
        return ""
    num = len(sample.items)
    return f"; choices by chance {chance * num:.3g} of {num} ({wording.share(chance)})"


_METRIC_HEADS = {"accuracy": "accuracy (choices)", "exact_match": "exact match", "contains": "contains the answer"}


def _slices_table(measured: Measured, group: Group, task: str, slices: Sequence[str], marks: Marks) -> Table:
    known = quantities_of(measured, group)
    metrics = [
        metric for metric in (*ANSWER_METRICS, "log_likelihood") if any(q.task == task and q.metric == metric for q in known)
    ]
    rows = []
    for name in slices:
        for place in group.places:
            found = [estimate_of(measured, place, Quantity(task, "", metric, name)) for metric in metrics]
            if any(one is not None for one in found):
                mark = marks.of(place, task, "")
                cells = [
                    mean_cell(one) + mark if metric == "log_likelihood" else _answers(one, mark, interval=False)
                    for metric, one in zip(metrics, found, strict=True)
                ]
                rows.append([name, place.variant, *cells])
    heads = [_METRIC_HEADS.get(metric, "log-likelihood") for metric in metrics]
    return Table(("slice", "variant", *heads), rows, f"{task} by slice", words=2, grouped=True)


def _telling(measured: Measured, group: Group, task: str, slices: Sequence[str]) -> list[str]:
    """Without the fields whose slices are the kinds of question: right answers are counted kind by kind already."""
    fields: dict[str, list[str]] = {}
    for name in slices:
        fields.setdefault(name.partition(": ")[0], []).append(name)
    sizes = {
        (quantity.slice, quantity.metric): len(sample.items)
        for place in group.places
        for quantity, sample in measured.samples.get(place, {}).items()
        if quantity.task == task and quantity.metric in ANSWER_METRICS
    }
    repeated = {
        field
        for field, names in fields.items()
        if all(size == sizes["", metric] for (name, metric), size in sizes.items() if name in names)
    }
    return [name for field, names in fields.items() if field not in repeated for name in names]


def _answers(found: Estimate | None, mark: str, *, interval: bool = True) -> str:
    """`4 of 10 (17 to 69 %)`, or of several seeds `mean 3.5 of 10 (14 to 65 %)`."""
    if found is None:
        return wording.UNKNOWN
    right_of = f"{wording.part_of_mean(found.mean, found.n_examples)}{mark}"
    if not interval or math.isnan(found.low):
        return right_of
    places = 0 if found.n_examples < 200 else 1
    return f"{right_of} ({100 * found.low:.{places}f} to {100 * found.high:.{places}f} %)"


def _trained_share(costs: Mapping[str, Cost], trains: bool) -> str:
    if "trainable_parameters" not in costs:
        return wording.UNKNOWN if trains else "0"
    part = costs["trainable_parameters"].mean
    whole = costs["parameters"].mean if "parameters" in costs else math.nan
    return f"{part:,.0f}" if math.isnan(whole) else f"{100 * part / whole:.4g} %"


def _trained_lines(measured: Measured, places: Sequence[Place]) -> list[str]:
    lines = []
    for place in places:
        costs = measured.costs.get(place, {})
        if "trainable_parameters" in costs and "parameters" in costs:
            part, whole = round(costs["trainable_parameters"].mean), round(costs["parameters"].mean)
            if part < whole:
                lines.append(f"{wording.code(place.variant)} trains {wording.part_of(part, whole)} parameters.")
    return lines


def _seed_spread(found: Estimate | None) -> str:
    if found is None or found.spread is None:
        return wording.UNKNOWN
    return f"± {wording.number(found.spread, 2)}"
