"""`paretune gate`: may a variant ship in the place of another? An answer for CI: shown, shown not to, or open.

That all bounds hold is claimed where each is shown at the study's level, uncorrected: an intersection is shown by showing every
part of it (Berger 1982). That one is broken is claimed at a level corrected for their number (Bonferroni).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from paretune.analysis.compare import decided, difference, estimates_of, with_views
from paretune.analysis.decision import as_compared, names_of_cost, where_judged
from paretune.analysis.findings import Fact, Findings, Group
from paretune.analysis.inference import Errors, documents_needed, standard_error
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Quantity, make_samples, read_scores
from paretune.errors import SpecError, StoreError
from paretune.pipeline.records import Results, write_whole
from paretune.pipeline.store import describe_files
from paretune.study.base import suggestion
from paretune.study.compare import Bound, cost_names, quality_names
from paretune.study.registry import metric_of

EXIT_CODES = {"holds": 0, "broken": 1, "open": 3}
"""Of the command; 2 is bad input, as everywhere."""
SCHEMA = 1
Verdict = Literal["holds", "broken", "open"]


@dataclass(frozen=True)
class Check(Fact):
    """What the records say of one bound."""

    asked: str
    """As it was written: `bits_per_byte`."""
    kind: Literal["within", "at_most", "at_least"]
    limit: float
    """In units of the metric; of `within` how much worse at most."""
    quantity: Quantity | None
    """Of a quality; None for a cost."""
    cost: str
    """Name of a cost, empty for a quality."""
    value: float
    """The variant's own figure, or of `within` by how much it is worse."""
    low: float
    high: float
    """The interval that decides, at the study's level: over documents and seeds; of a time, the seeds and what equal
    measurements of this study differ in; of a size, the size."""
    num: int
    """Documents or questions behind it; 0 for costs."""
    verdict: Verdict
    needed: int | None = None
    """Of an open bound: how many documents or questions like these would show it to hold, the figure being what it is; None
    where none would."""


@dataclass(frozen=True)
class Gate(Fact):
    variant: Entrant
    against: str
    level: float
    bounds: Mapping[str, Bound]
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = {check.verdict for check in self.checks}
        return "broken" if "broken" in verdicts else "open" if "open" in verdicts else "holds"


def judge(results: Results, variant: Entrant, against: str, bounds: Mapping[str, Bound]) -> Gate:
    """What the records show of each of `bounds`: by metric, alone or behind the task, questions or latency that it belongs to
    (`summary.rouge_l`). `within` is against the variant `against` of the same base and dataset.

    Raises SpecError for a metric that is unknown, that the study does not measure, or that a bound does not suit, and for
    `within` where the two variants are one.
    """
    if variant.variant == against and any(bound.within is not None for bound in bounds.values()):
        raise SpecError(f"--within: compares `{against}` with itself, which always holds; name another with `--against`")
    findings, reference = measure(results), variant._replace(variant=against)
    group = next(group for group in findings.groups if variant in group.entrants)
    num_bounds = sum(len(bound.model_dump(exclude_none=True)) for bound in bounds.values())
    checks: list[Check] = []
    for asked, bound in bounds.items():
        task, _, metric = asked.rpartition(".")
        if metric in cost_names():
            if bound.within is not None:
                raise SpecError(f"--within {asked}: compares qualities; a cost takes `--at-most`")
            checks += _cost_checks(findings, group, variant, asked, bound)
        elif metric in quality_names():
            quantity = where_judged(group, metric, task or None)
            if quantity is None:
                known = sorted({q.metric for q in group.quantities if metric_of(q.metric).is_quality})
                raise SpecError(f"{asked}: the study does not measure it; it measures {', '.join(known)}, and costs")
            checks += _quality_checks(findings, variant, reference, quantity, asked, bound, num_bounds)
        else:
            known = [*quality_names(), *cost_names()]
            raise SpecError(f"{asked}: no metric `{metric}`{suggestion(metric, known)}")
    return Gate(variant, against, findings.level, bounds, tuple(checks))


