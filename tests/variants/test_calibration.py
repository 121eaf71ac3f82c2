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
    targets = sorted(int(token) for window in windows for token in window.example.ids[window.example.first_target :])
    assert targets == [*range(35), *range(1000, 1010), 2000]
    assert all(len(window.example.ids) <= 11 for window in windows)
    begun = [window for window in windows if window.example.ids[0] == PREFIX]
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
    assert sum(window.example.num_targets for window in windows) == 30
    assert draw(rows_of(0)) == []


def test_of_a_task_the_completion_is_scored_after_all_that_stands_before() -> None:
    context, prompt, completion = np.arange(20), np.arange(20, 25), np.arange(25, 28)
    row = {"document": "d", "context": context, "prompt": prompt, "completion": completion, "ids": np.arange(28)}
    (window,) = draw([row, row | {"completion": completion[:0]}])
    assert window.example.ids.tolist() == [PREFIX, *range(28)]
    assert window.example.ids[window.example.first_target :].tolist() == [25, 26, 27]
    assert len(draw([row] * 9, tokens=57)) == 3
