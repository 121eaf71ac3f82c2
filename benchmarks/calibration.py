"""How often two identical variants are declared different, how small a difference is found, and how often a cheaper variant
is recommended that is worse than the margin, or one that is as good, in simulated studies.

    python benchmarks/calibration.py [STUDY [--store DIR]] [--studies 400] [--only TABLE ...] [--scale EXAMPLES]

Without a study the scores are synthetic; with one that has run with two seeds or more, documents, their sizes and what seeds
do to each of them are drawn from its scores. `trained_pairs.py` asks the same of models that were really trained. Each table is
Markdown.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy import stats

from paretune.analysis.compare import Difference, difference, margin_of
from paretune.analysis.inference import DRAWS
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Items, Quantity, Scores, SeedScores, average, make_samples, read_scores
from paretune.api import open_results
from paretune.study.compare import Compare

DOCUMENTS = (20, 50, 100, 500, 1000)
DECIDED_ON = (6, 20, 60, 200)
"""Documents of the studies whose recommendation is looked at."""
SEEDS = (1, 3, 5)
QUANTITY = Quantity("perplexity", "test", "bits_per_byte")
ONE, OTHER = Entrant("base", "data", "one"), Entrant("base", "data", "other")


@dataclass(frozen=True)
class Population:
    """What documents are drawn from; arrays of shape (documents,)."""

    values: np.ndarray
    """Bits per byte."""
    sizes: np.ndarray
    """Bytes."""
    apart: np.ndarray
    """How far two seeds lie apart on the document, over the square root of 2, without what the seeds have in common."""
    seed_effect: float
    """Standard deviation of what a seed does to all documents."""
    between: np.ndarray
    """How far two variants lie apart on the document, without what all documents have in common."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?")
    parser.add_argument("--store")
    parser.add_argument("--studies", type=int, default=400, help="simulated for each cell of a table")
    parser.add_argument("--scale", type=int, default=0, help="time 20 variants on so many examples")
    tables = {"alike": show_alike, "power": show_power, "answers": show_answers, "decisions": show_decisions}
    parser.add_argument("--only", nargs="*", choices=list(tables), default=list(tables), help="tables")
    arguments = parser.parse_args()
    population = synthetic() if arguments.study is None else of_study(arguments.study, arguments.store)
    for name in arguments.only:
        tables[name](population, arguments.studies)
    if arguments.scale:
        show_scale(arguments.scale)


def synthetic(documents: int = 2000) -> Population:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(7, 0.8, documents))
    return Population(
        rng.normal(1.0, 0.15, documents), sizes, rng.standard_t(5, documents) * 0.02, 0.002, rng.standard_t(5, documents) * 0.03
    )


def of_study(study: str, store: str | None) -> Population:
    """The first two variants with several seeds, in the quantity that their study is judged by."""
    results = open_results(study, store)
    scores = read_scores(results)
    samples = make_samples(scores)
    for group in measure(results).groups:
        quantity = group.headline
        known = {entrant: samples[entrant].get(quantity) for entrant in group.entrants} if quantity is not None else {}
        several = {entrant: sample for entrant, sample in known.items() if sample is not None and len(sample.seeds) > 1}
        if quantity is None or len(several) < 2:
            continue
        (entrant, sample), *_, (other, against) = several.items()
        one, two = (average({seed: scores[entrant][quantity][seed]}) for seed in sample.seeds[:2])
        assert one is not None
        assert two is not None
        apart, between = (one.sums - two.sums) / sample.weights / np.sqrt(2), (against.sums - sample.sums) / sample.weights
        apart, between = (residual - np.average(residual, weights=sample.weights) for residual in (apart, between))
        effect = float(np.std(list(sample.by_seed.values()), ddof=1))
        print(f"Drawn from {len(apart)} documents of `{entrant.variant}` and `{other.variant}`, {quantity.metric}.\n")
        return Population(sample.sums / sample.weights, sample.weights, apart, effect, between)
    raise SystemExit("the study has no two variants with two seeds of scores")


