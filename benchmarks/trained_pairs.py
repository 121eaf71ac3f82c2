"""How often two identical variants, really trained with different seeds, are declared different: metric by metric.

    python benchmarks/trained_pairs.py pairs.csv [MORE.csv ...] [--first 0] [--pairs 200]

A pair is ten trainings of a tiny model (made here, nothing is fetched) on a split of its own: five seeds a side, of which the
first one, three and all five make a study each. Records with three tasks and a set of questions give right-or-wrong answers,
shares of words and of sets, likelihoods and bits per byte. Each pair is appended to the first file when it is done, so a run
that was stopped goes on; the tables are of all that the files hold. Stages run in this process, by the code of the workers.
"""

import argparse
import csv
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from scipy import stats

from benchmarks.calibration import print_table
from paretune.analysis.compare import difference
from paretune.analysis.scores import Entrant, Quantity, SeedScores, read_scores
from paretune.api import OpenStudy, open_study
from paretune.pipeline.results import read_results
from paretune.pipeline.stage import RunOptions
from paretune.pipeline.worker import RunContext, run_stage
from tests.tiny import make_model, make_tokenizer

SIDE = 5
SEEDS = (1, 3, 5)
SWAPS = 5
BASE_STEPS = 250
TUNING_STEPS = 10
RECORDS = 120
QUESTIONS = 50
VOCABULARY = 420
QUANTITIES = (
    Quantity("perplexity", "test", "bits_per_byte"),
    Quantity("title", "test", "rouge_l"),
    Quantity("tags", "test", "set_f1"),
    Quantity("type", "test", "accuracy"),
    Quantity("qa", "", "accuracy"),
    Quantity("qa", "", "log_likelihood"),
)
ONE, OTHER = Entrant("tiny", "notes", "one"), Entrant("tiny", "notes", "other")
_SIDES = tuple(f"{seeds} seed{'s' * (seeds > 1)} a side" for seeds in SEEDS)
COLUMNS = ("pair", "seeds", "metric", "documents", "one", "other", "p", "p_documents", "detected", "swaps")
STUDY = """
study: pairs
bases: {tiny: {path: model}}
data:
  notes:
    source: {path: notes.jsonl}
    document: name
    split: {train: 0.4, validation: 0.1, test: 0.5, seed: SPLIT}
    leakage: allow
    context: "{{ content }}"
    tasks:
      title: {prompt: "\\nTitle:", completion: " {{ title }}", score: [rouge_l], max_new_tokens: 4}
      tags:  {prompt: "\\nTags:", completion: " {{ tags | join(', ') }}", score: [set_f1], max_new_tokens: 5}
      type:  {prompt: "\\nType:", completion: " {{ type }}", labels: [calm, rough]}
train: {max_steps: STEPS, batch_size: 24, max_length: 48, evaluate_every: STEPS}
precision: {compute: float32}
seeds: SEEDS
variants:
  full: [{train.full: {learning_rate: 3.0e-3}}]
evaluate:
  perplexity: {splits: [test]}
  qa: {path: questions.jsonl}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="CSV files; new pairs are appended to the first")
    parser.add_argument("--first", type=int, default=0, help="number of the first pair")
    parser.add_argument("--pairs", type=int, default=0, help="to be there, from the first on; 0 for the tables alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, cpu = time.perf_counter(), time.process_time()
    done = {int(row["pair"]) for row in _rows(arguments.files)}
    new = [pair for pair in range(arguments.first, arguments.first + arguments.pairs) if pair not in done]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        for pair in new:
            _append(arguments.files[0], _judged(pair, _trained(folder, pair)))
            seconds = time.perf_counter() - started
            print(f"pair {pair}: {seconds:.0f} s, {time.process_time() - cpu:.0f} s of CPU", file=sys.stderr, flush=True)
    show(_rows(arguments.files))


def _trained(folder: Path, pair: int) -> Mapping[Quantity, SeedScores]:
    """Scores of equal runs with different seeds on a split of their own."""
    with _ran(folder, pair, TUNING_STEPS, range(2 * SIDE)) as opened:
        results = read_results(opened)
        return next(iter(read_scores(results).values()))


@contextmanager
def _ran(folder: Path, split: int, steps: int, seeds: Sequence[int]) -> Iterator[OpenStudy]:
    """The study with all of its stages done, in a store that is gone afterwards."""
    file = folder / "study.yaml"
    fields = {"SPLIT": split, "STEPS": steps, "SEEDS": list(seeds)}
    text = STUDY
    for name, value in fields.items():
        text = text.replace(name, str(value))
    file.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as store:
        opened = open_study(file, store)
        opened.store.prepare()
        run = RunContext(opened.store.root, "pairs", RunOptions(device="cpu"), tuple(sys.argv), None)
        for stage in opened.plan.stages:
            run_stage(stage, opened.store, run)
        yield opened


def _judged(pair: int, scores: Mapping[Quantity, SeedScores]) -> Iterator[list[object]]:
    for quantity in QUANTITIES:
        runs = list(scores[quantity].values())
        for seeds in SEEDS:
            one, other = (dict(enumerate(runs[start : start + seeds])) for start in (0, SIDE))
            found = difference((OTHER, other), (ONE, one), quantity, 0.95)
            assert found is not None
            means = (found.reference_mean, found.variant_mean, found.p, found.p_documents)
            name, figures = f"{quantity.task} {quantity.metric}", (f"{mean:.6g}" for mean in means)
            draw = np.random.default_rng([pair, seeds])
            swaps = [_p_swapped(one, other, quantity, draw) <= 0.05 for _ in range(SWAPS)]
            yield [pair, seeds, name, found.n_documents, *figures, int(found.detected), sum(swaps)]


def _p_swapped(one: SeedScores, other: SeedScores, quantity: Quantity, draw: np.random.Generator) -> float:
    """p of the weights where sides are swapped document by document, so that by design neither side is better."""
    items = next(iter(one.values())).items
    swap = draw.integers(0, 2, items.num_documents).astype(bool)[items.codes]
    sides = [
        {
            seed: replace(
                kept, values=np.where(swap, twin.values, kept.values), weights=np.where(swap, twin.weights, kept.weights)
            )
            for (seed, kept), twin in zip(left.items(), right.values(), strict=True)
        }
        for left, right in ((other, one), (one, other))
    ]
    found = difference((OTHER, sides[0]), (ONE, sides[1]), quantity, 0.95)
    assert found is not None
    return found.p_documents


def show(rows: Sequence[Mapping[str, str]]) -> None:
    """By kind of claim, one line a metric: the share declared different, with Clopper and Pearson's 95 % interval."""
    pairs = len({row["pair"] for row in rows})
    print(f"Identical variants, {pairs} pairs of {2 * SIDE} trainings, declared different at 5 % (95 % interval).\n")
    for claim, verdict in (("the method", lambda row: row["detected"] == "1"), ("these weights", _of_weights)):
        found: defaultdict[tuple[str, int], list[bool]] = defaultdict(list)
        means: defaultdict[str, list[float]] = defaultdict(list)
        for row in rows:
            found[row["metric"], int(row["seeds"])].append(verdict(row))
            means[row["metric"]].append(float(row["one"]))
        lines = [
            [
                metric,
                f"{min(values):.3g} to {max(values):.3g}",
                *(_share(sum(found[metric, seeds]), len(found[metric, seeds])) for seeds in SEEDS),
            ]
            for metric, values in means.items()
        ]
        print(f"Claims about {claim}:\n")
        print_table(["metric", "means", *_SIDES], lines)
    _show_swapped([row for row in rows if row.get("swaps")])


