"""Every mistake ends in one clear message and a code, and leaves nothing half-written.

The table of all cases is printed at the end with `-s`, and by `python -m tests.bad_input.table`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input.harness import Case, Outcome
from tests.bad_input.table import GROUPS, markdown, run_in, workplace

CASES = [case for cases in GROUPS.values() for case in cases]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[tuple[Case, Outcome]]]:
    found: list[tuple[Case, Outcome]] = []
    yield found
    sys.stdout.write(f"\n{markdown(found)}")


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_ends_in_one_message(case: Case, place: Path, outcomes: list[tuple[Case, Outcome]]) -> None:
    outcome = run_in(place, case)  # which looks at the message and at every file
    assert outcome.exit_code == case.exit_code
    outcomes.append((case, outcome))
