import re
from pathlib import Path

import pytest

from tests.analysis.golden import CASES, FOLDER, write


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_was_written(case: str, tmp_path: Path) -> None:
    for name, text in write(case, tmp_path).items():
        expected = (FOLDER / case / name).read_text(encoding="utf-8")
        assert rounded(text) == rounded(expected), f"{case}/{name}: see tests/analysis/golden.py"


def rounded(text: str) -> str:
    """Numbers with ten digits: the last of seventeen are another on another processor."""
    return re.sub(r"\d+\.\d{8,}(e[-+]\d+)?", lambda number: f"{float(number[0]):.10g}", text)