def _show_swapped(rows: Sequence[Mapping[str, str]]) -> None:
    """Claims about the weights where these are alike on average by design."""
    swapped: defaultdict[str, dict[int, list[int]]] = defaultdict(lambda: {seeds: [] for seeds in SEEDS})
    for row in rows:
        swapped[row["metric"]][int(row["seeds"])].append(int(row["swaps"]))
    lines = [[metric, *(_share(sum(one), SWAPS * len(one)) for one in found.values())] for metric, found in swapped.items()]
    print(f"Claims about these weights, sides swapped by document at random, {SWAPS} times a pair:\n")
    print_table(["metric", *_SIDES], lines)


def _of_weights(row: Mapping[str, str]) -> bool:
    return float(row["p_documents"]) <= 0.05


def _share(count: int, num: int) -> str:
    interval = stats.binomtest(count, num).proportion_ci(0.95, method="exact")
    return f"{100 * count / num:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _rows(files: Sequence[Path]) -> list[dict[str, str]]:
    return [row for file in files if file.exists() for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())]


def _append(file: Path, rows: Iterator[list[object]]) -> None:
    first, found = not file.exists(), list(rows)
    with file.open("a", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([COLUMNS, *found] if first else found)


_NOUNS = ("harbour", "engine", "letter", "lamp", "train", "driver", "garden", "bridge")
_CALM, _ROUGH = ("waits", "shines", "grows"), ("breaks", "sinks", "closes")


def _write_inputs(folder: Path) -> None:
    """The records, the questions, and a base that was trained on other records: scores at the floor would be alike for free."""
    draw = random.Random(0)
    (folder / "questions.jsonl").write_text("".join(_questions(draw)), encoding="utf-8")
    for steps in (BASE_STEPS, 0):
        (folder / "notes.jsonl").write_text("".join(_records(draw)), encoding="utf-8")
        if steps:
            _make_base(folder / "model", (folder / "notes.jsonl").read_text(encoding="utf-8"))
            with _ran(folder, 0, steps, [0]) as opened:
                trained = opened.store.root / opened.plan.cells[0].methods[-1].name
                shutil.copytree(trained, folder / "model", dirs_exist_ok=True)


def _records(draw: random.Random) -> Iterator[str]:
    for number in range(RECORDS):
        kind = draw.choice(("calm", "rough"))
        nouns = draw.sample(_NOUNS, 3)
        verbs = [draw.choice(_CALM if (kind == "calm") == (draw.random() < 0.8) else _ROUGH) for _ in nouns]
        content = " ".join(f"the {noun} {verb}." for noun, verb in zip(nouns, verbs, strict=True))
        row = {"name": f"n{number}", "content": content, "title": f"{nouns[0]} {verbs[0]}", "tags": nouns[:2], "type": kind}
        yield json.dumps(row) + "\n"


def _questions(draw: random.Random) -> Iterator[str]:
    for number, nouns in enumerate(draw.sample(list(itertools.permutations(_NOUNS, 2)), QUESTIONS)):
        verbs = draw.sample(_CALM + _ROUGH, 3)
        answer, asked = draw.randrange(3), f"the {nouns[0]} and the {nouns[1]}?"
        row = {"id": number, "question": asked, "options": verbs, "answer_index": answer, "answer": verbs[answer]}
        yield json.dumps(row) + "\n"


def _make_base(directory: Path, text: str) -> None:
    """Two blocks over a vocabulary that knows the words of `text`, so that a task is a few tokens."""
    make_model("llama", directory, num_hidden_layers=2, vocab_size=VOCABULARY)
    tokenizer = make_tokenizer().train_new_from_iterator([text], VOCABULARY)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main()