def draw(
    population: Population, documents: int, seeds: int, gap: float, rng: np.random.Generator, kind: float = 0.0, others: int = 1
) -> list[SeedScores]:
    """The scores of a variant and of `others`, each worse by `gap` and apart by `kind` times what lies between two variants."""
    picked = rng.integers(0, len(population.values), documents)
    names = np.arange(documents).astype(object)
    items = Items(names, names)
    sides: list[SeedScores] = []
    for side in range(others + 1):
        found, own = {}, kind * population.between[picked] * rng.choice([-1, 1], documents) * (side > 0)
        for seed in range(seeds):
            residual = population.apart[picked] * rng.choice([-1, 1], documents)
            moved = residual + rng.normal(0, population.seed_effect) + gap * (side > 0) + own
            found[seed] = Scores(items, population.values[picked] + moved, population.sizes[picked])
        sides.append(found)
    return sides


def compared(sides: Sequence[SeedScores]) -> Difference:
    found = difference((OTHER, sides[1]), (ONE, sides[0]), QUANTITY, 0.95)
    assert found is not None
    return found


def naive(sides: Sequence[SeedScores]) -> bool:
    """A paired t test on all scores of all seeds, as if they were independent."""
    values = [np.concatenate([scores.values for scores in side.values()]) for side in sides]
    return bool(stats.ttest_rel(values[1], values[0]).pvalue <= 0.05)


def show_alike(population: Population, studies: int) -> None:
    rows = []
    for documents in DOCUMENTS:
        row = [str(documents)]
        for seeds in SEEDS:
            rng = np.random.default_rng([documents, seeds])
            pairs = [draw(population, documents, seeds, 0.0, rng) for _ in range(studies)]
            row += [rate([compared(pair).detected for pair in pairs]), rate([naive(pair) for pair in pairs])]
        rows.append(row)
    header = ["documents", *(f"{seeds} seed{'s' * (seeds > 1)}{kind}" for seeds in SEEDS for kind in ("", ", naive t"))]
    print(f"Two identical variants declared different (aim: at most 5 %), {studies} simulated studies a cell.")
    print("One seed: the verdict is about these weights, which do differ; only several seeds make it one about the method.\n")
    print_table(header, rows)


def show_decisions(population: Population, studies: int) -> None:
    """The rule of a recommendation: the whole interval of a cheaper variant's loss, corrected for their number, inside 1 %."""
    level, margin = 0.95, 0.01 * float(np.average(population.values, weights=population.sizes))
    for others in (1, 3):
        rows = []
        for documents in DECIDED_ON:
            row = [str(documents)]
            for seeds in SEEDS:
                # One seed: the verdict is about these weights, of which a seed has no more to say.
                drawn_from = population if seeds > 1 else replace(population, seed_effect=0.0)
                for gap in (margin, 0.0):
                    rng = np.random.default_rng([documents, seeds, others])
                    shown, ahead = [], []
                    for _ in range(studies):
                        best, *cheaper = draw(drawn_from, documents, seeds, gap, rng, 1.0, others)
                        found = [difference((OTHER, side), (ONE, best), QUANTITY, 1 - (1 - level) / others) for side in cheaper]
                        limits = [(one, margin_of(Compare(), QUANTITY, one.reference_mean)) for one in found if one is not None]
                        ahead.append(any(one.mean < 0 for one, _ in limits))
                        shown.append(not ahead[-1] and any(one.loses_at_most(limit) for one, limit in limits))
                    row += [rate(shown)] + ([rate(ahead)] if gap else [])
            rows.append(row)
        each = ("worse by the margin", "worse, ahead by chance", "as good")
        header = ["documents", *(f"{seeds} seed{'s' * (seeds > 1)}: {what}" for seeds in SEEDS for what in each)]
        print(f"{others} cheaper, 1 % margin: how often one is recommended as no worse than the margin where each is truly")
        print(
            "worse by just that (aim: at most 5 %); how often one that is worse by that is recommended as the best, having the"
        )
        print("best mean by chance; how often one is recommended so where each is truly as good, and none has the best")
        print(f"mean anyway. {studies} simulated studies a cell.\n")
        print_table(header, rows)


