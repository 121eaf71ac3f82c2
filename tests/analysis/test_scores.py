from dataclasses import replace
from pathlib import Path

import pytest

from paretune.analysis.scores import Entrant, Quantity, common_items, make_samples, read_scores
from tests.analysis.synthetic import Shape, make_results, write_scores

SMALL = Shape(seeds=(0,), documents=6, evaluations=("perplexity", "qa"), epochs=1)


def test_variants_scored_on_the_same_examples_share_one_list_of_them(tmp_path: Path) -> None:
    scores = read_scores(make_results(tmp_path, SMALL))
    quantity = Quantity("perplexity", "test", "loss")
    lists = {
        id(by_seed[seed].items)
        for entrant in scores
        for seed, by_seed in [(s, scores[entrant][quantity]) for s in scores[entrant][quantity]]
    }
    assert len(lists) == 1


def test_the_same_examples_in_another_order_are_brought_into_one(tmp_path: Path) -> None:
    rows = [
        {"split": "test", "document": name, "example": name, "metric": "loss", "value": value, "weight": weight}
        for name, value, weight in (("a", 1.0, 1.0), ("b", 2.0, 3.0), ("c", 5.0, 1.0))
    ]
    results = make_results(tmp_path, replace(SMALL, evaluations=("perplexity",)))
    first, second = results.cells[0].evaluations["perplexity"], results.cells[1].evaluations["perplexity"]
    write_scores(first.path, rows)
    write_scores(second.path, rows[::-1])
    scores = read_scores(results)
    quantity = Quantity("perplexity", "test", "loss")
    one, other = (scores[entrant][quantity] for entrant in list(scores)[:2])
    items = common_items([*one.values(), *other.values()])
    assert items is not None
    shared = [next(iter(side.values())).on(items) for side in (one, other)]
    assert shared[0].values.tolist() == shared[1].values.tolist() == [1.0, 2.0, 5.0]
    samples = make_samples(scores)
    assert [samples[entrant][quantity].mean for entrant in list(scores)[:2]] == [pytest.approx(12 / 5)] * 2


def test_slices_are_quantities_of_their_own_and_empty_examples_count_nothing(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, evaluations=("qa",)))
    base = {"split": "", "metric": "accuracy", "weight": 1.0}
    rows = [
        {**base, "document": "1", "example": "1", "value": 1.0, "slice.level": "easy"},
        {**base, "document": "2", "example": "2", "value": 0.0, "slice.level": "hard"},
        {**base, "document": "3", "example": "3", "value": 1.0, "slice.level": None},
        {**base, "document": "4", "example": "4", "value": 0.5, "slice.level": "easy", "weight": 0.0},
    ]
    write_scores(results.cells[0].evaluations["qa"].path, rows)
    found = read_scores(results)[Entrant("novels", "news", "base")]
    quantity = Quantity("qa", "", "accuracy")
    assert len(found[quantity][None].items) == 3
    assert found[quantity._replace(slice="level: easy")][None].values.tolist() == [1.0]
    assert found[quantity._replace(slice="level: hard")][None].values.tolist() == [0.0]
    assert len(found) == 3
