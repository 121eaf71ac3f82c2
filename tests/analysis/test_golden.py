from pathlib import Path

import pytest

from tests.analysis.golden import CASES, FOLDER, write


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_was_written(case: str, tmp_path: Path) -> None:
    for name, text in write(case, tmp_path).items():
        assert text == (FOLDER / case / name).read_text(encoding="utf-8"), f"{case}/{name}: see tests/analysis/golden.py"
