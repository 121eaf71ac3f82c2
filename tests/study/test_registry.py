"""Rows of a third party: a package found by its entry point, used in a study, and told about where it is broken.

The package is a module and the metadata that an installer would write, in a folder on PYTHONPATH: what an installation leaves.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.errors import SpecError
from paretune.study.registry import evaluations, find_evaluation, find_method, load_function, methods
from tests.conftest import write_study

METHOD = '''
from pydantic import Field

from paretune.study.base import Spec
from paretune.study.metrics import Metric
from paretune.study.registry import Evaluation, Method


class Scale(Spec):
    """Multiply every matrix."""

    by: float = Field(gt=0)
    """The factor."""


METHOD = Method("scale.all", Scale, "enlarger.work:scale", revision=3)
LARGEST = Metric("largest", "largest share of a tensor", "lower", "share", 0.0, 1.0, title="Largest share")
EVALUATION = Evaluation("count", Scale, "enlarger.work:count", metrics=(LARGEST,))
'''
WORK = """
import pandas as pd
import torch

from paretune.model.load import load_model


def scale(context):
    loaded = load_model(context, torch.float32)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(context.config["method"]["by"])
    loaded.model.save_pretrained(context.draft)
    loaded.tokenizer.hf.save_pretrained(context.draft)
    return {"scaled": len(list(loaded.model.parameters()))}


def count(context):
    tensors = dict(load_model(context).model.named_parameters())
    rows = [
        {"split": "", "document": name, "example": name, "metric": "largest", "weight": 1.0}
        | {"value": min(1.0, float(tensor.abs().mean()))}
        for name, tensor in tensors.items()
    ]
    pd.DataFrame(rows).to_parquet(context.draft / "scores.parquet")
    return {"largest": max(row["value"] for row in rows)}
"""
POINTS = "[paretune.methods]\nscale.all = enlarger:METHOD\n\n[paretune.evaluations]\ncount = enlarger:EVALUATION\n"
STUDY = """
study: small
bases: {tiny: {path: model}}
data:
  notes: {source: {path: notes.jsonl}, document: title, text: "{{ title }} {{ content }}"}
train: {max_length: 64}
precision: {compute: float32}
variants:
  base: []
  twice: [{scale.all: {by: 2}}]
evaluate: {count: {by: 1}}
"""


def install(folder: Path, points: str = POINTS, **modules: str) -> Path:
    """What `pip install enlarger` leaves in `folder`."""
    for name, text in ({"__init__": METHOD, "work": WORK} | modules).items():
        file = folder / "enlarger" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    information = folder / "enlarger-1.0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: enlarger\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(points)
    return folder


def paretune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process that finds what is installed in `folder`."""
    code = "import sys; from paretune.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_method_and_an_evaluation_of_a_package_run_in_a_study(tmp_path: Path) -> None:
    packages = install(tmp_path / "packages")
    study = write_study(tmp_path, STUDY)
    finished = paretune(packages, "run", str(study), "--out", str(tmp_path / "out"))
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(file.read_text()) for file in (tmp_path / ".paretune").glob("*/record.json")]
    (scaled,) = (record for record in records if record["kind"] == "scale.all")
    assert scaled["revision"] == 3
    assert scaled["config"]["method"] == {"by": 2.0}
    assert scaled["metrics"]["scaled"] > 10
    assert len([record for record in records if record["kind"] == "evaluate.count"]) == 2
    out = tmp_path / "out"
    for name in ("results", "estimates", "comparisons"):
        assert ",count,,largest," in (out / f"{name}.csv").read_text(), name
    report = (out / "report.md").read_text()
    assert "largest share of a tensor" in report.split("## What was compared")[0]  # it decides, for nothing else was measured
    assert "Other measurements" in report
    assert re.search(r"^\| largest share of a tensor on count, points \| twice \|", report, re.MULTILINE)
    assert (out / "figures" / "pareto.png").stat().st_size > 0
    findings = json.loads((out / "findings.json").read_text())
    assert findings["groups"][0]["headline"]["metric"] == "largest"
    # Without the package the same study is refused, and says what it does not know.
    refused = paretune(tmp_path, "plan", str(study))
    assert refused.returncode == 2
    assert f"{study}:10: variants.twice[0]: unknown method `scale.all`; known: " in refused.stderr


def test_the_rows_of_a_package_are_listed_with_the_others(tmp_path: Path) -> None:
    listed = paretune(install(tmp_path), "methods")
    assert listed.returncode == 0, listed.stderr
    assert "scale.all: Multiply every matrix." in listed.stdout
    assert "count: Multiply every matrix." in listed.stdout


