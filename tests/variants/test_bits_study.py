"""Variants of 8 and 4 bits from a study file to the exported directory, by the command line, on a tiny model."""

import json
import shutil
from pathlib import Path

import pytest

from paretune.cli import main
from paretune.errors import NeedsError
from paretune.pipeline import checks
from paretune.pipeline.checks import check_targets
from paretune.study.methods import TrainLora
from paretune.study.registry import methods
from tests.conftest import STUDY, write_study
from tests.lines import run_lines
from tests.tiny import make_model

_LORA = "train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3"
_VARIANTS = f"""variants:
  base: []
  eight: [{{prune.blocks: {{count: 1, choose: last}}}}, {{{_LORA}, load: int8}}}}, {{quantize.int8: {{}}}}]
  four:  [{{{_LORA}, load: nf4}}}}, {{quantize.nf4: {{}}}}]
evaluate:
  perplexity: {{splits: [test]}}
  generate: {{prompts: ["A prompt"], max_new_tokens: 60}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    write_study(folder, STUDY[: STUDY.index("variants:")].replace("seeds: [0, 1]", "seeds: [0]") + _VARIANTS)
    shutil.rmtree(folder / "model")
    make_model("llama", folder / "model", hidden_size=64, head_dim=16)
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    return folder


@pytest.mark.parametrize(("variant", "form"), [("eight", "int8"), ("four", "hf")])
def test_the_card_of_an_export_writes_what_the_study_measured(folder, variant, form, tmp_path):
    to = tmp_path / "model"
    assert main(["export", str(folder / "study.yaml"), variant, "--to", str(to), "--format", form]) == 0
    code = (to / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    printed = run_lines(code, to)
    rows = map(json.loads, (folder / "out" / "generations.jsonl").read_text(encoding="utf-8").splitlines())
    (row,) = (row for row in rows if row["variant"] == variant)
    assert printed.removesuffix("\n").removesuffix("<|endoftext|>") == f"<bos>A prompt{row['text']}"


def test_the_report_tells_what_merging_changed(folder):
    report = " ".join((folder / "out" / "report.txt").read_text(encoding="utf-8").split())
    assert (
        "`four` was trained beside matrices in 4 bits (`load: nf4`) and is measured merged into the base as it was: " in report
    )
    assert "`eight` was trained beside matrices in 8 bits (`load: int8`)" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eight", "--format", "hf"], "--format hf: `eight` ends with `quantize.int8`; use `--format int8`"),
        (["four", "--format", "int8"], "--format int8: `four` ends with `quantize.nf4`; use `--format hf`"),
        (["base", "--format", "int8"], "is not measured in it; add a variant that ends with `quantize.int8: {}`"),
    ],
)
def test_another_form_is_refused(folder, arguments, message, tmp_path, capsys):
    assert main(["export", str(folder / "study.yaml"), *arguments, "--to", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err


def test_without_bitsandbytes_its_package_is_named(monkeypatch):
    monkeypatch.setattr(checks, "has", lambda *_: False)
    with pytest.raises(NeedsError, match=r"load: `nf4` needs the package `bitsandbytes`, .*; or leave the field out"):
        check_targets(TrainLora(load="nf4"), "variants.small[0].train.lora", "tiny", None)
    assert methods()["quantize.nf4"].needs == ("bitsandbytes", "accelerate")
