"""The comparisons of a report as tables: differences with what they could have shown, and how much of them seeds make up."""

import math
from collections.abc import Iterator, Sequence

from paretune.analysis import wording
from paretune.analysis.compare import Difference
from paretune.analysis.document import Block, Paragraph, Section, Table
from paretune.analysis.measured import FORGETTING, Group, Measured, baseline, difference_of, headline, untouched
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import amount_of, detectable_of, interval_of, noun, spoken, unit_of
from paretune.analysis.trust import withheld
from paretune.study.compare import QUALITY


def comparisons_section(measured: Measured, group: Group) -> Section | None:
    """Every comparison of whole tasks with the untouched base and the baseline, then the noise floor; None for none."""
    reference, quantity = baseline(measured, group), headline(measured, group)
    references = list(dict.fromkeys(one for one in (reference, untouched(measured, group)) if one is not None))
    blocks: list[Block] = []
    for other in references:
        found = list(_found(measured, group, other, quantity, everything=other == reference))
        if found:
            blocks.append(_table(measured, other, found, "baseline" if other == reference else "untouched"))
    if reference is not None and quantity is not None:
        blocks += _noise_floor(measured, group, reference, quantity)
    return Section("Comparisons", blocks, level=3) if blocks else None


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _found(
    measured: Measured, group: Group, reference: Place, headlined: Quantity | None, *, everything: bool
) -> Iterator[Difference]:
    """Differences on held-out text and whole question sets; only the headline unless `everything`."""
    quantities = [
        quantity
        for quantity in measured.samples.get(reference, {})
        if quantity.metric in QUALITY and not quantity.slice and not withheld(measured, quantity)
    ]
    kept = [one for one in quantities if one == headlined or (everything and _is_told(one, headlined))]
    for quantity in sorted(kept, key=lambda one: one != headlined):
        for place in group.places:
            unit = spoken(measured, place, quantity)
            found = None if place == reference else difference_of(measured, place, reference, unit)
            if found is not None:
                yield found


def _is_told(quantity: Quantity, headlined: Quantity | None) -> bool:
    """Losses are said in bits per byte or perplexity, and validation only where nothing else was held out.

    Two variants differ in `forgetting` by as much as in bits per byte on the same text.
    """
    again = quantity.metric in ("loss", "accuracy_unnormalised", FORGETTING)
    return not again and quantity.split in ("test", "", headlined.split if headlined else "")


def _table(measured: Measured, reference: Place, found: Sequence[Difference], what: str) -> Table:
    level = measured.interval
    header = ("measure", "variant", "change", level, "p", "detectable", "verdict")
    rows = [
        [
            f"{noun(one.quantity).replace('`', '')}{f', {unit}' if unit else ''}",
            one.variant.variant,
            amount_of(one, signed=True).removesuffix(f" {unit}"),
            _ends(one, unit),
            p_text(one.p_adjusted),
            detectable_of(one).removesuffix(f" {unit}") or wording.UNKNOWN,
            one.verdict,
        ]
        for one in found
        for unit in [unit_of(one.quantity)]
    ]
    scope = "; one seed: about these weights" if max(one.n_seeds for one in found) == 1 else ""
    caption = f"Against {wording.code(reference.variant)} ({what}), paired by document; p is corrected for its family{scope}"
    return Table(header, rows, caption, words=2, grouped=True)


def _ends(one: Difference, unit: str) -> str:
    found = interval_of(one)
    return found.split(" interval ")[-1].removesuffix(f" {unit}") if " interval " in found else wording.UNKNOWN


def _noise_floor(measured: Measured, group: Group, reference: Place, quantity: Quantity) -> list[Block]:
    """Standard errors of the headline's differences, by what they come from."""
    found = [
        one
        for place in group.places
        if place != reference and (one := difference_of(measured, place, reference, quantity)) is not None
    ]
    seeded = [one for one in found if one.n_seeds > 1 and math.isfinite(one.errors.total) and one.errors.total > 0]
    if not seeded:
        return []
    rows = []
    for one in seeded:
        share = (one.errors.seeds / one.errors.total) ** 2
        rows.append(
            [
                one.variant.variant,
                f"{one.mean:+.{wording.decimals(one.mean, 2)}f}",
                wording.number(one.errors.documents, 2),
                wording.number(one.errors.seeds, 2),
                f"{100 * share:.0f} %",
                str(one.n_seeds),
            ]
        )
    header = ("variant", "difference", "error over documents", "error over seeds", "seeds' share", "seeds")
    caption = f"Noise floor: what the difference in {noun(quantity)} from {wording.code(reference.variant)} is uncertain by"
    note = "More documents shrink the first error, more seeds the second; the share is that of the variance of the difference."
    return [Table(header, rows, caption), Paragraph(note)]
