"""All outputs of a study, written from records alone: tables, figures, findings and the report.

In the tables `trial` names what a tuned variant was chosen from, in results.csv and curves.csv alone, and is empty otherwise;
`seed` is empty for a variant that no seed enters; `n` is the number of examples behind a score and empty for costs.
findings.json holds what the report says, with the numbers that it says it by; docs/findings-json.md describes its fields.
"""

import fcntl
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from paretune.analysis.compare import Difference
from paretune.analysis.facts import find
from paretune.analysis.findings import Fact, Findings
from paretune.analysis.scores import Entrant, Quantity, read_generations
from paretune.analysis.training import CURVE_COLUMNS, read_curve
from paretune.errors import StoreError
from paretune.pipeline import signals
from paretune.pipeline.records import Cell, Results
from paretune.report.cards import cards
from paretune.report.figures import write_figures
from paretune.report.page import page_data, reproduction
from paretune.report.render import NARROW, as_html, as_markdown, as_text
from paretune.report.sections import build_report
from paretune.report.words import say
from paretune.study.registry import metric_of

ANSWER = "answer.txt"
"""The first section of the report, for a terminal of 80 columns."""
SCHEMA = 1
"""Of findings.json; raised whenever a field changes its name or its meaning."""
RESULT_COLUMNS = ("base", "dataset", "variant", "seed", "trial", "split", "task", "slice", "metric", "value", "n")
ESTIMATE_COLUMNS = (
    *("base", "dataset", "variant", "split", "task", "slice", "metric"),
    *("mean", "ci_low", "ci_high", "n_examples", "n_documents", "n_seeds"),
)
COMPARISON_COLUMNS = (
    *("base", "dataset", "variant", "baseline", "split", "task", "slice", "metric"),
    *("difference", "ci_low", "ci_high", "level", "p", "p_adjusted", "mde", "verdict"),
)
CURVE_FILE_COLUMNS = ("base", "dataset", "variant", "seed", "trial", *CURVE_COLUMNS)
AUDIT_COLUMNS = ("dataset", "split", "finding", "detail", "count", "of", "records")
LEAKAGE_COLUMNS = (
    *("dataset", "training_side", "kind", "share", "split", "document", "record", "place"),
    *("other", "other_document", "other_record", "other_place", "excerpt"),
)
GENERATION_FIELDS = (
    *("base", "dataset", "variant", "seed", "task"),
    *("prompt", "text", "reference", "new_tokens", "seconds", "stopped_by"),
    *("document", "example", "references", "filtered"),
)
_SPENT = ("train_seconds", "steps")
"""Costs of a trial."""
_DRAFT = ".draft-"
"""Begins the name of a directory inside the outputs that they are written to first: a full disk leaves the old ones whole."""


def write_outputs(results: Results, out: Path, *, figures: bool = True) -> list[Path]:
    """Write everything into `out` (made if missing) and return the files. Equal records give equal files.

    They are written apart and moved together: of several runs that write at once, all are through, and the files are those of
    the last one. Matplotlib is imported only where there are `figures`.

    StoreError, with what was there before still there, if `out` cannot be written.
    """
    is_new, draft = not out.exists(), None
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _held(out):
            for left in out.glob(f"{_DRAFT}*"):  # by a run that was killed
                with suppress(OSError), _held(left, wait=False):
                    shutil.rmtree(left, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=out))
            in_use = ExitStack()
            in_use.enter_context(_held(draft))
        with in_use:
            written = [file.relative_to(draft) for file in _write(results, draft, figures)]
            # A signal that would end the command waits until the files are all old or all new.
            with _held(out), signals.held_back():
                for file in written:
                    (out / file).parent.mkdir(parents=True, exist_ok=True)
                    (draft / file).replace(out / file)
    except OSError as error:
        raise StoreError(f"--out: `{out}` cannot be written ({error.strerror}); name another directory") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it holds outputs
                out.rmdir()
    return [out / file for file in written]


