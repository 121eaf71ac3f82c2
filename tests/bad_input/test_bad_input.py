"""Every mistake ends in one clear message and a code, and leaves nothing half-written.

With `-s` the table of all cases is printed at the end; `python -m tests.bad_input.table` prints it without the test's words.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input import data_cases, study_cases
from tests.bad_input.harness import Case, Outcome, make_template, run_case
from tests.bad_input.table import row

GROUPS = {"study": study_cases.CASES, "data": data_cases.CASES}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("templates")
    return {finished: make_template(folder / str(finished), finished=finished) for finished in (False, True)}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    found: dict[str, Outcome] = {}
    yield found
    sys.stdout.write("\n" + "\n".join(row(name, outcome) for name, outcome in found.items()) + "\n")


@pytest.mark.parametrize("case", [case for cases in GROUPS.values() for case in cases], ids=lambda case: case.name)
def test_a_mistake_ends_in_one_message(
    case: Case, templates: dict[bool, Path], tmp_path: Path, outcomes: dict[str, Outcome]
) -> None:
    outcomes[case.name] = run_case(case, templates[case.finished], tmp_path / "study")
