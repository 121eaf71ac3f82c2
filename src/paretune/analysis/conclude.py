"""What a study shows: the recommendation, the trades and the findings, each computed and said only where it holds.

A variant is recommended if it cannot be told apart from the best and none of those that cannot is cheaper; under a limit of the
study, the same among those that are shown to keep to it.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paretune.analysis import wording
from paretune.analysis.answers import answer_sentences
from paretune.analysis.caveats import chosen_on_validation, disturbed_times, short_training, untuned
from paretune.analysis.choose import choose, is_cheaper, near_best, ranked_places
from paretune.analysis.compare import Difference, Estimate
from paretune.analysis.costs import trained_records
from paretune.analysis.deviations import marks_of, much_left_out
from paretune.analysis.elsewhere import forgetting_sentences
from paretune.analysis.limits import frontier_sentence, limit_sentences
from paretune.analysis.measured import Group, Measured, baseline, cells_of, difference_of, estimate_of, headline, untouched
from paretune.analysis.ratings import rating_sentences, unread_items
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import (
    SHARES,
    amount_of,
    as_shown,
    better_word,
    cost_clauses,
    detectable,
    interval_of,
    named,
    noun,
    quality_clause,
    sources,
    spoken,
    trade_sentence,
    value_of,
)
from paretune.analysis.tuning import edge_choices, unequal_tuning
from paretune.study.grid import file_name

_MEMORISED = 1.5
"""Perplexity of held-out text below which memorised text is likelier than a good model."""
_THIN = 30
"""Documents or questions below which `cannot be told apart` says little."""
_NOTHING = "No recommendation"
_TOLD = 6
"""Variants that are told apart in words; a study of many reads better in its tables."""


@dataclass(frozen=True)
class Conclusions:
    recommendation: tuple[str, ...]
    findings: tuple[str, ...]
    chosen: Place | None = None
    """The recommended variant; None where there is no recommendation."""


def conclude(measured: Measured, group: Group) -> Conclusions:
    """Sentences of one base on one dataset, the recommendation first."""
    quantity = headline(measured, group)
    ranked = [] if quantity is None else ranked_places(measured, group, quantity)
    if quantity is None or not ranked:
        return Conclusions(("Nothing was measured that variants are ranked by.",), tuple(rating_sentences(measured, group)))
    recommendation, said = _recommend(measured, ranked, quantity)
    comparable = not recommendation[0].startswith(_NOTHING)  # else costs alone would decide what beats what
    findings = [
        *([*limit_sentences(measured, group, quantity), *frontier_sentence(measured, ranked, quantity)] if comparable else []),
        *_learned(measured, group, ranked, quantity, said),
        *_trades(measured, group, ranked, quantity, said),
        *answer_sentences(measured, group, quantity),
        *rating_sentences(measured, group),
        *forgetting_sentences(measured, group),
        *_warnings(measured, ranked),
        *short_training(measured, group),
        *chosen_on_validation(measured, quantity),
    ]
    recommended = any(sentence.startswith("Recommended") for sentence in recommendation)
    chosen = choose(measured, ranked, quantity) if recommended else None
    return Conclusions(tuple(recommendation), tuple(findings), chosen)


def export_command(measured: Measured, place: Place) -> str:
    """How to write a variant as a directory: literal text, with the options that the study makes necessary."""
    study, cells = measured.study, cells_of(measured, place)
    seeds = [cell.seed for cell in sorted(cells, key=lambda cell: bool(cell.missing))]
    options = [f"--base {place.base}"] if len(study.bases) > 1 else []
    options += [f"--data {place.dataset}"] if len(study.data) > 1 else []
    options += [f"--seed {seeds[0]}"] if len(seeds) > 1 else []
    among = (place.base, len(study.bases)), (place.dataset, len(study.data)), (place.variant, 2)
    to = f"--to {'-'.join(file_name(name) for name, num in among if num > 1)}-exported"
    return f"`{' '.join(['paretune export', measured.results.study_file.name, shlex.quote(place.variant), to, *options])}`"


def across_bases(measured: Measured, dataset: str) -> list[str]:
    """Which base is ahead on a dataset, in bits per byte, which tokenizers do not bend; nothing for a single base."""
    best: list[tuple[float, Place, Quantity]] = []
    for group in (group for group in measured.groups if group.dataset == dataset):
        quantity = headline(measured, group)
        if quantity is not None and quantity.metric == "bits_per_byte" and (ranked := ranked_places(measured, group, quantity)):
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


def remarks(measured: Measured) -> list[str]:
    """What holds for the whole study: what so few questions, so few seeds, and leaked texts allow to say."""
    return [
        *much_left_out(measured),
        *_leaks(measured),
        *unread_items(measured),
        *_unmeasured(measured),
        *_disturbed(measured),
        *_seeds(measured),
        *untuned(measured),
        *unequal_tuning(measured),
        *edge_choices(measured),
    ]


def _unmeasured(measured: Measured) -> Iterator[str]:
    known = {quantity.metric for quantities in measured.samples.values() for quantity in quantities}
    known |= {"perplexity"} if "loss" in known else set()
    missing = [wording.code(metric) for metric in measured.study.compare.family if metric not in known]
    if missing and known:
        yield f"Declared for the family and not measured: {wording.listed(missing)}."


def _leaks(measured: Measured) -> Iterator[str]:
    marks = marks_of(measured)
    for dataset in measured.study.data:
        touched = [name for where, name in sorted({*marks.splits, *marks.tasks}) if where == dataset and name != "train"]
        if touched:
            names = wording.listed([wording.code(name) for name in touched])
            yield f"Part of {names} also stands in the training data of {wording.code(dataset)}: those figures are too good."


def _disturbed(measured: Measured) -> Iterator[str]:
    """Where the machine was too busy for its times to be trusted."""
    for group in measured.groups:
        told = [f"{word} by {wording.times(factor)}" for word, factor in disturbed_times(measured, group).items()]
        if told:
            where = f" ({wording.code(group.base)} on {wording.code(group.dataset)})" if len(measured.groups) > 1 else ""
            yield (
                f"Times were disturbed{where}: runs, or parts of one, that should be equally fast differ in "
                f"{wording.listed(told)}; differences that are not clearly larger are not told."
            )


def _seeds(measured: Measured) -> Iterator[str]:
    seeds = {cell.seed for cell in measured.results.cells if trained_records(cell)}
    if len(seeds) == 1:
        yield "One training seed: the verdicts are about these trained weights, on new documents; another run may differ."
    elif len(seeds) == 2:
        yield (
            "Two training seeds: their spread widens the intervals of differences, but a claim about a method, rather than "
            "about these runs, needs three or more."
        )


def _recommend(measured: Measured, ranked: Sequence[Place], quantity: Quantity) -> tuple[list[str], set[tuple[Place, Place]]]:
    """Sentences, and the pairs (variant, reference) that they have dealt with."""
    best = ranked[0]
    if len(ranked) == 1:
        return [f"One variant was measured, {named(best)}: there is nothing to choose between."], set()
    known = [one for place in ranked[1:] if (one := _spoken(measured, place, best, quantity)) is not None]
    if not any(math.isfinite(one.low) for one in known):
        return [f"{_NOTHING}: {sources(known[0]) if known else 'nothing'} cannot tell variants apart."], set()
    near, chosen = near_best(measured, ranked, quantity), choose(measured, ranked, quantity)
    said = {(chosen, best), (best, chosen)}
    if chosen == best:
        sentences = [_best_is_chosen(measured, best, near[1:], quantity)]
    else:
        sentences = [_cheaper_is_chosen(measured, chosen, best, quantity)]
    for place in ranked:
        if place != chosen and place not in near and is_cheaper(measured, place, chosen):
            trade = trade_sentence(measured, place, chosen, quantity)
            told_cheaper = bool(cost_clauses(measured, place, chosen)[0])
            if (
                trade is not None
                and told_cheaper
                and not _is_untouched(measured, place)
                and not _worse_than_base(measured, place, quantity)
            ):
                sentences.append(f"Cheaper at a price: {trade}")
                said |= {(place, chosen), (chosen, place)}
    return sentences, said


def _best_is_chosen(measured: Measured, best: Place, near: Sequence[Place], quantity: Quantity) -> str:
    found = estimate_of(measured, best, as_shown(measured, best, quantity))
    assert found is not None
    shown = wording.share(found.mean) if quantity.metric in SHARES else wording.number(found.mean)
    what = f"the {better_word(quantity)} {noun(as_shown(measured, best, quantity))} ({shown}) on {_scored_on(found, quantity)}"
    subject = _subject(measured, best)
    if not near:
        scored = [place for place in measured.samples if place[:2] == best[:2] and quantity in measured.samples[place]]
        everyone = len(scored) == len(measured.study.variants)
        lead = "its lead over every other variant" if everyone else "its lead over the others that were measured"
        return f"Recommended: {subject}. It has {what}, and {lead} is detected."
    others = wording.listed([named(place) for place in near])
    cheaper = "is not clearly cheaper" if len(near) == 1 else "are not clearly cheaper"
    return f"Recommended: {subject}. It has {what}; {others} cannot be told apart from it and {cheaper}."


def _scored_on(found: Estimate, quantity: Quantity) -> str:
    """`61 documents`: how little or how much a recommendation stands on."""
    return wording.plural(found.n_documents, "document" if quantity.split else "question")


def _cheaper_is_chosen(measured: Measured, chosen: Place, best: Place, quantity: Quantity) -> str:
    difference = _spoken(measured, chosen, best, quantity)
    assert difference is not None
    cheaper, _ = cost_clauses(measured, chosen, best)
    if _is_untouched(measured, chosen):
        reason = "it needs no training"
    else:
        reason = f"it {wording.listed(cheaper)}" if cheaper else "it needs no training"
    apart = f"; the {difference.n_seeds} seeds lie far apart" if difference.detected_for_weights else ""
    how = f"Recommended, on the thin evidence of {sources(difference)}" if difference.n_documents < _THIN else "Recommended"
    return (
        f"{how}: {_subject(measured, chosen)}. Its {noun(difference.quantity)} on {sources(difference)} cannot be told apart "
        f"from the best, that of {named(best)} ({amount_of(difference, signed=True)}, {interval_of(difference)}{apart}"
        f"{detectable(difference)}), and {reason}."
    )


def _learned(
    measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity, said: set[tuple[Place, Place]]
) -> Iterator[str]:
    """What the methods brought against the base as it came."""
    base = untouched(measured, group)
    others = [place for place in ranked if place != base]
    if base is None or base not in ranked or not others:
        return
    found = [one for place in others if (one := _spoken(measured, place, base, quantity)) is not None]
    if better := [one for one in found if one.detected and one.better]:
        yield _better_than_base(better, everyone=len(better) == len(others))
    rest = [one for one in found if not (one.detected and one.better) and (one.variant, base) not in said]
    for one in rest:
        if one.detected:
            yield f"{named(one.variant)} is worse than the untouched base: {quality_clause(one)}."
    if alike := [one for one in rest if one.verdict == "equivalent"]:
        names = wording.listed([named(one.variant) for one in alike])
        yield f"Equivalent to the untouched base in {noun(alike[0].quantity)}, within the margin of the study: {names}."
    if same := [one for one in rest if one.verdict == "no difference detected"]:
        shown = [f"{named(one.variant)} ({amount_of(one, signed=True)}, {interval_of(one)})" for one in same]
        yield f"No difference in {noun(same[0].quantity)} from the untouched base is detected for {wording.listed(shown)}."


def _better_than_base(better: Sequence[Difference], *, everyone: bool) -> str:
    """`better` is sorted, best first."""
    first, last = better[0], better[-1]
    start = f"{noun(first.quantity)} from {value_of(first, first.reference_mean)} to {value_of(first, first.variant_mean)}"
    if len(better) == 1:
        shown = f"{start}, {amount_of(first, signed=True)} ({interval_of(first)})"
        return f"{named(first.variant)} is better than the untouched base: {shown}."
    subject = "Every other variant is" if everyone else f"{wording.listed([named(one.variant) for one in better])} are"
    end = f"{value_of(last, last.variant_mean)} ({named(last.variant)}, {amount_of(last, signed=True)}) at worst"
    best = f"({named(first.variant)}, {amount_of(first, signed=True)}) at best"
    return f"{subject} better than the untouched base: {start} {best}, {end}."


def _trades(
    measured: Measured, group: Group, ranked: Sequence[Place], quantity: Quantity, said: set[tuple[Place, Place]]
) -> Iterator[str]:
    """Every other variant against the baseline, the best ones in words."""
    reference = baseline(measured, group)
    if reference is None or reference not in ranked or _is_untouched(measured, reference):
        return  # a comparison with the untouched base has been said
    left = [
        place
        for place in ranked
        if place != reference and not _is_untouched(measured, place) and (place, reference) not in said
    ]
    for place in left[:_TOLD]:
        sentence = trade_sentence(measured, place, reference, quantity)
        if sentence is not None:
            yield sentence
    if len(left) > _TOLD:
        yield f"{wording.plural(len(left) - _TOLD, 'variant')} with a worse {noun(quantity)} than these: see the tables."


def _warnings(measured: Measured, ranked: Sequence[Place]) -> Iterator[str]:
    for place in ranked:
        for held_out, sample in measured.samples[place].items():
            if held_out.metric == "loss" and held_out.split in ("validation", "test") and not held_out.slice:
                perplexity = math.exp(min(sample.mean, 700))
                if perplexity < _MEMORISED:
                    yield (
                        f"The {held_out.split} perplexity of {named(place)} is {wording.number(perplexity)}: so low that "
                        "held-out text is likely to stand in the training data, or in what the base was pretrained on."
                    )


def _subject(measured: Measured, place: Place) -> str:
    return f"the untouched base, {named(place)}" if _is_untouched(measured, place) else named(place)


def _worse_than_base(measured: Measured, place: Place, quantity: Quantity) -> bool:
    base = untouched(measured, Group(place.base, place.dataset, tuple(measured.study.variants)))
    difference = None if base is None else _spoken(measured, place, base, quantity)
    return difference is not None and difference.detected and not difference.better


def _is_untouched(measured: Measured, place: Place) -> bool:
    return not measured.study.variants[place.variant].methods


def _spoken(measured: Measured, variant: Place, reference: Place, quantity: Quantity) -> Difference | None:
    return difference_of(measured, variant, reference, spoken(measured, variant, quantity))
