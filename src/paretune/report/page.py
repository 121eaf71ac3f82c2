"""What report.html shows when it is used: one JSON value of findings, read by `templates/report.js`.

Every number is one of the findings and comes with its text; the page draws, sorts and filters them and computes none. A view is
what can be compared: the variants of one base on one dataset, or all bases on a dataset in what does not depend on a tokenizer.
Examples are the records and questions of evaluations, with what each variant wrote and its scores, as they stand in the store.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from paretune.analysis.decision import as_compared, weighed_costs, where_judged
from paretune.analysis.findings import Findings, Group
from paretune.analysis.scores import Entrant, Quantity, entrant_of, read_generations
from paretune.analysis.training import running_mean
from paretune.pipeline.records import CHOICES, SLICE_PREFIX, Record, Results, read_lines
from paretune.report import charts, words
from paretune.report.looks import short_names
from paretune.report.render import visible
from paretune.report.tables import cost_text, estimate_text, mark_of, signed
from paretune.study.registry import metric_of, metrics

Json = dict[str, Any]
_POINTS = 12_000
"""Of all curves together: a page with many is no larger than one with few."""
_EXCERPT = 700
"""Characters of a record that scores stand beside; of what was written and asked the page holds all."""
_EXAMPLES = 2_000
"""Of a task at most."""
_COSTS = ("model_bytes", "trainable_parameters", "train_seconds", "peak_memory_bytes", "ms_per_token")
"""Of the table's first columns."""
_TASKS = 4
"""So many tasks have a first column."""


def page_data(findings: Findings) -> Json:
    """The content of the page's block of JSON: strings, finite numbers, lists and mappings."""
    entrants = [entrant for group in findings.groups for entrant in group.entrants]
    order = {entrant: index for index, entrant in enumerate(entrants)}
    measures: dict[str, Json] = {}
    values = [_values(findings, group, entrant, measures) for group in findings.groups for entrant in group.entrants]
    examples = {name: _examples(findings.results, name, order) for name in findings.study.data}
    measured = dict.fromkeys(quantity.metric for of in findings.estimates.values() for quantity in of)
    return {
        "entrants": [_entrant(findings, group, entrant) for group in findings.groups for entrant in group.entrants],
        "measures": measures,
        "values": values,
        "views": _views(findings, order, measures, values),
        "bars": list(_bars(findings, order)),
        "curves": list(_curves(findings, order)),
        "blocks": [_blocks(choice, base, dataset) for (base, dataset), of in findings.block_choices.items() for choice in of],
        "examples": {name: shown for name, (shown, _) in examples.items()},
        "left_out": [
            {"dataset": name, "task": task, "shown": _EXAMPLES, "of": num}
            for name, (_, nums) in examples.items()
            for task, num in nums.items()
            if num > _EXAMPLES
        ],
        "metrics": {
            row.name: {"label": row.column, "better": row.better, "unit": row.unit, "from_zero": (row.low, row.high) == (0, 1)}
            for row in map(metric_of, dict.fromkeys([*(name for name in metrics() if name in measured), *measured]))
        },
        "charts": charts.SPECS,
    }


def reproduction(results: Results) -> Json:
    """The study file as it stands, what its lock pins, and the commands that make the results again."""
    file = results.study_file
    return {
        "name": file.name,
        "study": file.read_text(encoding="utf-8") if file.is_file() else "",
        "commands": [f"paretune plan {file.name}", f"paretune run {file.name}", f"paretune report {file.name}"],
    }


def _id(quantity: Quantity) -> str:
    return f"{quantity.task}|{quantity.split}|{quantity.metric}"


def _cost_id(name: str) -> str:
    return f"|cost|{name}"


