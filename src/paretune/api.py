"""The verbs of the command line as functions, for notebooks: load_study, plan, run, open_results, compare, compare_counts,
gate.

What they share is an `OpenStudy`: the study, its lock, plan and store. Nothing here imports torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import SpecError
from paretune.pipeline.lock import write_lock
from paretune.pipeline.plan import pending
from paretune.pipeline.records import Results
from paretune.pipeline.results import OpenStudy, open_study, read_results
from paretune.pipeline.runner import EventHandler, Outcome, run_plan
from paretune.pipeline.stage import RunOptions
from paretune.pipeline.why import PlannedStage, review
from paretune.study.base import suggestion
from paretune.study.grid import which_variant
from paretune.study.study import load_study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame

    from paretune.analysis.counts import CountComparison
    from paretune.analysis.gate import Gate
    from paretune.study.compare import Bound


def plan(file: str | Path, store: str | Path | None = None) -> list[PlannedStage]:
    """Every stage of a study as reused or new, with the reason."""
    opened = open_study(file, store)
    return review(opened.plan, opened.store)


def run(
    file: str | Path,
    store: str | Path | None = None,
    options: RunOptions | None = None,
    on_event: EventHandler = lambda event: None,
) -> Outcome:
    """Run what is missing of a study; writes no report (see `paretune.report.outputs`)."""
    options = options or RunOptions()
    opened = open_study(file, store, options.device)
    write_lock(opened.lock, opened.file)
    for resource in pending(opened.plan, opened.store):
        resource.fetch(lambda text: on_event({"event": "download", "message": text}))
    return run_plan(opened.plan, opened.store, options, on_event, opened.file)


def open_results(file: str | Path, store: str | Path | None = None) -> Results:
    """The records of a study as far as they are there."""
    return read_results(open_study(file, store))


def compare(file: str | Path, reference: str | None = None, store: str | Path | None = None) -> "DataFrame":
    """Every variant against `reference` (the study's baseline unless named), with the columns of comparisons.csv.

    SpecError if the study has no such variant.
    """
    from paretune.analysis.measure import measure
    from paretune.report.outputs import comparisons

    results = open_results(file, store)
    if reference is not None and reference not in results.study.variants:
        raise SpecError(f"reference: no variant `{reference}`{which_variant(reference, results.study.variants)}")
    return comparisons(measure(results, also_against=reference), reference)


def compare_counts(right: int, num: int, other_right: int, other_num: int, level: float = 0.95) -> "CountComparison":
    """Two published counts of right answers: exact p, interval, smallest detectable difference, items needed."""
    from paretune.analysis import counts

    return counts.compare_counts(right, num, other_right, other_num, level)


def gate(
    file: str | Path,
    variant: str,
    against: str | None,
    bounds: "Mapping[str, Bound]",
    base: str | None = None,
    data: str | None = None,
    store: str | Path | None = None,
) -> "tuple[Gate, dict[str, Any]]":
    """Whether `variant` is shown to keep to `bounds` (by metric) against another (the baseline unless named), and what the
    verdict rests on, as JSON.

    SpecError for a variant or metric that the study does not have, and where a base or dataset has to be named.
    """
    from paretune.analysis.gate import as_json, judge
    from paretune.analysis.scores import Entrant

    results = open_results(file, store)
    study, chosen = results.study, {}
    for flag, given, known in (("base", base, study.bases), ("data", data, study.data)):
        if given is None and len(known) > 1:
            raise SpecError(f"--{flag}: the study has several; name one of {', '.join(known)}")
        chosen[flag] = given or next(iter(known))
        if chosen[flag] not in known:
            raise SpecError(f"--{flag}: no `{given}`{suggestion(str(given), known)}")
    against = against or study.baseline
    for name in (variant, against):
        if name not in study.variants:
            raise SpecError(f"no variant `{name}`{which_variant(name, study.variants)}")
    verdict = judge(results, Entrant(chosen["base"], chosen["data"], variant), against, bounds)
    return verdict, as_json(verdict, results)


__all__ = ["OpenStudy", "compare", "compare_counts", "gate", "load_study", "open_results", "open_study", "plan", "run"]
