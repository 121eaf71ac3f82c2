"""What a study shows: the recommendation, the trades and the findings, each computed and said only where it holds.

A variant is recommended if it cannot be told apart from the best and none of those that cannot is cheaper. Cheaper is decided
by the size that ships, then by the time per token, then by the training time, each only where it clearly differs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paretune.analysis import wording
from paretune.analysis.compare import Difference
from paretune.analysis.costs import ratio, trained_records
from paretune.analysis.measured import (
    Group,
    Measured,
    baseline,
    cells_of,
    difference_of,
    estimate_of,
    headline,
    untouched,
)
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import (
    SHARES,
    amount_of,
    better_word,
    cost_clauses,
    interval_of,
    latency_name,
    named,
    noun,
    quality_clause,
    spoken,
    trade_sentence,
    value_of,
)

_MEMORISED = 1.5
"""Perplexity of held-out text below which memorised text is likelier than a good model."""
_FEW_QUESTIONS = 50
_SMALLEST_SWEEP = {0.9: 5, 0.95: 6, 0.99: 8}
"""Answers that all have to go one way for a two-sided sign test at that level."""


@dataclass(frozen=True)
class Conclusions:
    recommendation: tuple[str, ...]
    findings: tuple[str, ...]


def conclude(measured: Measured, group: Group) -> Conclusions:
    """Sentences of one base on one dataset, the recommendation first."""
    quantity = headline(measured, group)
    ranked = [] if quantity is None else _ranked(measured, group, quantity)
    if quantity is None or not ranked:
        return Conclusions(("Nothing was measured that variants could be ranked by.",), ())
    recommendation, said = _recommend(measured, group, ranked, quantity)
    findings = [
        *_learned(measured, group, ranked, quantity),
        *_trades(measured, group, ranked, quantity, said),
        *_answers(measured, group),
        *_warnings(measured, ranked, quantity),
    ]
    return Conclusions(tuple(recommendation), tuple(findings))


def across_bases(measured: Measured, dataset: str) -> list[str]:
    """Which base is ahead on a dataset, in bits per byte, which tokenizers do not bend; nothing for a single base."""
    best: list[tuple[float, Place, Quantity]] = []
    for group in (group for group in measured.groups if group.dataset == dataset):
        quantity = headline(measured, group)
        if quantity is not None and quantity.metric == "bits_per_byte" and (ranked := _ranked(measured, group, quantity)):
            best.append((measured.samples[ranked[0]][quantity].mean, ranked[0], quantity))
    best.sort(key=lambda entry: entry[0])
    if len(best) < 2:
        return []
    sentences = []
    (_, first, quantity), *others = best
    for _, other, _ in others:
        difference = difference_of(measured, other, first, quantity)
        if difference is not None:
            sentences.append(
                f"Best of {wording.code(other.base)} ({named(other)}) against best of {wording.code(first.base)} "
                f"({named(first)}): {quality_clause(difference)}."
            )
    return sentences


def _ranked(measured: Measured, group: Group, quantity: Quantity) -> list[Place]:
    """The variants that have the quantity, best mean first."""
    places = [group.place(name) for name in group.variants]
    measured_ones = [place for place in places if quantity in measured.samples.get(place, {})]
    sign = 1 if better_word(quantity) == "lowest" else -1
    return sorted(measured_ones, key=lambda place: sign * measured.samples[place][quantity].mean)


def _recommend(
    measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity
) -> tuple[list[str], set[tuple[Place, Place]]]:
    """Sentences, and the pairs (variant, reference) that they have dealt with."""
    best = ranked[0]
    if len(ranked) == 1:
        return [f"One variant was measured, {named(best)}: there is nothing to choose between."], set()
    apart: dict[Place, Difference | None] = {place: _spoken(measured, place, best, quantity) for place in ranked[1:]}
    near = [place for place, difference in apart.items() if difference is None or not difference.detected]
    chosen = best
    for place in near:
        if apart[place] is not None and _cheaper(measured, place, chosen):
            chosen = place
    said = {(chosen, best), (best, chosen)}
    if chosen == best:
        sentences = [_best_is_chosen(measured, group, best, near, quantity)]
    else:
        sentences = [_cheaper_is_chosen(measured, group, chosen, best, quantity)]
    for place in ranked:
        if place != chosen and place not in near and _cheaper(measured, place, chosen):
            trade = trade_sentence(measured, place, chosen, quantity)
            if trade is not None and not _is_untouched(measured, place):
                sentences.append(f"Cheaper at a price: {trade}")
                said |= {(place, chosen), (chosen, place)}
    return sentences, said


def _best_is_chosen(measured: Measured, group: Group, best: Place, near: Sequence[Place], quantity: Quantity) -> str:
    found = estimate_of(measured, best, _as_shown(measured, best, quantity))
    assert found is not None
    shown = wording.share(found.mean) if quantity.metric in SHARES else wording.number(found.mean)
    what = f"the {better_word(quantity)} {noun(_as_shown(measured, best, quantity))} ({shown})"
    subject = _subject(measured, group, best)
    if not near:
        return f"Recommended: {subject}. It has {what}, and its lead over every other variant is detected."
    others = wording.listed([named(place) for place in near])
    cheaper = "is not clearly cheaper" if len(near) == 1 else "are not clearly cheaper"
    return f"Recommended: {subject}. It has {what}; {others} cannot be told apart from it and {cheaper}."


def _cheaper_is_chosen(measured: Measured, group: Group, chosen: Place, best: Place, quantity: Quantity) -> str:
    difference = _spoken(measured, chosen, best, quantity)
    assert difference is not None
    cheaper, _ = cost_clauses(measured, chosen, best)
    if _is_untouched(measured, chosen):
        reason = "it needs no training"
    else:
        reason = f"it {wording.listed(cheaper)}" if cheaper else "it needs no training"
    return (
        f"Recommended: {_subject(measured, group, chosen)}. Its {noun(difference.quantity)} cannot be told apart from the "
        f"best, that of {named(best)} ({amount_of(difference, signed=True)}, {interval_of(difference)}), and {reason}."
    )


def _learned(measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity) -> Iterator[str]:
    """What the methods brought against the base as it came."""
    base = untouched(measured, group)
    others = [place for place in ranked if place != base]
    if base is None or base not in ranked or not others:
        return
    found = [(place, _spoken(measured, place, base, quantity)) for place in others]
    better = [(place, one) for place, one in found if one is not None and one.detected and one.better]
    if better:
        first, last = better[0][1], better[-1][1]
        what = noun(first.quantity)
        before = value_of(first, first.reference_mean)
        one = f"{value_of(first, first.variant_mean)} ({named(better[0][0])}, {amount_of(first, signed=True)}"
        word = "Every other variant" if len(better) == len(others) else wording.listed([named(place) for place, _ in better])
        if len(better) == 1:
            evidence = f"{what} from {before} to {one}, {interval_of(first)})"
            yield f"{named(better[0][0])} is better than the untouched base: {evidence}."
        else:
            two = f"{value_of(last, last.variant_mean)} ({named(better[-1][0])}, {amount_of(last, signed=True)})"
            verb = "is" if len(better) == len(others) else "are"
            yield f"{word} {verb} better than the untouched base: {what} from {before} to {one}) at best, {two} at worst."
    for place, difference in found:
        if difference is None or (difference.detected and difference.better):
            continue
        if difference.detected:
            yield f"{named(place)} is worse than the untouched base: {quality_clause(difference)}."
        else:
            yield f"{named(place)} against the untouched base: {quality_clause(difference)}."


def _trades(
    measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity, said: set[tuple[Place, Place]]
) -> Iterator[str]:
    reference = baseline(measured, group)
    if reference is None or reference not in ranked:
        return
    for place in ranked:
        if place == reference or _is_untouched(measured, place) or (place, reference) in said:
            continue
        if _is_untouched(measured, reference):
            continue  # said against the base already
        sentence = trade_sentence(measured, place, reference, quantity)
        if sentence is not None:
            yield sentence


def _answers(measured: Measured, group: Group) -> Iterator[str]:
    """What the question sets can tell, task by task and metric by metric."""
    for task, use in measured.study.evaluate.items():
        if use.kind != "qa":
            continue
        spoken_of: list[list[float]] = []
        counts: list[int] = []
        for metric in ("accuracy", "exact_match", "contains"):
            quantity = Quantity(task, "", metric)
            ranked = _ranked(measured, group, quantity)
            means = [measured.samples[place][quantity].mean for place in ranked]
            if len(ranked) > 1 and means not in spoken_of:
                spoken_of.append(means)
                counts.append(len(measured.samples[ranked[0]][quantity].items))
                yield from _answers_of(measured, group, ranked, quantity)
        if counts:
            yield from _needed(min(counts), measured.level)
        yield from _likelihood_of(measured, group, Quantity(task, "", "log_likelihood"))


def _answers_of(measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity) -> Iterator[str]:
    best, worst = ranked[0], ranked[-1]
    widest = difference_of(measured, best, worst, quantity)
    if widest is None:
        return
    num = widest.n_examples
    title = f"{noun(quantity)[:1].upper()}{noun(quantity)[1:]} ({wording.plural(num, 'question')})"
    if widest.mean == 0:
        yield f"{title}: all variants answer {_right(widest.variant_mean, num)} rightly."
        return
    pairs = _detected_pairs(measured, group, ranked, quantity)
    if pairs:
        words = [
            f"{named(one.variant)} is {one.verdict} than {named(one.reference)} "
            f"({_right(one.variant_mean, num)} against {_right(one.reference_mean, num)})"
            for one in pairs
        ]
        yield f"{title}: {'; '.join(words)}."
        return
    span = f"from {_right(widest.reference_mean, num)} ({named(worst)}) to {_right(widest.variant_mean, num)} ({named(best)})"
    gap = num * widest.mean
    text = f"{title}: {span}, {_answers_apart(gap)}, and no two variants are told apart"
    if widest.p is not None:
        text += f" (exact test of the widest pair: p = {widest.p:.2g})"
    yield f"{text}."


def _needed(num: int, level: float) -> Iterator[str]:
    """What a handful of questions can tell at all."""
    sweep = _SMALLEST_SWEEP.get(level)
    if sweep is None or num >= _FEW_QUESTIONS:
        return
    if num < sweep:
        yield f"{num} questions cannot tell any two variants apart, whatever the answers."
    else:
        yield f"With {num} questions, two variants are told apart only if one wins at least {sweep} more than the other."


def _likelihood_of(measured: Measured, group: Group, quantity: Quantity) -> Iterator[str]:
    ranked = _ranked(measured, group, quantity)
    if len(ranked) < 2:
        return
    pairs = _detected_pairs(measured, group, ranked, quantity)
    title = f"{noun(quantity)[:1].upper()}{noun(quantity)[1:]}"
    if not pairs:
        yield f"{title}: no difference between variants is detected."
        return
    words = [
        f"{named(one.variant)} is {one.verdict} than {named(one.reference)} ({amount_of(one, signed=True)}, {interval_of(one)})"
        for one in pairs
    ]
    yield f"{title}: {'; '.join(words)}."


def _detected_pairs(measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity) -> list[Difference]:
    """Detected differences from the baseline, and of the baseline from the untouched base."""
    reference, base = baseline(measured, group), untouched(measured, group)
    pairs = [(place, reference) for place in ranked if place not in (reference, base)] + [(reference, base)]
    found = [
        difference_of(measured, left, right, quantity)
        for left, right in pairs
        if left is not None and right is not None and left != right
    ]
    return [one for one in found if one is not None and one.detected]


def _warnings(measured: Measured, ranked: Sequence[Place], quantity: Quantity) -> Iterator[str]:
    for place in ranked:
        for held_out, sample in measured.samples[place].items():
            if held_out.metric == "loss" and held_out.split in ("validation", "test") and not held_out.slice:
                perplexity = math.exp(min(sample.mean, 700))
                if perplexity < _MEMORISED:
                    yield (
                        f"The {held_out.split} perplexity of {named(place)} is {wording.number(perplexity)}: so low that "
                        "held-out text is likely to stand in the training data, or in what the base was pretrained on."
                    )
    seeds = {cell.seed for place in ranked for cell in cells_of(measured, place) if trained_records(cell)}
    if len(seeds) == 1:
        yield "One training seed: the verdicts are about these trained weights, on new documents; another run may differ."
    elif len(seeds) == 2:
        yield (
            "Two training seeds: their spread widens the intervals of differences, but a claim about a method, rather than "
            "about these runs, needs three or more."
        )


def _cheaper(measured: Measured, variant: Place, reference: Place) -> bool:
    """Whether `variant` costs clearly less, in the first cost that differs clearly."""
    for name in ("model_bytes", latency_name(measured, [variant, reference])):
        found = ratio(measured.costs, name, variant, reference)
        if found is not None and found.clear and abs(found.value - 1) > 0.002:
            return found.value < 1
    trained = ["train_seconds" in measured.costs.get(place, {}) for place in (variant, reference)]
    if trained[0] != trained[1]:
        return trained[1]
    found = ratio(measured.costs, "train_seconds", variant, reference)
    return found is not None and found.clear and found.value < 1


def _subject(measured: Measured, group: Group, place: Place) -> str:
    return f"the untouched base, {named(place)}" if _is_untouched(measured, place) else named(place)


def _is_untouched(measured: Measured, place: Place) -> bool:
    return not measured.study.variants[place.variant].methods


def _spoken(measured: Measured, variant: Place, reference: Place, quantity: Quantity) -> Difference | None:
    return difference_of(measured, variant, reference, spoken(measured, variant, quantity))


def _as_shown(measured: Measured, place: Place, quantity: Quantity) -> Quantity:
    found = spoken(measured, place, quantity)
    return found._replace(metric="perplexity") if found.metric == "loss" else found


def _right(share: float, num: int) -> str:
    return f"{share * num:.3g} of {num}"


def _answers_apart(gap: float) -> str:
    return f"{gap:.3g} answer{'' if math.isclose(gap, 1) else 's'} apart"
