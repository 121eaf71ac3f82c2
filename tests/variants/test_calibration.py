"""Windows of training text: which documents, how many tokens, in which order."""

from typing import Any

import numpy as np
import pytest

from paretune.study.methods import Calibration
from paretune.variants.calibration import draw_windows

PREFIX = 99


def rows_of(*lengths: int) -> list[dict[str, Any]]:
    """A document of each length; token ids tell document and position."""
    return [{"document": f"d{number}", "ids": 1000 * number + np.arange(length)} for number, length in enumerate(lengths)]


def draw(rows: list[dict[str, Any]], max_length: int = 11, **fields: int) -> list[Any]:
    return draw_windows(rows, Calibration(**({"tokens": 10**6} | fields)), max_length, PREFIX)


def test_every_token_is_a_target_once_and_the_prefix_never() -> None:
    windows = draw(rows_of(35, 10, 1))
    targets = sorted(int(token) for window in windows for token in window.examples[0].ids[window.examples[0].first_target :])
    assert targets == [*range(35), *range(1000, 1010), 2000]
    assert all(len(window.examples[0].ids) <= 11 for window in windows)
    begun = [window for window in windows if window.examples[0].ids[0] == PREFIX]
    assert sorted(window.document for window in begun) == ["d0", "d1", "d2"]


def test_documents_give_their_windows_in_turn() -> None:
    windows = draw(rows_of(100, 100, 100), tokens=60)
    assert sorted(window.document for window in windows) == ["d0", "d0", "d1", "d1", "d2", "d2"]
    assert {window.document for window in windows[:3]} == {"d0", "d1", "d2"}


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (10, 1), (11, 2), (10**6, 30)])
def test_there_are_enough_windows_to_hold_the_tokens_and_no_more(tokens: int, expected: int) -> None:
    assert len(draw(rows_of(100, 100, 100), tokens=tokens)) == expected


def test_so_many_documents_are_drawn_and_the_seed_says_which() -> None:
    rows = rows_of(*[10] * 50)
    drawn = [[window.document for window in draw(rows, documents=5, seed=seed)] for seed in range(4)]
    assert {len(set(names)) for names in drawn} == {5}
    assert len({tuple(names) for names in drawn}) == 4
    assert drawn[1] == [window.document for window in draw(rows, documents=5, seed=1)]


def test_documents_of_several_rows_are_one_and_empty_ones_none() -> None:
    rows = rows_of(15, 15, 0)
    rows[1]["document"] = "d0"
    windows = draw(rows, documents=1)
    assert {window.document for window in windows} == {"d0"}
    assert sum(window.examples[0].num_targets for window in windows) == 30
    assert draw(rows_of(0)) == []


def task_row(document: str, context: int, prompt: int, completion: int) -> dict[str, Any]:
    """Ids count up, from a hundred for each column."""
    parts = {"context": np.arange(context), "prompt": 100 + np.arange(prompt), "completion": 200 + np.arange(completion)}
    return {"split": "train", "document": document, **parts, "ids": np.concatenate(list(parts.values()))}


def test_what_is_asked_of_one_context_is_one_window_that_reads_it_once() -> None:
    of_a = [task_row("a", 20, 5, 3), task_row("a", 20, 4, 2), task_row("a", 20, 4, 0), task_row("a", 9, 1, 1)]
    windows = draw([*of_a, task_row("b", 20, 1, 1)], documents=2)
    assert sorted((w.document, len(w.examples), w.num_tokens, w.num_targets) for w in windows) == [
        ("a", 1, 1 + 9 + 2, 1),
        ("a", 2, 1 + 20 + 8 + 6, 5),
        ("b", 1, 1 + 20 + 2, 1),
    ]
    first, second = next(w.examples for w in windows if len(w.examples) == 2)
    assert first.trunk is second.trunk
    assert first.trunk is not None
    assert first.trunk.tolist() == [PREFIX, *range(20)]
    assert first.ids.tolist() == [*range(100, 105), *range(200, 203)]
    assert (first.num_targets, second.num_targets) == (3, 2)
    assert len(draw([task_row(str(n), 20, 5, 3) for n in range(9)], tokens=57)) == 3  # each reads 28


def test_a_task_without_context_is_a_window_of_its_own() -> None:
    row = task_row("d", 0, 5, 3)
    windows = draw([row, row])
    assert [window.examples[0].ids.tolist() for window in windows] == [[PREFIX, *range(100, 105), *range(200, 203)]] * 2
    assert [window.num_targets for window in windows] == [3, 3]