@contextmanager
def _held(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """A directory that other processes hold meanwhile neither; BlockingIOError where one does, unless it is to `wait`."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if isinstance(error, BlockingIOError) or not wait:
                raise BlockingIOError from None
        yield
    finally:
        os.close(descriptor)


def _write(results: Results, out: Path, figures: bool) -> list[Path]:
    findings = find(results)
    texts = {f"{name}.csv": text for name, text in csv_tables(findings).items()}
    texts |= {"generations.jsonl": "".join(generations(findings)), "findings.json": findings_json(findings)}
    drawn = write_figures(findings, out) if figures else []
    report = build_report(findings, frozenset(file.name for file in drawn))
    texts |= {"report.txt": as_text(report), "report.md": as_markdown(report)}
    texts["report.html"] = as_html(report, out, page_data(findings), reproduction(results))
    texts |= cards(findings)
    texts[ANSWER] = as_text(replace(report, sections=report.sections[:1]), NARROW)
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [*drawn, *(out / name for name in texts)]


def csv_tables(findings: Findings) -> dict[str, str]:
    """The content of every CSV file by its name without suffix."""
    audit = [
        {"dataset": dataset, **row, "records": " ".join(map(str, row["records"]))}
        for dataset, rows in findings.audit.items()
        for row in rows
    ]
    results = pd.DataFrame(_results(findings), columns=list(RESULT_COLUMNS)).astype({"seed": "Int64", "n": "Int64"})
    estimates = pd.DataFrame(_estimates(findings), columns=list(ESTIMATE_COLUMNS))
    estimates = estimates.astype(dict.fromkeys(("n_examples", "n_documents", "n_seeds"), "Int64"))
    made = {
        "results": _whole_costs(results, "value"),
        "estimates": _whole_costs(estimates, "mean"),
        "comparisons": comparisons(findings),
        "curves": _curves(findings),
        "audit": pd.DataFrame(audit, columns=list(AUDIT_COLUMNS)),
        "leakage": _leakage(findings.results),
    }
    return {name: table.to_csv(index=False, lineterminator="\n") for name, table in made.items()}


def comparisons(findings: Findings, reference: str | None = None) -> pd.DataFrame:
    """Paired differences of every variant from `reference` (the study's baseline unless named): COMPARISON_COLUMNS.

    `mde` is the smallest difference that would have been detected with probability 0.8; empty where none would have been, as
    ends of intervals are where so few documents reject nothing.
    """
    rows = []
    for group in findings.groups:
        other = group.baseline if reference is None else group.entrant(reference)
        for entrant in group.entrants:
            for quantity in findings.estimates.get(entrant, {}):
                difference = findings.difference(entrant, other, quantity)
                if difference is not None:
                    numbers = (difference.low, difference.high, difference.p, difference.p_adjusted, difference.mde)
                    finite = [number if math.isfinite(number) else None for number in numbers]
                    named: dict[str, Any] = dict(zip(("ci_low", "ci_high", "p", "p_adjusted", "mde"), finite, strict=True))
                    owner = {**_named(entrant, quantity), "baseline": difference.reference.variant}
                    named |= {"level": difference.level, "verdict": difference.verdict}
                    rows.append({**owner, "difference": difference.mean, **named})
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def generations(findings: Findings) -> Iterator[str]:
    """Every generated text of the study, a line of JSON each: GENERATION_FIELDS."""
    for cell in findings.results.cells:
        owner = {"base": cell.base, "dataset": cell.dataset, "variant": cell.variant, "seed": cell.seed}
        for task in cell.evaluations:
            for row in read_generations(cell, task):
                named = {**owner, "task": task, **row}
                yield json.dumps({name: named.get(name) for name in GENERATION_FIELDS}, ensure_ascii=False) + "\n"


def findings_json(findings: Findings) -> str:
    """All findings as JSON; equal findings give equal text."""
    content = {
        "schema": SCHEMA,
        "study": findings.study.study,
        "level": findings.level,
        "groups": [
            {name: entry for name, entry in _fields(group).items() if name != "slice_values"} for group in findings.groups
        ],
        "estimates": list(_rows(findings.estimates, {})),
        "differences": _plain(list(findings.differences.values())),
        "costs": [
            {**entrant._asdict(), "cost": name, "mean": cost.mean, **_plain(cost)}
            for entrant, costs in findings.costs.items()
            for name, cost in costs.items()
        ],
        "ratios": [
            {**variant._asdict(), "reference": reference.variant, "cost": name, **_plain(ratio)}
            for (name, variant, reference), ratio in findings.ratios.items()
        ],
        "block_choices": [
            {"base": base, "dataset": dataset, **_plain(choice)}
            for (base, dataset), choices in findings.block_choices.items()
            for choice in choices
        ],
        "ratings": _plain(findings.ratings),
        "marks": _plain(findings.marks),
        "facts": {
            **_fields(replace(findings.facts, groups={})),
            "groups": [
                {"base": base, "dataset": dataset, **_plain(facts)} for (base, dataset), facts in findings.facts.groups.items()
            ],
        },
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _leakage(results: Results) -> pd.DataFrame:
    """Every pair of like texts with their places, where they were removed or allowed: LEAKAGE_COLUMNS."""
    files = [(name, "removed", record.path / "removed.csv") for name, record in results.data.items()]
    files += [(name, "kept", record.path / "pairs.csv") for name, record in results.leakage.items()]
    tables = [
        pd.read_csv(file, dtype=str, keep_default_na=False).assign(dataset=name, training_side=what)[list(LEAKAGE_COLUMNS)]
        for name, what, file in files
        if file.exists()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(LEAKAGE_COLUMNS))


def _results(findings: Findings) -> Iterator[dict[str, Any]]:
    for entrant in (entrant for group in findings.groups for entrant in group.entrants):
        scores = findings.seed_scores.get(entrant, {})
        families: dict[Quantity, list[Quantity]] = {}
        for quantity in scores:
            source = quantity._replace(metric=metric_of(quantity.metric).exp_of)
            families.setdefault(source if source in scores else quantity, []).append(quantity)
        for source, family in families.items():
            for seed, quantity in itertools.product(scores[source], family):
                value, num = scores[quantity][seed]
                yield {**_named(entrant, quantity), "seed": seed, "trial": None, "value": value, "n": num}
        for metric, cost in findings.costs.get(entrant, {}).items():
            for seed, value in cost.by_seed.items():
                yield {**_named(entrant, Quantity("cost", "", metric)), "seed": seed, "trial": None, "value": value}
        for tuning in findings.results.tunings:
            for trial in tuning.trials if (tuning.base, tuning.dataset, tuning.variant) == entrant else ():
                row = {"seed": tuning.seed, "trial": trial.name}
                if trial.score is not None:
                    judged = Quantity("training", "validation", findings.study.train.chosen_by)
                    yield {**_named(entrant, judged), **row, "value": trial.score}
                for name in _SPENT:
                    values = [record.metrics[name] for record in trial.methods if name in record.metrics]
                    if values:
                        yield {**_named(entrant, Quantity("cost", "", name)), **row, "value": sum(values)}


def _estimates(findings: Findings) -> Iterator[dict[str, Any]]:
    """Over seeds and examples; costs have no interval and count no examples."""
    for entrant in (entrant for group in findings.groups for entrant in group.entrants):
        for quantity, estimate in findings.estimates.get(entrant, {}).items():
            ends = {"ci_low": estimate.low, "ci_high": estimate.high}
            counts = {"n_examples": estimate.n_examples, "n_documents": estimate.n_documents, "n_seeds": estimate.n_seeds}
            yield {**_named(entrant, quantity), "mean": estimate.mean, **ends, **counts}
        for metric, cost in findings.costs.get(entrant, {}).items():
            yield {**_named(entrant, Quantity("cost", "", metric)), "mean": cost.mean, "n_seeds": len(cost.by_seed)}


def _curves(findings: Findings) -> pd.DataFrame:
    """One row a step of every training, and of every trial."""
    curves = [({**entrant._asdict(), "seed": seed, "trial": None}, curve) for (entrant, seed), curve in findings.curves.items()]
    for tuning in findings.results.tunings:
        entrant = Entrant(tuning.base, tuning.dataset, tuning.variant)
        for trial in tuning.trials:
            owner = {**entrant._asdict(), "seed": tuning.seed, "trial": trial.name}
            curves.append((owner, read_curve(Cell(*entrant, tuning.seed, trial.methods, {}))))
    parts = [curve.assign(**owner)[list(CURVE_FILE_COLUMNS)] for owner, curve in curves if not curve.empty]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CURVE_FILE_COLUMNS))
    return table.astype({"seed": "Int64", "step": "Int64", "tokens": "Int64"})


def _named(entrant: Entrant, quantity: Quantity) -> dict[str, Any]:
    return {**entrant._asdict(), **quantity._asdict()}


def _whole_costs(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Counts and bytes among the costs without `.0`."""
    whole = (table["task"] == "cost") & (table[name] % 1 == 0)
    column = table[name].astype(object)
    column[whole] = [int(value) for value in table.loc[whole, name]]
    return table.assign(**{name: column})


def _plain(value: Any) -> Any:
    """Findings as what JSON has: a fact with its name and sentence, NaN and infinity as null.

    A mapping from variants, quantities or seeds is a list of rows: the fields of its keys, and `value` or those of what it
    stands for.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case np.generic():
            return _plain(value.item())
        case Entrant() | Quantity():
            return value._asdict()
        case Fact():
            return {"fact": type(value).__name__, **_fields(value), "sentence": say(value)}
        case Difference():
            numbers = _fields(value, without=("variant", "reference", "quantity", "contrast"))
            named = {**_named(value.variant, value.quantity), "reference": value.reference._asdict()}
            return {**named, **numbers, "verdict": value.verdict}
        case BaseModel():
            return value.model_dump(mode="json", exclude_none=True)
        case Mapping() if any(isinstance(key, Entrant | Quantity | int | None) for key in value):
            return list(_rows(value, {}))
        case Mapping():
            return {key if isinstance(key, str) else " and ".join(key): _plain(entry) for key, entry in value.items()}
        case frozenset():
            return [_plain(entry) for entry in sorted(value)]
        case list() | tuple():
            return [_plain(entry) for entry in value]
    return _fields(value)


def _rows(mapping: Mapping[Any, Any], owner: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in mapping.items():
        named = {**owner, **(key._asdict() if isinstance(key, Entrant | Quantity) else {"seed": key})}
        if isinstance(value, Mapping):
            yield from _rows(value, named)
        else:
            yield {**named, **(_fields(value) if is_dataclass(value) else {"value": _plain(value)})}


def _fields(value: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Of a dataclass."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.name not in without}