BROKEN = {
    "a missing import": (
        {"__init__": "import no_such_module"},
        POINTS,
        "cannot be loaded (ModuleNotFoundError: No module named 'no_such_module')",
    ),
    "an error in its code": ({"__init__": "1 / 0"}, POINTS, "cannot be loaded (ZeroDivisionError: division by zero)"),
    "a name that is not there": (
        {"__init__": "x = 1"},
        POINTS,
        "cannot be loaded (AttributeError: module 'enlarger' has no attribute 'METHOD')",
    ),
    "another type": ({"__init__": "METHOD = {'name': 'scale.all'}"}, POINTS, "is no Method row, but dict"),
    "an evaluation as a method": (
        {},
        POINTS.replace("enlarger:METHOD", "enlarger:EVALUATION"),
        "is no Method row, but Evaluation",
    ),
    "a config of another kind": (
        {"__init__": METHOD.replace("class Scale(Spec)", "class Scale")},
        POINTS,
        "has a config that is no subclass of Spec: <class 'enlarger.Scale'>",
    ),
    "a body without a function": (
        {"__init__": METHOD.replace("enlarger.work:scale", "enlarger.work")},
        POINTS,
        "has a body that is no `module:function`: `enlarger.work`",
    ),
    "a name that is taken": (
        {"__init__": METHOD.replace('Method("scale.all"', 'Method("train.full"')},
        POINTS,
        "names `train.full`, which exists already",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_package_is_named_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from paretune.cli import main

    modules, points, message = BROKEN[name]
    monkeypatch.syspath_prepend(str(install(tmp_path, points, **modules)))
    for module in [module for module in sys.modules if module.partition(".")[0] == "enlarger"]:
        monkeypatch.delitem(sys.modules, module)
    for table in (methods, evaluations):
        table.cache_clear()
    try:
        assert main(["methods"]) == 2
    finally:
        for table in (methods, evaluations):
            table.cache_clear()
        sys.modules.pop("enlarger", None)
    told = capsys.readouterr().err
    assert told == (
        "error: entry point `scale.all` in `paretune.methods` of the package `enlarger` "
        f"{message}; repair or uninstall the package\n"
    )


def test_a_body_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    packages = install(tmp_path / "packages")
    (packages / "enlarger" / "work.py").unlink()
    refused = paretune(packages, "plan", str(write_study(tmp_path, STUDY)))
    assert refused.returncode == 2
    assert "variants.twice: `scale.all`: its code, the module `enlarger.work`, is not installed; repair" in refused.stderr
    assert "Traceback" not in refused.stderr


ROW_WITH_A_CHECK = '''
from pydantic import Field

from paretune.study.base import FILE, Spec
from paretune.study.registry import Evaluation


class Rhymes(Spec):
    """Share of lines that rhyme."""

    dictionary: str = Field(json_schema_extra=FILE)
    """Words that rhyme, a pair a line."""


def content(config, parts):
    return {"evaluation": {"dictionary": parts.file("dictionary", config.dictionary)}}


METHOD = None
EVALUATION = Evaluation("rhymes", Rhymes, "enlarger.work:count", content=content, check="enlarger.checks:check")
'''
CHECK = """
from paretune.errors import DataError


def check(config, setting):
    for line in (setting.folder / config.dictionary).read_text().splitlines():
        if len(line.split()) != 2:
            raise DataError(f"{setting.where}.dictionary: `{line}` is no pair of words")
"""


def test_a_row_brings_its_file_its_check_and_what_stands_in_its_key(tmp_path: Path) -> None:
    points = POINTS[POINTS.index("[paretune.evaluations]") :].replace("count =", "rhymes =")
    packages = install(tmp_path / "packages", points, __init__=ROW_WITH_A_CHECK, checks=CHECK)
    text = STUDY.replace("  twice: [{scale.all: {by: 2}}]\n", "").replace("count: {by: 1}", "rhymes: {dictionary: pairs.txt}")
    study = write_study(tmp_path, text)

    def plan() -> str:
        finished = paretune(packages, "plan", str(study))
        assert "Traceback" not in finished.stderr
        return finished.stderr if finished.returncode else finished.stdout

    assert f"{study}:10: evaluate.rhymes.dictionary: no file `pairs.txt`" in plan()
    (tmp_path / "pairs.txt").write_text("house mouse\ntree\n")
    assert f"{study}:10: evaluate.rhymes.dictionary: `tree` is no pair of words" in plan()
    (tmp_path / "pairs.txt").write_text("house mouse\n")
    first = plan()
    assert "evaluate.rhymes-" in first
    (tmp_path / "pairs.txt").write_text("house mouse\ntree sea\n")
    assert re.findall(r"evaluate.rhymes-\w+", plan()) != re.findall(r"evaluate.rhymes-\w+", first)


def test_what_is_not_known_is_told_with_the_nearest_name() -> None:
    assert find_method("train.lora", "here").trains
    assert find_evaluation("latency", "here").measures_time
    with pytest.raises(SpecError, match=r"here: unknown method `train.lroa`; did you mean `train.lora`\?"):
        find_method("train.lroa", "here")
    with pytest.raises(SpecError, match=r"here: unknown evaluation `zzz`; known: `forgetting`, .* \(or name its `kind:`\)"):
        find_evaluation("zzz", "here")
    assert load_function("json:dumps") is json.dumps
