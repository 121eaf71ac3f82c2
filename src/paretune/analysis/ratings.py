"""Ratings in the report: means by variant and rater, how far raters agree, and what may be concluded where they do.

Sentences and verdicts are withheld where raters do not agree (`trust`); the means stand in the tables all the same.
"""

import itertools
from collections.abc import Iterator

import pandas as pd

from paretune.analysis import wording
from paretune.analysis.agreement import RELIABLE, TENTATIVE, agreement, weighted_kappa
from paretune.analysis.answers import told_apart
from paretune.analysis.cells import mean_cell
from paretune.analysis.compare import Estimate
from paretune.analysis.document import Block, Paragraph, Section, Table
from paretune.analysis.measured import Group, Measured, estimate_of, quantities_of
from paretune.analysis.scores import Quantity
from paretune.analysis.sentences import noun
from paretune.analysis.trust import alpha_text, matrix, rated, rating_records, ratings_table, trust_of
from paretune.study.ratings import HIGHEST, LOWEST, Judge, Ratings


def ratings_section(measured: Measured, group: Group) -> Section | None:
    """Means by variant, by rater where there are several, and the agreement; None if nothing was rated."""
    blocks: list[Block] = []
    for name, config in rated(measured):
        if any(Quantity(name, "", criterion) in quantities_of(measured, group) for criterion in config.criteria):
            blocks += [_means(measured, group, name, config), *_by_slice(measured, group, name, config)]
            blocks += [_agreements(measured, name, config), *_missing(measured, name)]
    if blocks:
        blocks.append(Paragraph(_explained()))
    return Section("Ratings", blocks, level=3) if blocks else None


def rating_sentences(measured: Measured, group: Group) -> Iterator[str]:
    """What the ratings can tell, with what stands behind it; or that raters do not agree."""
    for name, config in rated(measured):
        for criterion in config.criteria:
            quantity = Quantity(name, "", criterion)
            if quantity not in quantities_of(measured, group):
                continue
            trust, what = trust_of(measured, name, criterion), noun(quantity)
            if trust.withheld:
                yield f"{wording.capital(what)}: no conclusion, as {trust.told}."
            else:
                yield from (f"{said.removesuffix('.')}; {trust.told}." for said in told_apart(measured, group, quantity))


def _means(measured: Measured, group: Group, name: str, config: Judge | Ratings) -> Table:
    rows, counted = [], ""
    for place in group.places:
        found = [estimate_of(measured, place, Quantity(name, "", criterion)) for criterion in config.criteria]
        known = next((one for one in found if one is not None), None)
        counted = counted or (f"{known.n_examples:,} ratings of each variant" if known else "")
        cells = (wording.UNKNOWN if one is None else _mean(one) for one in found)
        rows.append([place.variant, *cells])
    who = wording.code(config.model) if isinstance(config, Judge) else wording.listed(list(config.by_rater))
    return Table(("variant", *config.criteria), rows, f"{name}, from 1 to 5 by {who}: {counted}, {measured.interval}s")


def _mean(found: Estimate) -> str:
    return wording.with_interval(found.mean, max(found.low, LOWEST), min(found.high, HIGHEST))


def _by_slice(measured: Measured, group: Group, name: str, config: Judge | Ratings) -> Iterator[Table]:
    """Means by rater and by what the texts are, where there are several."""
    known = quantities_of(measured, group)
    slices = sorted({quantity.slice for quantity in known if quantity.task == name and quantity.slice})
    rows = []
    for part, place in itertools.product(slices, group.places):
        found = [estimate_of(measured, place, Quantity(name, "", criterion, part)) for criterion in config.criteria]
        rows.append([part, place.variant, *map(mean_cell, found)])
    if rows:
        yield Table(("slice", "variant", *config.criteria), rows, f"{name} by slice", words=2, grouped=True)


def _agreements(measured: Measured, name: str, config: Judge | Ratings) -> Table:
    """Alpha of all, kappa of pairs and of each with himself, each on the texts that both rated."""
    by_criterion = {criterion: dict(_agreement_rows(measured, name, criterion)) for criterion in config.criteria}
    labels = dict.fromkeys(label for found in by_criterion.values() for label in found)
    rows = [[label, *(found.get(label, wording.UNKNOWN) for found in by_criterion.values())] for label in labels]
    return Table(("agreement", *config.criteria), rows, f"{name}: agreement")


def _agreement_rows(measured: Measured, name: str, criterion: str) -> Iterator[tuple[str, str]]:
    trust, table = trust_of(measured, name, criterion), ratings_table(measured, [name])
    yield trust.between if trust.found else "of raters", alpha_text(trust.found) if trust.found else wording.UNKNOWN
    own = matrix(table, criterion)
    for one, other in itertools.combinations(own.index, 2):
        yield f"{one} and {other}", _kappa(weighted_kappa(own.loc[one].to_numpy(), own.loc[other].to_numpy()))
    for rater in own.index:
        again = matrix(table[table["rater"] == rater], criterion, by="occasion")
        found = agreement(again.to_numpy(), measured.level)
        if found is not None:
            yield f"{rater} with a second look", alpha_text(found)


def unread_items(measured: Measured) -> Iterator[str]:
    """Sheets of which some or all items are of other texts."""
    for name, config in rated(measured):
        records, table = rating_records(measured, [name]), ratings_table(measured, [name], missing=True)
        for rater in config.by_rater if isinstance(config, Ratings) and records else ():
            size = records[0].metrics[f"items_{rater}"]
            seen = len(table[table["rater"] == rater].drop_duplicates(["item", "occasion"]))
            if seen < size:
                yield (
                    f"{size - seen} of {size} items on the sheet of {wording.code(rater)} are no text of this study: it was "
                    "written for another one, or the models have been trained anew since."
                )


def _missing(measured: Measured, name: str) -> list[Block]:
    table = ratings_table(measured, [name], missing=True)
    empty = int(table["value"].isna().sum())
    told = f"{wording.plural(empty, 'rating')} of {len(table):,} missing: left empty, or no rating after several tries."
    return [Paragraph(told)] if empty else []


def _explained() -> str:
    return (
        "Agreement: Krippendorff's alpha for ordered ratings (1 perfect, 0 chance) with its interval over texts, and Cohen's "
        f"kappa with quadratic weights for pairs. From {RELIABLE} on it carries conclusions, from {TENTATIVE} tentative ones; "
        "below, none is drawn. Two variants are compared within each rater, on the texts after the same prompts."
    )


def _kappa(value: float) -> str:
    return wording.UNKNOWN if pd.isna(value) else f"kappa {value:.2f}"