def _short(value: float | None) -> float | None:
    """Six digits; None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _entrant(findings: Findings, group: Group, entrant: Entrant) -> Json:
    names = short_names(findings.study.variants)
    index = list(names).index(entrant.variant)
    recommended = group.choice is not None and group.choice.verdict == "recommended" and group.choice.chosen == entrant
    chain = findings.study.variants[entrant.variant].methods
    return {
        **entrant._asdict(),
        "label": names[entrant.variant],
        **charts.look(index, list(findings.study.bases).index(entrant.base)),
        "is_baseline": entrant == group.baseline,
        "is_recommended": recommended,
        "is_pruned": any(use.name.startswith("prune.") for use in chain),
        "methods": ", then ".join(use.name for use in chain) or "the base as it is",
    }


def _values(findings: Findings, group: Group, entrant: Entrant, measures: dict[str, Json]) -> Json:
    """All of a variant's figures that are of no slice; describes each in `measures`."""
    found: Json = {}
    for quantity, estimate in findings.estimates.get(entrant, {}).items():
        if quantity.slice:
            continue
        row = metric_of(quantity.metric)
        # As in a sentence, but each metric by its own heading: `accuracy (likelihood) on qa`.
        label = f"{quantity.split} {row.column}".strip() + ("" if quantity.split and row.of_text else f" on {quantity.task}")
        measures.setdefault(_id(quantity), _measure(label, quantity.metric, quantity))
        compared = quantity._replace(metric=row.exp_of or quantity.metric)
        difference = findings.told(entrant, group.baseline, compared)
        seeds = f", {estimate.n_seeds} seeds" if estimate.n_seeds > 1 else ""
        counted = f"{words.plural(estimate.n_examples, 'example')}, {words.plural(estimate.n_documents, 'document')}{seeds}"
        value: Json = {
            "value": _short(estimate.mean),
            "low": _short(estimate.low),
            "high": _short(estimate.high),
            "text": estimate_text(quantity.metric, estimate, interval=False) + mark_of(findings, entrant, quantity),
            "full": estimate_text(quantity.metric, estimate),
            "n": counted,
        }
        if difference is not None:
            change = words.amount(difference.quantity, difference.mean, signed=True)
            value |= {"verdict": difference.verdict, "change": f"{change}, {words.interval(difference)}"}
        found[_id(quantity)] = value
    for name, cost in findings.costs.get(entrant, {}).items():
        measures.setdefault(_cost_id(name), _measure(words.cost_noun(name, str), name, None))
        text, many = cost_text(name, cost), len(cost.by_seed) > 1
        low, high = (_short(cost.low), _short(cost.high)) if many else (None, None)
        counted = f"mean of {len(cost.by_seed)} seeds, line: their range" if many else ""
        value = {"value": _short(cost.mean), "low": low, "high": high, "text": text, "full": text, "n": counted}
        ratio = findings.ratios.get((name, entrant, group.baseline)) if group.baseline else None
        if ratio is not None and entrant != group.baseline:
            sign = metric_of(name).sign if ratio.clear and ratio.value != 1 else 0
            verdict = "no clear difference" if not sign else "better" if (ratio.value > 1) == (sign > 0) else "worse"
            value |= {"verdict": verdict, "change": words.times(ratio.value)}
        found[_cost_id(name)] = value
    return found


def _measure(label: str, name: str, quantity: Quantity | None) -> Json:
    row = metric_of(name)
    task = name.rpartition(".")[0] if quantity is None else f"{quantity.task} {quantity.split}".strip()
    return {
        "label": words.capital(label),
        "column": words.capital(row.column),
        "of": task,
        "metric": row.name,
        "better": row.better,
        "unit": row.unit,
        "is_cost": quantity is None,
    }


def _views(findings: Findings, order: Mapping[Entrant, int], measures: Json, values: Sequence[Json]) -> list[Json]:
    views: list[Json] = []
    for dataset, of_dataset in itertools.groupby(findings.groups, key=lambda group: group.dataset):
        groups = list(of_dataset)
        if len(groups) > 1:
            members = [order[entrant] for group in groups for entrant in group.entrants]
            views.append(_view(findings, groups[0], f"all bases on {dataset}", members, measures, values) | {"frontier": {}})
            views[-1]["ids"] = [name for name in views[-1]["ids"] if not metric_of(measures[name]["metric"]).per_token]
            views[-1] |= {"is_across": True, "headlines": [], "y": next(iter(_bits(views[-1]["ids"])), None)}
            views[-1]["columns"] = [name for name in views[-1]["columns"] if name in views[-1]["ids"]]
            if views[-1]["y"] and views[-1]["y"] not in views[-1]["columns"]:
                views[-1]["columns"].insert(0, views[-1]["y"])
        for group in groups:
            members = [order[entrant] for entrant in group.entrants]
            views.append(_view(findings, group, f"{group.base} on {dataset}", members, measures, values))
            choice = group.choice
            for name, beaten in choice.beaten_by_cost.items() if choice is not None and choice.tells else ():
                views[-1]["frontier"][_cost_id(name)] = [order[entrant] for entrant, by in beaten.items() if by is None]
    return views


def _bits(ids: Sequence[str]) -> list[str]:
    """What bases are compared in first: bits per byte on the test split, then on any."""
    found = [name for name in ids if name.endswith("|bits_per_byte")]
    return sorted(found, key=lambda name: "|test|" not in name) or [name for name in ids if not name.startswith("|cost|")]


