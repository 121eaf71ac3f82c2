"""The table of bad input: case, exit code and message.

`python -m tests.bad_input.table` runs every case and prints it as Markdown; a case that does not end as it must stops it.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import peft  # noqa: F401  packages that it looks for speak as they are imported, which would stand beside a message

from tests.bad_input import damage_cases, data_cases, rater_cases, study_cases, world_cases
from tests.bad_input.harness import Case, Outcome, make_template, run_case

GROUPS = {
    "Study": (*study_cases.CASES, *rater_cases.CASES),
    "Data": data_cases.CASES,
    "Bases and stores": damage_cases.CASES,
    "World": world_cases.CASES,
}
LONGEST = 300
"""Characters of a message in the table."""


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that another user may enter, with the studies that cases start from."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        for finished in (False, True):
            make_template(_template(Path(name), finished=finished), finished=finished)
        yield Path(name)


def run_in(place: Path, case: Case) -> Outcome:
    """Run a case in a folder of its own below the workplace."""
    folder = place / "study"
    try:
        return run_case(case, _template(place, finished=case.finished), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def markdown(outcomes: Iterable[tuple[Case, Outcome]]) -> str:
    """The table of cases that have run."""
    lines = ["| case | message | exit code |", "|---|---|---|"]
    for case, outcome in outcomes:
        (message,) = outcome.messages
        # The folder of a trial says nothing to a reader.
        told = (
            re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+/study", "~/study", message)
            .replace("\n", " ⏎ ")
            .replace("|", "\\|")
        )
        told = told if len(told) <= LONGEST else told[: LONGEST - 3] + "..."
        shown = re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], told)  # outside of code it is a tag
        lines.append(f"| {case.name} | {shown} | {outcome.exit_code} |")
    return "\n".join(lines) + "\n"


def _template(place: Path, *, finished: bool) -> Path:
    return place / ("finished" if finished else "new")


def _write() -> None:
    with workplace() as place:
        for group, cases in GROUPS.items():
            sys.stdout.write(f"\n{group}\n\n{markdown((case, run_in(place, case)) for case in cases)}")
            sys.stdout.flush()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    _write()
