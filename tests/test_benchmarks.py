"""Benchmarks are run by hand: that they still find what they import, and know their options, is held here."""

from pathlib import Path

import pytest

from tests.lines import run_lines

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(file for file in FOLDER.glob("*.py") if "__main__" in file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_a_benchmark_finds_what_it_imports_and_says_how_it_is_run(script: Path, tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(FOLDER)!r}); sys.argv = [{script.name!r}, '--help'];"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    assert f"usage: {script.name}" in run_lines(code, tmp_path)
