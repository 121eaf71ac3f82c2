"""What a report says about quality against cost: the Pareto frontier, and the recommendation under each limit of the study."""

from collections.abc import Iterator, Mapping, Sequence

from paretune.analysis import wording
from paretune.analysis.choose import (
    choose,
    cost_names,
    frontier,
    is_cheaper,
    is_measured,
    keeps_to,
    quantity_of,
    ranked_places,
)
from paretune.analysis.measured import Group, Measured, baseline
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import COST_WORDS, as_shown, better_word, cost_text, named, noun
from paretune.study.compare import QUALITY, Bound

_TOLD = 6
"""Beaten variants that are named."""


def frontier_sentence(measured: Measured, ranked: Sequence[Place], quantity: Quantity) -> Iterator[str]:
    """What nothing beats in quality and cost together, and what is beaten by which."""
    names = cost_names(measured, ranked)
    if len(ranked) < 3 or not names:
        return
    beaten = frontier(measured, ranked, quantity, names)
    best = [named(place) for place, by in beaten.items() if by is None]
    lost = list(_beaten({by: [place for place in beaten if beaten[place] == by] for by in beaten.values() if by is not None}))
    if best:
        words = wording.listed([COST_WORDS.get(name, name) for name in names])
        verb = "is" if len(best) == 1 else "are"
        rest = f"; beaten: {wording.listed(lost)}" if lost else ": none is beaten by another"
        quality = noun(as_shown(measured, ranked[0], quantity))
        yield f"On the Pareto frontier of {quality} against {words} {verb} {wording.listed(best)}{rest}."


def _beaten(by_rival: Mapping[Place, Sequence[Place]]) -> Iterator[str]:
    """`a and b (by c)`; of many their number, for the figure has them."""
    for rival, places in by_rival.items():
        names = wording.listed([named(place) for place in places]) if len(places) <= _TOLD else f"{len(places)} others"
        yield f"{names} (by {named(rival)})"


def limit_sentences(measured: Measured, group: Group, quantity: Quantity) -> Iterator[str]:
    """The recommendation under each limit of `compare: require`."""
    for limits in measured.study.compare.require:
        quality = next((metric for metric in limits if metric in QUALITY), None)
        ranked = ranked_places(measured, group, quantity)
        kept = [place for place in ranked if keeps_to(measured, group, place, limits)]
        words = wording.listed([_limit(measured, group, metric, bound) for metric, bound in limits.items()])
        if not kept:
            unknown = [metric for metric in limits if not is_measured(measured, group, metric)]
            nothing = f"{wording.listed([wording.code(metric) for metric in unknown])} was not measured" if unknown else ""
            yield f"With {words}: {nothing or 'no variant is shown to keep to it'}."
            continue
        if quality is None:
            chosen = choose(measured, kept, quantity)
            best = f"it has the {better_word(quantity)} {noun(as_shown(measured, chosen, quantity))}"
            reason = best if chosen == kept[0] else "none is shown to be better, and it is cheaper"
        else:
            chosen = kept[0]
            for place in kept[1:]:
                chosen = place if is_cheaper(measured, place, chosen) else chosen
            cheapest = any(is_cheaper(measured, chosen, place) for place in kept)
            reason = "it is the cheapest" if cheapest else "none is clearly cheaper"
        told = wording.listed([named(place) for place in kept])
        why = f"of those that keep to it ({told}) {reason}" if len(kept) > 1 else "no other is shown to keep to it"
        yield f"With {words}: {named(chosen)}; {why}."


def _limit(measured: Measured, group: Group, metric: str, bound: Bound) -> str:
    """`time per token at most 50 ms`."""
    reference = baseline(measured, group)
    found = quantity_of(measured, group, metric)
    what = noun(found) if found is not None else COST_WORDS.get(metric, metric.replace("_", " "))
    parts = []
    if bound.at_most is not None:
        parts.append(f"at most {cost_text(metric, bound.at_most)}")
    if bound.at_least is not None:
        parts.append(f"at least {cost_text(metric, bound.at_least)}")
    if bound.within is not None and reference is not None:
        parts.append(f"within {bound.within:g} of {named(reference)}")
    return f"{what} {' and '.join(parts)}"