def show_power(population: Population, studies: int) -> None:
    gaps = [gap * float(np.mean(population.values)) for gap in (0.001, 0.003, 0.01, 0.03)]
    rows = []
    for documents in DOCUMENTS:
        row = [str(documents)]
        smallest = []
        for gap in gaps:
            rng = np.random.default_rng(documents)
            found = [compared(draw(population, documents, 3, gap, rng)) for _ in range(max(100, studies // 4))]
            smallest += [one.mde for one in found if np.isfinite(one.mde)]
            row.append(rate([one.detected for one in found]))
        rows.append([*row, f"{np.median(smallest):.4f}"])
    print("Power: differences found, three seeds a side.\n")
    print_table(["documents", *(f"{gap:.4f} bits per byte" for gap in gaps), "smallest detectable (median)"], rows)


def show_answers(_: Population, studies: int) -> None:
    """Right-or-wrong answers of which a quarter differ between the variants."""
    gaps, differ = (0.0, 0.05, 0.1, 0.2), 0.25
    rows = []
    for questions in DOCUMENTS:
        names = np.arange(questions).astype(object)
        items = Items(names, names)
        row, smallest = [str(questions)], []
        for gap in gaps:
            rng = np.random.default_rng(questions)
            found = []
            for _ in range(studies):
                outcome = rng.choice([1, -1, 0], questions, p=[(differ + gap) / 2, (differ - gap) / 2, 1 - differ])
                both = rng.random(questions) < 0.5
                one = np.where(outcome == 0, both, outcome == -1).astype(float)
                other = np.where(outcome == 0, both, outcome == 1).astype(float)
                scores = [{0: Scores(items, side, np.ones(questions))} for side in (one, other)]
                found.append(compared(scores))
            smallest += [found_one.mde for found_one in found if np.isfinite(found_one.mde)]
            row.append(rate([found_one.detected for found_one in found]))
        rows.append([*row, f"{100 * np.median(smallest):.1f} points"])
    print(f"Answers to questions, {differ:.0%} of them different: gaps found (the first column is no gap).\n")
    print_table(["questions", *(f"{100 * gap:g} points" for gap in gaps), "smallest detectable (median)"], rows)


def show_scale(examples: int, variants: int = 20, per_document: int = 10) -> None:
    rng = np.random.default_rng(0)
    names = (np.arange(examples) // per_document).astype(object)
    items = Items(names, np.arange(examples).astype(object))
    hardness, sizes = rng.normal(1, 0.2, examples), rng.uniform(100, 500, examples)
    all_scores = [{0: Scores(items, hardness + rng.normal(0, 0.05, examples), sizes)} for _ in range(variants)]
    started = time.perf_counter()
    found = [compared([all_scores[0], scores]) for scores in all_scores[1:]]
    seconds = time.perf_counter() - started
    print(
        f"{examples:,} examples of {items.num_documents:,} documents, {variants} variants, {DRAWS:,} resamples: {seconds:.1f} s"
    )
    print(f"({sum(one.detected for one in found)} of {len(found)} identical ones declared different, uncorrected)")


def rate(found: Iterable[bool]) -> str:
    """`4.8 % ± 1.1`."""
    values = np.array(list(found), dtype=float)
    return f"{100 * values.mean():.1f} % ± {100 * np.sqrt(values.mean() * (1 - values.mean()) / len(values)):.1f}"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for line in _lines(header, rows):
        print(line)
    print(flush=True)


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---:|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    main()