def _view(findings: Findings, group: Group, label: str, members: Sequence[int], measures: Json, values: Sequence[Json]) -> Json:
    ids = [name for name in measures if any(name in values[member] for member in members)]
    headline, shown = group.headline, None
    if headline is not None:
        some = next((entrant for entrant in group.entrants if findings.estimate(entrant, headline)), group.entrants[0])
        shown = findings.shown(some, headline)
    judged: list[str | None] = [None if shown is None else _id(shown)]
    for task in group.tasks:
        places = (where_judged(group, row.name, task) for row in metrics().values() if row.is_quality and row.ranks)
        first = next((place for place in places if place is not None), None)
        if first is not None and (headline is None or task != headline.task):
            judged.append(_id(first))
    weighed = list(group.choice.costs) if group.choice else weighed_costs(findings, group.entrants)
    of_all = {name: [entrant for entrant in group.entrants if findings.cost(entrant, name) is not None] for name in _COSTS}
    costs = [*weighed[:1], *(as_compared(findings, name, entrants) for name, entrants in of_all.items()), *weighed[1:]]
    qualities = [name for name in dict.fromkeys(judged) if name in ids][: _TASKS + 1]
    priced = [name for name in dict.fromkeys(map(_cost_id, costs)) if name in ids]
    # On one in which all are equal, points would hide each other.
    apart = (
        name
        for name in map(_cost_id, [*weighed, *costs])
        if len({values[one][name]["text"] for one in members if name in values[one]}) > 1
    )
    return {
        "label": label,
        "dataset": group.dataset,
        "entrants": list(members),
        "ids": ids,
        "columns": [*qualities, *priced],
        "y": qualities[0] if qualities else None,
        "x": next(apart, priced[0] if priced else None),
        "headlines": [_id(quantity) for quantity in (headline, shown) if quantity is not None],
        "frontier": {},
        "is_across": False,
    }


def _bars(findings: Findings, order: Mapping[Entrant, int]) -> Iterator[Json]:
    """Every quality as a whole and slice by slice."""
    for entrant, index in order.items():
        for quantity, estimate in findings.estimates.get(entrant, {}).items():
            if metric_of(quantity.metric).is_quality:
                yield {
                    "entrant": index,
                    "metric": quantity.metric,
                    "part": " · ".join(filter(None, (quantity.task, quantity.split, quantity.slice))),
                    "value": _short(estimate.mean),
                    "low": _short(estimate.low),
                    "high": _short(estimate.high),
                    "text": estimate_text(quantity.metric, estimate),
                    "n": words.plural(estimate.n_examples, "example"),
                }