def _quality_checks(
    findings: Findings, variant: Entrant, reference: Entrant, quantity: Quantity, asked: str, bound: Bound, num_bounds: int
) -> list[Check]:
    row, alpha = metric_of(quantity.metric), 1 - findings.level
    stored = quantity._replace(metric=row.exp_of or quantity.metric)
    both = replace(findings.results, cells=tuple(findings.cells(variant) + findings.cells(reference)))
    scores = {entrant: known[stored] for entrant, known in read_scores(both).items() if stored in known}
    for entrant in (variant, reference) if bound.within is not None else (variant,):
        if entrant not in scores:
            raise SpecError(f"{asked}: `{entrant.variant}` has no figure of it; `paretune run` measures what is missing")
    checks = []
    if bound.within is not None:
        compared = difference((variant, scores[variant]), (reference, scores[reference]), stored, findings.level)
        if compared is None:
            raise SpecError(f"{asked}: `{variant.variant}` and `{reference.variant}` share no example and no seed")
        strict = decided(compared, compared.p, alpha / num_bounds)
        seen, strict = (
            with_views({(variant, reference, stored): one}, findings.study.compare)[variant, reference, quantity]
            for one in (compared, strict)
        )
        margin, sign = bound.margin(seen.reference_mean), -row.sign
        low, high = sorted((sign * seen.low, sign * seen.high))
        least = min(sign * strict.low, sign * strict.high)
        verdict: Verdict = "holds" if high <= margin else "broken" if least > margin else "open"
        # Documents are counted in units of what was measured: of a view, the logarithm.
        scale = 1.0 if stored == quantity else seen.reference_mean
        needed = documents_needed(compared.errors, seen.loss / scale, margin / scale, alpha) if verdict == "open" else None
        num = compared.n_documents
        checks.append(Check(asked, "within", margin, quantity, "", seen.loss, low, high, num, verdict, needed))
    sample = make_samples({variant: {stored: scores[variant]}})[variant][stored]
    seen_alone = estimates_of({stored: sample}, findings.level)[quantity]
    strict_alone = estimates_of({stored: sample}, 1 - alpha / num_bounds)[quantity]
    for kind, limit, side in (("at_most", bound.at_most, 1), ("at_least", bound.at_least, -1)):
        if limit is None:
            continue
        farthest = max(side * seen_alone.low, side * seen_alone.high)
        nearest = min(side * strict_alone.low, side * strict_alone.high)
        verdict = "holds" if farthest <= side * limit else "broken" if nearest > side * limit else "open"
        errors = Errors(standard_error(sample.sums, sample.weights), sample.items.num_documents, 0.0, 1.0)
        loss = side * (seen_alone.mean - limit)
        needed = documents_needed(errors, loss, 0.0, alpha) if verdict == "open" and stored == quantity else None
        figures = seen_alone.mean, seen_alone.low, seen_alone.high, seen_alone.n_documents
        checks.append(Check(asked, kind, limit, quantity, "", *figures, verdict, needed))  # type: ignore[arg-type]
    return checks


def _cost_checks(findings: Findings, group: Group, variant: Entrant, asked: str, bound: Bound) -> list[Check]:
    task, _, metric = asked.rpartition(".")
    names = [as_compared(findings, name, [variant]) for name in ([asked] if task else names_of_cost(findings, metric))]
    checks = []
    for name in names:
        cost = findings.costs.get(variant, {}).get(name)
        if cost is None:
            known = ", ".join(sorted(findings.costs.get(variant, {})))
            raise SpecError(f"{asked}: not measured of `{variant.variant}`; its costs are {known}")
        apart = max(1 + metric_of(name).noise, group.noise.get(name, 1.0)) if metric_of(name).of_machine else 1.0
        low, high = cost.low / apart, cost.high * apart
        bounds: tuple[tuple[Literal["at_most", "at_least"], float | None, bool, bool], ...] = (
            ("at_most", bound.at_most, high <= (bound.at_most or 0), low > (bound.at_most or 0)),
            ("at_least", bound.at_least, low >= (bound.at_least or 0), high < (bound.at_least or 0)),
        )
        for kind, limit, holds, broken in bounds:
            if limit is not None:
                verdict: Verdict = "holds" if holds else "broken" if broken else "open"
                checks.append(Check(asked, kind, limit, None, name, cost.mean, low, high, 0, verdict))
    return checks


