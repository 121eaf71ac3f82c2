"""From a study file to the comparison and the exported models, by the command line, on a tiny model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from paretune.cli import main
from paretune.study.study import load_study
from paretune.variants import round_trip
from tests.conftest import write_study
from tests.lines import run_lines

OUTPUTS = [
    *(
        "answer.txt",
        "audit.csv",
        "cards",
        "comparisons.csv",
        "curves.csv",
        "estimates.csv",
        "figures",
        "findings.json",
        "generations.jsonl",
    ),
    *("leakage.csv", "report.html", "report.md", "report.txt", "results.csv"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study that has run once."""
    folder = tmp_path_factory.mktemp("study")
    assert main(["run", str(write_study(folder)), "--out", str(folder / "out")]) == 0
    return folder


def study(folder: Path) -> str:
    return str(folder / "study.yaml")


def test_all_outputs_are_there(folder):
    assert sorted(path.name for path in (folder / "out").iterdir()) == OUTPUTS
    results = pd.read_csv(folder / "out" / "results.csv")
    assert set(results["variant"]) == {"base", "full", "original", "reduced"}
    assert set(results[results["variant"] == "full"]["seed"]) == {0, 1}
    assert results[results["variant"] == "base"]["seed"].isna().all()  # nothing in the base depends on a seed
    losses = results[(results["metric"] == "loss") & (results["split"] == "test")].groupby("variant")["value"].mean()
    assert losses["full"] < losses["base"]


def test_a_second_run_reuses_everything(folder, capsys):
    assert main(["run", study(folder), "--out", str(folder / "again")]) == 0
    assert re.search(r"(\d+) stages: \1 reused, 0 to run", capsys.readouterr().err)
    for name in ("results.csv", "estimates.csv", "curves.csv", "report.txt"):
        assert (folder / "again" / name).read_text() == (folder / "out" / name).read_text()


@pytest.mark.parametrize("variant", ["base", "full", "original", "reduced"])
def test_an_exported_directory_gives_the_loss_of_the_results(folder, variant, tmp_path, capsys):
    seed = [] if variant == "base" else ["--seed", "1"]
    assert main(["export", study(folder), variant, "--to", str(tmp_path / "model"), *seed]) == 0
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers")
    assert "# What was measured" in card
    results = pd.read_csv(folder / "out" / "results.csv")
    chosen = results[(results["variant"] == variant) & (results["metric"] == "loss") & (results["split"] == "test")]
    expected = chosen["value"].iloc[-1]
    (documents,) = (folder / ".paretune").glob("data-*/documents.parquet")
    script = Path(__file__).parent.parent / "scripts" / "exported_loss.py"
    command = [str(script), str(tmp_path / "model"), str(documents), "--max-length", "64"]
    code = f"import runpy, sys; sys.argv = {command}; runpy.run_path({str(script)!r}, run_name='__main__')"
    printed = run_lines(code, tmp_path)
    assert float(printed) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["hf", "adapter"])
def test_an_export_is_read_back_and_refused_where_it_gives_other_losses(folder, form, tmp_path, capsys, monkeypatch):
    arguments = ["export", study(folder), "reduced", "--seed", "0", "--format", form]
    assert main([*arguments, "--to", str(tmp_path / "right")]) == 0
    assert "read back, it gives the losses of the record (within " in capsys.readouterr().out

    def other_weights(directory):
        model = round_trip.AutoModelForCausalLM.from_pretrained(directory)
        model.get_input_embeddings().weight.data *= 2
        return model

    for module in ("round_trip", "export"):
        monkeypatch.setattr(f"paretune.variants.{module}.open_whole", other_weights)
    assert main([*arguments, "--to", str(tmp_path / "wrong")]) == 2
    assert "nats a token from those of the record" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def test_an_exported_adapter_is_loaded_by_peft_onto_its_pruned_base(folder, tmp_path):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    for form in ("adapter", "hf"):
        arguments = ["export", study(folder), "reduced", "--to", str(tmp_path / form), "--format", form, "--seed", "0"]
        assert main(arguments) == 0
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapter(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["hf", "adapter"])
def test_an_export_can_be_read_by_all_and_its_card_runs(folder, tmp_path, form):
    to = tmp_path / "exported"
    mask = os.umask(0o022)
    assert main(["export", study(folder), "reduced", "--to", str(to), "--format", form, "--seed", "0"]) == 0
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in to.rglob("*") if path.is_file()} == {0o644}
    card = (to / "README.md").read_text()
    assert "The BOS token `<bos>`, id 0, stands before every text" in card
    assert "`prune.blocks`" in card
    assert "held-out data" not in card  # its lines begin with no record
    assert r'`"{{ title }}\n\n{{ content }}"`' in card
    code = card.split("```python\n")[1].split("```")[0]
    moved = tmp_path / "moved"
    to.rename(moved)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=moved)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("<bos>A prompt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["redcued", "--seed", "0"], "no variant `redcued`; did you mean `reduced`?"),
        (["reduced"], "--seed: `reduced` has `0`, `1`; name one"),
        (["reduced", "--seed", "7"], "--seed: no `7`; there is `0`, `1`"),
        (["full", "--seed", "0", "--format", "adapter"], "`full` does not end in an adapter"),
        (["full", "--seed", "0", "--format", "onnx"], "--format: no `onnx`"),
    ],
)
def test_a_wrong_export_says_what_to_write(folder, tmp_path, capsys, arguments, message):
    assert main(["export", study(folder), *arguments, "--to", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_export_does_not_overwrite(folder, tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert main(["export", study(folder), "base", "--to", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "kept"


def test_report_is_written_without_torch(folder):
    code = (
        "import sys; from paretune.cli import main; "
        f"assert main(['report', {study(folder)!r}, '--out', {str(folder / 'third')!r}]) == 0; "
        f"assert main(['plan', {study(folder)!r}]) == 0; "
        "loaded = {'torch', 'transformers', 'peft'} & set(sys.modules); assert not loaded, loaded"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert (folder / "third" / "report.md").read_text() == (folder / "out" / "report.md").read_text()


def test_a_gate_says_by_its_exit_code_whether_a_bound_is_shown(folder, tmp_path, capsys):
    variant, other = list(load_study(study(folder)).variants)[:2]
    gate, file = ["gate", study(folder), variant, "--against", other], tmp_path / "gate.json"
    assert main([*gate, "--at-most", "model_bytes=1e12", "--out", str(file)]) == 0
    assert main([*gate, "--at-most", "model_bytes=1"]) == 1
    assert main([*gate, "--within", "perplexity=1000%", "--at-least", "perplexity=1e9"]) == 1
    capsys.readouterr()
    assert main(["gate", "--verify", str(file)]) == 0
    assert "keeps to every bound" in capsys.readouterr().out
    file.write_text(file.read_text().replace('"verdict": "holds"', '"verdict": "broken"'))
    assert main(["gate", "--verify", str(file)]) == 2
    assert main(["gate", study(folder), "nobody", "--at-most", "model_bytes=1"]) == 2
