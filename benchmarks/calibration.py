"""How often two identical variants are declared different, and how small a difference is found, in simulated studies.

    python benchmarks/calibration.py [STUDY [--store DIR]] [--studies 400] [--scale EXAMPLES]

Without a study the scores are synthetic; with one that has run with two seeds or more, documents, their sizes and what seeds
do to each of them are drawn from its scores. `trained_pairs.py` asks the same of models that were really trained. Each table is
Markdown.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy import stats

from paretune.analysis.compare import Difference, difference
from paretune.analysis.inference import DRAWS
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Items, Quantity, Scores, SeedScores, average, make_samples, read_scores
from paretune.api import open_results

DOCUMENTS = (20, 50, 100, 500, 1000)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?")
    parser.add_argument("--store")
    parser.add_argument("--studies", type=int, default=400, help="simulated for each cell of a table")
    parser.add_argument("--scale", type=int, default=0, help="time 20 variants on so many examples")
    parser.add_argument("--skip-simulated", action="store_true")
    arguments = parser.parse_args()
    population = synthetic() if arguments.study is None else of_study(arguments.study, arguments.store)
    if not arguments.skip_simulated:
        show_alike(population, arguments.studies)
        show_power(population, arguments.studies)
        show_answers(arguments.studies)
    if arguments.scale:
        show_scale(arguments.scale)


def synthetic(documents: int = 2000) -> Population:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(7, 0.8, documents))
    return Population(rng.normal(1.0, 0.15, documents), sizes, rng.standard_t(5, documents) * 0.02, 0.002)


def of_study(study: str, store: str | None) -> Population:
    """The first variant with several seeds, in the quantity that its study is judged by."""
    results = open_results(study, store)
    scores = read_scores(results)
    samples = make_samples(scores)
    for group in measure(results).groups:
        quantity = group.headline
        for entrant in group.entrants:
            sample = samples.get(entrant, {}).get(quantity) if quantity is not None else None
            if quantity is None or sample is None or len(sample.seeds) < 2:
                continue
            one, other = (average({seed: scores[entrant][quantity][seed]}) for seed in sample.seeds[:2])
            assert one is not None
            assert other is not None
            apart = (one.sums - other.sums) / sample.weights / np.sqrt(2)
            effect = float(np.std(list(sample.by_seed.values()), ddof=1))
            print(f"Drawn from {len(apart)} documents of `{entrant.variant}`, {quantity.metric} on {quantity.split}.\n")
            values = sample.sums / sample.weights
            return Population(values, sample.weights, apart - np.average(apart, weights=sample.weights), effect)
    raise SystemExit("the study has no variant with two seeds of scores")


def draw(population: Population, documents: int, seeds: int, gap: float, rng: np.random.Generator) -> list[SeedScores]:
    """The scores of two variants on the same documents; the second is worse by `gap`."""
    picked = rng.integers(0, len(population.values), documents)
    names = np.arange(documents).astype(object)
    items = Items(names, names)
    sides: list[SeedScores] = []
    for side in (0, 1):
        found = {}
        for seed in range(seeds):
            residual = population.apart[picked] * rng.choice([-1, 1], documents)
            moved = residual + rng.normal(0, population.seed_effect) + gap * side
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


def show_answers(studies: int) -> None:
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
