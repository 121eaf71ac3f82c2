"""The numbers of a study, from its records: estimates, differences, costs, and what variants are ranked and decided by."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from paretune.analysis.agreement import read_ratings
from paretune.analysis.compare import Comparer, Difference, Pair, estimates_of, exp, views_of, with_views
from paretune.analysis.costs import noise_of, ratio, read_costs
from paretune.analysis.decision import HELD_OUT, choose, declared_measures, keep_to_limits, rank
from paretune.analysis.findings import HARNESS, Findings, Group, Marks
from paretune.analysis.scores import Entrant, Quantity, Samples, Seed, SeedScores, entrant_of, make_samples, read_scores
from paretune.analysis.training import disturbance, epochs_of, loss_falls, read_block_choices, read_curve
from paretune.pipeline.records import Cell, Results, read_lines
from paretune.study.data import SPLITS
from paretune.study.registry import metric_of, metrics
from paretune.study.study import Study
from paretune.study.tasks import task_metrics


def measure(results: Results, also_against: str | None = None) -> Findings:
    """All numbers of a study; `also_against` is a variant that all others are compared with, as with the baseline."""
    study = results.study
    scores = read_scores(results)
    samples = make_samples(scores)
    curves = {(entrant_of(cell), cell.seed): read_curve(cell) for cell in results.cells}
    costs = read_costs(results, {run: disturbance(curve) for run, curve in curves.items()})
    ratings = read_ratings(study, results.cells)
    findings = Findings(
        results=results,
        groups=tuple(_groups(results, samples)),
        estimates={entrant: estimates_of(known, study.compare.interval) for entrant, known in samples.items()},
        seed_scores={
            entrant: _seed_scores({quantity: by_seed[quantity] for quantity in samples[entrant]})
            for entrant, by_seed in scores.items()
        },
        differences={},
        costs=costs,
        ratios={},
        curves=curves,
        epochs={run: epochs_of(curve) for run, curve in curves.items()},
        block_choices={},
        ratings=ratings,
        audit={name: read_lines(record.path / "audit.jsonl") for name, record in results.audit.items()},
        marks=_marks(results),
    )
    withheld = {
        (name, criterion) for name, rating in ratings.items() for criterion, trust in rating.trust.items() if trust.withheld
    }
    tokenizers = {where: record.config["base"]["digest"] for where, record in results.tokens.items()}
    comparer = Comparer(scores, samples, study.compare, tokenizers, withheld)
    differences = _differences(findings, comparer, also_against)
    ratios = {
        (name, variant, reference): found
        for group in findings.groups
        for variant in group.entrants
        for reference in group.entrants
        for name in costs.get(variant, {})
        if variant != reference and (found := ratio(costs, name, variant, reference)) is not None
    }
    findings = replace(findings, differences=with_views(differences, study.compare), ratios=ratios)
    groups, block_choices = [], {}
    for group in findings.groups:
        cells = [cell for entrant in group.entrants for cell in results.cells if entrant_of(cell) == entrant]
        block_choices[group.base, group.dataset] = read_block_choices(cells, study.compare.interval)
        names = dict.fromkeys(
            name for entrant in group.entrants for name in costs.get(entrant, {}) if metric_of(name).of_machine
        )
        noise = {name: most for name in names if (most := noise_of(costs, name, group.entrants[0])) is not None}
        falls = {}
        for entrant in group.entrants:
            trained = [curve for (owner, _), curve in curves.items() if owner == entrant and len(curve)]
            falls[entrant.variant] = loss_falls(trained)
        falling = tuple(tuple(name for name, fell in falls.items() if fell[index]) for index in (0, 1))
        group = replace(group, noise=noise, falling=(falling[0], falling[1]), choice=choose(findings, group))
        groups.append(replace(group, limits=keep_to_limits(findings, group)))
        if group.choice is not None and group.choice.chosen != group.choice.best:
            for quantity in declared_measures(findings, group):
                differences |= comparer.between([group.choice.chosen, group.choice.best], quantity, differences)
    differences = with_views(differences, study.compare)
    return replace(findings, groups=tuple(groups), differences=differences, block_choices=block_choices)


def _groups(results: Results, samples: Samples) -> list[Group]:
    study, groups = results.study, []
    outside = [name for name, use in study.evaluate.items() if use.row.needs_untouched]
    own = [name for name in study.evaluate if name not in outside]
    asked = {name for name, use in study.evaluate.items() if use.kind != HARNESS}
    for dataset in study.data:
        scored = study.data[dataset].scored
        measured = {quantity.task for entrant, known in samples.items() if entrant.dataset == dataset for quantity in known}
        harness = sorted(measured - asked - set(scored))
        tasks = (*dict.fromkeys([*own, *scored, *harness]), *outside)
        for base in study.bases:
            here = {cell.variant for cell in results.cells if (cell.base, cell.dataset) == (base, dataset)}
            if not here:
                continue
            entrants = tuple(Entrant(base, dataset, name) for name in study.variants if name in here)
            quantities = tuple(dict.fromkeys(quantity for entrant in entrants for quantity in samples.get(entrant, {})))
            headline, decided_by = _headline(study, dataset, quantities, [task for task in tasks if task not in outside])
            groups.append(
                Group(
                    base=base,
                    dataset=dataset,
                    entrants=entrants,
                    baseline=next((entrant for entrant in entrants if entrant.variant == study.baseline), None),
                    untouched=next((entrant for entrant in entrants if not study.variants[entrant.variant].methods), None),
                    quantities=quantities,
                    headline=headline,
                    decided_by=decided_by,
                    tasks=tasks,
                    harness_tasks=tuple(harness),
                    chance=_chances([cell for cell in results.cells if entrant_of(cell) in entrants]),
                    slice_values=_slice_values(samples, entrants),
                )
            )
    return groups


def _headline(
    study: Study, dataset: str, quantities: Sequence[Quantity], tasks: Sequence[str]
) -> tuple[Quantity | None, Literal["family", "answers", "order"]]:
    """What variants are ranked by, and why: the first metric of the declared family, without one the score of the answers to
    the first task that has one, else the first metric of all; each of the first task and split that it was measured on."""

    def judged(metric: str, tasks: Sequence[str]) -> Quantity | None:
        asked = (Quantity(task, split, metric) for task in tasks for split in (*HELD_OUT, ""))
        return next((quantity for quantity in asked if quantity in quantities), None)

    for metric in study.compare.family:
        row = metric_of(metric)
        for stored in (row.hypothesis, row.exp_of, metric):
            if stored and (quantity := judged(stored, tasks)) is not None:
                return quantity, "family"
    for task, scoring in study.data[dataset].scored.items():
        for metric in task_metrics(scoring):
            if (quantity := judged(metric, [task])) is not None:
                return quantity, "answers"
    for row in metrics().values():
        if row.is_quality and row.ranks and (quantity := judged(row.name, tasks)) is not None:
            return quantity, "order"
    return None, "order"


def _chances(cells: Sequence[Cell]) -> dict[str, float]:
    """By evaluation: the share of multiple-choice questions that guessing answers, where a record tells it."""
    chances: dict[str, float] = {}
    for cell in cells:
        for name, record in cell.evaluations.items():
            if (chance := record.metrics.get("chance_accuracy")) is not None:
                chances.setdefault(name, float(chance))
    return chances


def _slice_values(samples: Samples, entrants: Sequence[Entrant]) -> dict[str, dict[str, dict[object, str]]]:
    """By task and field the value of each example, which are the same for every variant: read from the first that has any."""
    values: dict[str, dict[str, dict[object, str]]] = {}
    for entrant in entrants:
        new: dict[str, dict[str, dict[object, str]]] = {}
        for quantity, sample in samples.get(entrant, {}).items():
            if quantity.slice and quantity.task not in values:
                field, _, value = quantity.slice.partition(": ")
                new.setdefault(quantity.task, {}).setdefault(field, {}).update(dict.fromkeys(sample.items.examples, value))
        values |= new
    return values


def _seed_scores(scores: Mapping[Quantity, SeedScores]) -> dict[Quantity, dict[Seed, tuple[float, int]]]:
    """The weighted mean of each seed, and the number of its examples; views behind what they are made of."""
    found: dict[Quantity, dict[Seed, tuple[float, int]]] = {}
    for quantity, by_seed in scores.items():
        found[quantity] = {
            seed: (float((one.values * one.weights).sum() / one.weights.sum()), len(one.items)) for seed, one in by_seed.items()
        }
        for view in views_of(quantity.metric):
            found[quantity._replace(metric=view)] = {seed: (exp(value), num) for seed, (value, num) in found[quantity].items()}
    return found


def _differences(findings: Findings, comparer: Comparer, also_against: str | None) -> dict[Pair, Difference]:
    """Every comparison that anything reads."""
    baselines, headlines = {}, {}
    for group in findings.groups:
        for entrant in group.entrants:
            if group.baseline is not None and entrant != group.baseline:
                baselines[entrant] = group.baseline
            if group.headline is not None:
                headlines[entrant] = group.headline
    found = comparer.against_baselines(baselines, headlines)
    outside = {name for name, use in findings.study.evaluate.items() if use.row.needs_untouched}
    for group in findings.groups:
        if group.headline is not None:
            ranked = rank(findings, group, group.headline)
            told = group.headline._replace(metric=metric_of(group.headline.metric).told_as or group.headline.metric)
            with_margin = [q for q in group.quantities if q.metric in findings.study.compare.margin and not q.slice]
            for quantity in dict.fromkeys((group.headline, told, *with_margin)):
                found |= comparer.between(ranked, quantity, found)
        if also_against is not None and also_against in group.variants:
            reference = group.entrant(also_against)
            for entrant in group.entrants:
                for quantity in sorted(
                    comparer.samples.get(entrant, {}), key=lambda one: metric_of(one.metric).hypothesis != ""
                ):
                    if entrant != reference and metric_of(quantity.metric).is_quality:
                        found |= comparer.between([entrant, reference], quantity, found)
        for quantity in group.quantities:
            if (
                quantity.task in outside
                and quantity.metric == "bits_per_byte"
                and group.untouched is not None
                and not quantity.slice
            ):
                for entrant in group.entrants:
                    if entrant != group.untouched:
                        found |= comparer.between([entrant, group.untouched], quantity, found)
    for dataset in findings.study.data:
        bests: dict[Quantity, list[Entrant]] = {}
        for group in findings.groups:
            if group.dataset == dataset and group.headline is not None and not metric_of(group.headline.metric).per_token:
                bests.setdefault(group.headline, []).append(rank(findings, group, group.headline)[0])
        for quantity, entrants in bests.items():
            found |= comparer.between(entrants, quantity, found)
    return found


def _marks(results: Results) -> Marks:
    allowed = {name: record for name, record in results.leakage.items() if results.study.data[name].leakage == "allow"}
    return Marks(
        splits=frozenset(
            (name, split)
            for name, record in allowed.items()
            for split in SPLITS
            if record.metrics.get(f"documents_touched_{split}")
        ),
        tasks=frozenset(
            (name, task)
            for name, record in allowed.items()
            for task in results.study.evaluate
            if record.metrics.get(f"items_touched_{task}")
        ),
        tokenizers=frozenset(where for where, record in results.tokens.items() if record.metrics.get("lossy_examples")),
    )
