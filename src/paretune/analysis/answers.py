"""What the question sets of a study can tell, in words: seldom much, for they are small."""

import math
from collections.abc import Iterator, Sequence

from paretune.analysis import wording
from paretune.analysis.choose import quantity_of, ranked_places
from paretune.analysis.compare import Difference
from paretune.analysis.elsewhere import harness_quantities
from paretune.analysis.exact import chance_p
from paretune.analysis.measured import Group, Measured, baseline, chance_of, difference_of
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import amount_of, detectable, interval_of, named, noun, value_of
from paretune.analysis.task_scores import against_commonest, format_failures, task_metrics

_TOLD_METRICS = 1
"""Of a task, in words; the others stand in the tables."""
_TOLD_TASKS = 5
"""Of lm-evaluation-harness, in words."""
ANSWER_METRICS = ("accuracy", "exact_match", "contains")


def answer_sentences(measured: Measured, group: Group, ranked_by: Quantity) -> Iterator[str]:
    """What the question sets can tell, task by task and metric by metric."""
    for task, use in measured.study.evaluate.items():
        if use.kind != "qa":
            continue
        spoken_of: list[list[float]] = []
        for metric in ANSWER_METRICS:
            quantity = Quantity(task, "", metric)
            ranked = ranked_places(measured, group, quantity)
            means = [measured.samples[place][quantity].mean for place in ranked]
            if len(ranked) > 1 and means not in spoken_of and quantity != ranked_by:
                spoken_of.append(means)
                yield from _answers_of(measured, group, ranked, quantity)
            if metric == "accuracy" and ranked:
                yield from _guessing(measured, group, ranked, quantity)
        yield from told_apart(measured, group, Quantity(task, "", "log_likelihood"))
    for quantity in harness_quantities(measured, group)[:_TOLD_TASKS]:
        if quantity != ranked_by:
            yield from told_apart(measured, group, quantity)
    for task, scoring in measured.study.data[group.dataset].scored.items():
        metrics = [metric for metric in task_metrics(scoring) if metric != "accuracy_generated"]
        for metric in metrics[:_TOLD_METRICS]:
            found = quantity_of(measured, group, metric, task)
            if found is not None and found != ranked_by:
                yield from told_apart(measured, group, found)
        yield from format_failures(measured, group, task)
        yield from against_commonest(measured, group, task)


def _answers_of(measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity) -> Iterator[str]:
    best, worst = (measured.samples[place][quantity] for place in (ranked[0], ranked[-1]))
    num = len(best.items)
    title = f"{wording.capital(noun(quantity))} ({wording.plural(num, 'question')})"
    if best.mean == worst.mean:
        yield f"{title}: all variants answer {_right(best.mean, num)} correctly."
        return
    pairs = _against_baseline(measured, group, ranked, quantity)
    told = [
        f"{named(one.variant)} is {one.verdict} than {named(one.reference)} "
        f"({_right(one.variant_mean, num)} against {_right(one.reference_mean, num)}, {interval_of(one)})"
        for one in pairs
        if one.detected
    ]
    if told:
        yield f"{title}: {'; '.join(told)}."
        return
    span = f"from {_right(worst.mean, num)} ({named(ranked[-1])}) to {_right(best.mean, num)} ({named(ranked[0])})"
    if not pairs:
        yield f"{title}: {span}."
        return
    widest = max(pairs, key=lambda one: abs(one.mean))
    test = f", exact test p = {widest.p:.2g}" if widest.answers_apart is not None else f", p = {widest.p:.2g}"
    yield (
        f"{title}: {span}; no variant is told apart from {named(widest.reference)} "
        f"(widest gap {_num_answers(abs(widest.mean) * num)}, {named(widest.variant)}{test}; {_needed(widest, num)})."
    )


def _guessing(measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity) -> Iterator[str]:
    """The variants whose right answers could be those of chance."""
    chance = chance_of(measured, group, quantity.task)
    if chance is None:
        return
    told, num = [], 0
    for place in ranked:
        sample = measured.samples[place][quantity]
        num = len(sample.items)
        p = chance_p(round(sample.mean * num), num, chance)
        if p > 1 - measured.level:
            told.append(f"{named(place)} ({_right(sample.mean, num)}, p = {p:.2g})")
    if told:
        test = f"chance {chance * num:.3g} of {num}, exact binomial test"
        yield f"{wording.capital(noun(quantity))}: not told apart from guessing ({test}): {wording.listed(told)}."


def told_apart(measured: Measured, group: Group, quantity: Quantity) -> Iterator[str]:
    """Which variants differ from the baseline, or the widest gap that was not found to be one."""
    pairs = _against_baseline(measured, group, ranked_places(measured, group, quantity), quantity)
    told = [
        f"{named(one.variant)} is {one.verdict} than {named(one.reference)} ({value_of(one, one.variant_mean)} against "
        f"{value_of(one, one.reference_mean)}, {interval_of(one)})"
        for one in pairs
        if one.detected
    ]
    if told:
        yield f"{wording.capital(noun(quantity))}: {'; '.join(told)}."
    elif pairs:
        widest = max(pairs, key=lambda one: abs(one.mean))
        if widest.mean == 0:
            yield f"{wording.capital(noun(quantity))}: {value_of(widest, widest.reference_mean)} for all variants."
            return
        yield (
            f"{wording.capital(noun(quantity))}: no variant is told apart from {named(widest.reference)} (widest gap "
            f"{amount_of(widest, signed=True)}, {named(widest.variant)}, {interval_of(widest)}{detectable(widest)})."
        )


def _against_baseline(measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity) -> list[Difference]:
    reference = baseline(measured, group)
    if reference is None or reference not in ranked:
        return []
    found = (difference_of(measured, place, reference, quantity) for place in ranked if place != reference)
    return [one for one in found if one is not None]


def _right(share: float, num: int) -> str:
    """`7 of 10`, or of several seeds `a mean of 6.5 of 10`."""
    right = share * num
    whole = math.isclose(right, round(right), abs_tol=1e-6)
    return f"{round(right)} of {num}" if whole else f"a mean of {right:.{wording.decimals(right)}f} of {num}"


def _needed(difference: Difference, num: int) -> str:
    """What would have been told apart."""
    if not difference.mde * num <= num:
        return "with so few questions for so many comparisons none could be"
    return f"a gap of {math.ceil(difference.mde * num)} would have been detected"


def _num_answers(gap: float) -> str:
    return f"{gap:.3g} answer{'' if math.isclose(gap, 1) else 's'}"