def _curves(findings: Findings, order: Mapping[Entrant, int]) -> Iterator[Json]:
    """Of every run the train side, as a running mean, and the validation side; of long runs every so many steps."""
    runs = {run: curve for run, curve in findings.curves.items() if run[0] in order and len(curve)}
    kept = max(40, min(200, _POINTS // max(1, 2 * len(runs))))
    for (entrant, seed), curve in runs.items():
        for side in ("train", "validation"):
            points = curve.dropna(subset=[f"{side}_loss"])
            if not len(points):
                continue
            columns = {name: points[name].to_numpy() for name in ("epoch", "step", "tokens", "seconds")}
            for name in ("loss", "token_accuracy"):
                column = points[f"{side}_{name}"]
                if column.notna().all():
                    columns[name] = running_mean(column.to_numpy()) if side == "train" else column.to_numpy()
            where = np.unique(np.linspace(0, len(points) - 1, min(kept, len(points))).round().astype(int))
            of_run = {name: [_short(float(value)) for value in column[where]] for name, column in columns.items()}
            yield {"entrant": order[entrant], "seed": seed, "side": side, **of_run}


def _blocks(choice: Any, base: str, dataset: str) -> Json:
    """What each removal costs against the chosen one."""
    variants = list(dict.fromkeys(variant for variant, _ in choice.entrants))
    seeds = [seed for _, seed in choice.entrants if seed is not None]
    owner = f"{words.listed(variants)}{f', seed {seeds[0]}' if seeds else ''}"
    rows = [
        {
            "label": ", ".join(map(str, score.removed)) or "none",
            "value": _short(score.more),
            "low": _short(score.more_low),
            "high": _short(score.more_high),
            "text": signed(score.more, score.more_low, score.more_high, 3),
            "is_removed": score.is_removed,
        }
        for score in choice.scores
    ]
    title = f"{owner}: {choice.criterion} on {words.plural(choice.num_documents, 'training document')}"
    return {"base": base, "dataset": dataset, "title": title, "rows": rows}


@dataclass
class _Example:
    """A record or question under way: what is known of it so far."""

    task: str
    document: str
    example: str
    split: str
    fields: Mapping[str, str]
    prompt: str | None = None
    references: Sequence[str] = ()
    by: dict[int, dict[str, Json]] | None = None


def _examples(results: Results, dataset: str, order: Mapping[Entrant, int]) -> tuple[list[Json], dict[str, int]]:
    """The scored records and questions of a dataset, what was asked for a text first, with what each variant made of it: of a
    task the first `_EXAMPLES`, and how many there are."""
    found: dict[tuple[str, str, str], _Example] = {}
    read: dict[str, list[tuple[_Example, Json]]] = {}
    keys: dict[str, set[tuple[str, str, str]]] = {}
    for cell in (cell for cell in results.cells if cell.dataset == dataset):
        index, seed = order[entrant_of(cell)], "" if cell.seed is None else str(cell.seed)
        for evaluation, record in cell.evaluations.items():
            if record.key not in read:
                read[record.key] = _scored(record, evaluation, read_generations(cell, evaluation))
            for example, made in read[record.key]:
                key = (example.task, example.document, example.example)
                of_task = keys.setdefault(example.task, set())
                of_task.add(key)
                if key not in found and len(of_task) > _EXAMPLES:
                    continue
                known = found.setdefault(key, example)
                known.prompt, known.references = known.prompt or example.prompt, known.references or example.references
                known.by = known.by if known.by is not None else {}
                known.by.setdefault(index, {})[seed] = made
    texts = _records(results.data.get(dataset))
    shown = [
        {
            "task": example.task,
            "split": example.split,
            "document": visible(example.document),
            "example": example.example,
            "fields": {name: visible(value) for name, value in example.fields.items()},
            "prompt": None if example.prompt is None else visible(example.prompt),
            "record": texts.get((example.document, example.example)) if example.split else None,
            "references": list(map(visible, example.references)),
            "by": example.by,
        }
        for example in sorted(found.values(), key=lambda example: example.prompt is None)
        if example.by
    ]
    return shown, {task: len(of_task) for task, of_task in keys.items()}


def _scored(record: Record, evaluation: str, texts: Sequence[Mapping[str, Any]]) -> list[tuple[_Example, Json]]:
    """The examples of one evaluation of one variant, each with its scores and text; what is scored several times (by raters)
    has no one score and is left out."""
    file = record.path / "scores.parquet"
    table = pd.read_parquet(file) if file.exists() else pd.DataFrame()
    keys = ["task", "split", "document", "example"]
    if not table.empty and "task" not in table:
        table = table.assign(task=evaluation)
    if table.empty or table.duplicated([*keys, "metric"]).any():
        return []
    fields = [name for name in table.columns if name.startswith(SLICE_PREFIX)]
    found: dict[tuple[str, str, str], tuple[_Example, Json]] = {}
    for row in table.to_dict("records"):
        key = (row["task"], row["document"], row["example"])
        if key not in found:
            values = {name.removeprefix(SLICE_PREFIX): str(row[name]) for name in fields}
            found[key] = (_Example(*key, split=row["split"], fields=values), {"scores": {}})
        found[key][1]["scores"][row["metric"]] = _short(row["value"])
    # Texts that do not name their example stand in the order of the examples; of questions only the factual are answered.
    answered = [key for key, (_, made) in found.items() if "exact_match" in made["scores"]]
    unnamed = list(found) if len(texts) == len(found) else answered if len(texts) == len(answered) else []
    for index, text in enumerate(texts):
        named: tuple[Any, Any, Any] = (text.get("task") or evaluation, text.get("document"), text.get("example"))
        key = named if text.get("document") is not None else unnamed[index] if unnamed else ("", "", "")
        if key not in found:
            continue
        example, made = found[key]
        example.prompt = text["prompt"]
        example.references = text.get("references") or ([text["reference"]] if text.get("reference") else [])
        made |= {"text": visible(text["text"]), "stop": text["stopped_by"]} | ({"unsafe": True} if text.get("filtered") else {})
    choices = record.path / CHOICES
    by_number = {key[2]: entry for key, entry in found.items()} if choices.exists() else {}
    for choice in read_lines(choices) if choices.exists() else ():
        example, made = by_number[choice["example"]]
        example.prompt = choice["prompt"] + "".join(f"\n- {option}" for option in choice["options"])
        example.references = [choice["reference"]]
        made["text"] = visible(choice["text"])
    return list(found.values())


def _records(data: Record | None) -> dict[tuple[str, str], str]:
    """The beginning of what stands in each held-out record: its text, or what its tasks share."""
    file = None if data is None else data.path / "documents.parquet"
    if file is None or not file.exists():
        return {}
    table = pd.read_parquet(file, filters=[("split", "!=", "train")])
    context = table["context"].where(table["context"].astype(bool), table["text"]) if "context" in table else table["text"]
    cut = [visible(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]} […]") for text in context.astype(str)]
    return dict(zip(zip(table["document"].astype(str), table["example"].astype(str), strict=True), cut, strict=True))
