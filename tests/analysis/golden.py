"""What is written of four small studies that never ran, to the last byte: `python -m tests.analysis.golden` writes it anew.

A change of these files is read line by line before it is committed.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from paretune.report.outputs import write_outputs
from tests.analysis.synthetic import Shape, make_results

FOLDER = Path(__file__).parent / "golden"
SMALL = Shape(documents=12, epochs=1)
CASES = {
    "two-seeds": SMALL,
    "one-seed": replace(SMALL, seeds=(0,), evaluations=("perplexity", "qa")),
    "bases": replace(SMALL, bases=("novels", "stories"), seeds=(0,), evaluations=("perplexity", "latency")),
    "leaked": replace(SMALL, leakage="allow", evaluations=("qa", "generate")),
}
FILES = ("report.md", "comparisons.csv", "estimates.csv")
"""Of each study; the other files say the same in other forms."""


def write(case: str, folder: Path) -> dict[str, str]:
    """The text of each of FILES."""
    write_outputs(make_results(folder, CASES[case]), folder / "out", figures=False)
    return {name: (folder / "out" / name).read_text(encoding="utf-8") for name in FILES}


if __name__ == "__main__":
    for each in CASES:
        with tempfile.TemporaryDirectory() as place:
            for file_name, text in write(each, Path(place)).items():
                (FOLDER / each).mkdir(parents=True, exist_ok=True)
                (FOLDER / each / file_name).write_text(text, encoding="utf-8")