def as_json(gate: Gate, results: Results) -> dict[str, Any]:
    """The verdict, every check, and what it rests on: each record of both variants by key, and the digests of what it holds."""
    entrants = (gate.variant, gate.variant._replace(variant=gate.against))
    records = {
        record.key: record
        for cell in results.cells
        if (cell.base, cell.dataset, cell.variant) in entrants
        for record in (*cell.trained, *cell.evaluations.values())
    }
    return {
        "schema": SCHEMA,
        "paretune": version("paretune"),
        "study": results.study.study,
        "base": gate.variant.base,
        "data": gate.variant.dataset,
        "variant": gate.variant.variant,
        "against": gate.against,
        "level": gate.level,
        "bounds": {metric: bound.model_dump(exclude_none=True) for metric, bound in gate.bounds.items()},
        "verdict": gate.verdict,
        "checks": [_without_nan(check) for check in gate.checks],
        "rests_on": {
            record.path.name: {
                "key": key,
                "machine": record.machine,
                "files": {n: f["sha256"] for n, f in record.files.items()},
            }
            for key, record in sorted(records.items())
        },
    }


def _without_nan(check: Check) -> dict[str, Any]:
    fields = asdict(check) | {"quantity": None if check.quantity is None else check.quantity._asdict()}
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()}


def write_json(content: Mapping[str, Any], study_file: Path, file: Path) -> None:
    """The file that `--verify` reads; it names the study from where it stands. StoreError where it cannot be written."""
    where = Path(os.path.relpath(study_file, file.parent)).as_posix()
    try:
        write_whole(file, json.dumps({"study_file": where} | dict(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise StoreError(f"{file}: cannot be written ({error.strerror}); name a file in a directory that is there") from None


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote; SpecError for anything else."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise SpecError(f"{file}: of a newer Paretune (schema {content['schema']}); update Paretune")
        return content | {"study_file": str(file.parent / content["study_file"])}
    except OSError as error:
        raise SpecError(f"{file}: cannot be read ({error.strerror}); `paretune gate ... --out` writes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{file}: no file of `paretune gate` ({error}); `paretune gate ... --out` writes one") from None


def verify(content: Mapping[str, Any], again: Mapping[str, Any], results: Results, file: Path) -> None:
    """That a verdict still follows from the store: `again` is the same question judged anew.

    Raises StoreError that names the first stage, file or figure that is not as it was.
    """
    store = {record.path.name: record.path for cell in results.cells for record in (*cell.trained, *cell.evaluations.values())}
    for stage, was in content["rests_on"].items():
        if stage not in store:
            raise StoreError(f"{file}: rests on `{stage}`, which the study has no more; judge anew, without `--verify`")
        there = {name: described["sha256"] for name, described in describe_files(store[stage]).items()}
        for name, digest in was["files"].items():
            if there.get(name) != digest:
                raise StoreError(f"{store[stage] / name}: not what the verdict in {file} rests on (its digest differs)")
    for name, value in again.items():
        if name not in ("paretune", "rests_on") and content.get(name) != value:
            raise StoreError(f"{file}: `{name}` is {content.get(name)!r} there, and {value!r} by the records")
    if new := sorted(set(again["rests_on"]) - set(content["rests_on"])):
        raise StoreError(f"{file}: does not rest on `{new[0]}`, which the study has now; judge anew, without `--verify`")
