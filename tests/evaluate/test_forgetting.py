"""Text outside the domain: its loss before and after, document by document, through a study and its report."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paretune.cli import main
from paretune.data.outside import outside_documents, outside_texts
from paretune.data.tokenizer import load_tokenizer
from paretune.errors import DataError, SpecError
from paretune.evaluate.forgetting import evaluate_forgetting
from paretune.pipeline.resources import Resource
from tests.conftest import STUDY, write_study
from tests.evaluate.stages import BASE, make_artifact, make_context, read_scores, reference_nats
from tests.tiny import make_model

TEXTS = "name,body\nsea,The harbour sleeps.\nsea,The water is cold.\nair,Nothing flies at night over the engine.\nend, \n"
FIELDS = {"text": "{{ body }}", "document": "name", "stride": None, "max_length": 64}


def test_documents_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text(TEXTS, encoding="utf-8")
    sea = ("sea", "The harbour sleeps.\nThe water is cold.")
    assert outside_documents(file, "{{ body }}", "name") == [sea, ("air", "Nothing flies at night over the engine.")]
    assert outside_documents(file, "{{ body }}", "name", max_documents=1) == [sea]
    assert outside_texts(file, "{{ body }}")[:2] == ["The harbour sleeps.", "The water is cold."]
    (tmp_path / "book.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert outside_documents(tmp_path / "book.txt", "{{ text }}") == [("block 1", "One.\n\nTwo.")]
    with pytest.raises(DataError, match="`text`"):
        outside_documents(file, "{{ text }}")
    with pytest.raises(SpecError):
        outside_documents(file, "{{ body")


def test_forgetting_is_the_difference_in_bits_per_byte_of_each_document(tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text(TEXTS, encoding="utf-8")
    before, after = (make_model("llama", tmp_path / f"model{seed}", seed=seed) for seed in (0, 1))
    record = evaluate_forgetting(make_context(before, FIELDS, tmp_path / "before", items=file))
    assert record["documents"] == 2
    untouched = make_artifact(tmp_path / "before")
    evaluate_forgetting(make_context(after, FIELDS, tmp_path / "after", items=file, inputs={"untouched": untouched}))
    assert set(read_scores(tmp_path / "before").metric) == {"loss", "bits_per_byte", "token_accuracy"}
    scores = read_scores(tmp_path / "after").query("metric == 'forgetting'").set_index("document")
    tokenizer = load_tokenizer(BASE, Resource(path=before))
    for name, text in outside_documents(file, "{{ body }}", "name"):
        ids = [tokenizer.prefix_id, *tokenizer.encode(text)]
        bits = [float(reference_nats(base)(ids)[0].sum()) / math.log(2) / len(text.encode()) for base in (before, after)]
        assert scores.value[name] == pytest.approx(bits[1] - bits[0], rel=1e-4, abs=1e-6)
        assert scores.weight[name] == len(text.encode())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    text = STUDY[: STUDY.index("  original:")] + "evaluate:\n  perplexity: {splits: [test]}\n"
    file = write_study(folder, text.replace("seeds: [0, 1]", "seeds: [0]").replace("1.0e-3", "3.0e-2") + "  other: OTHER\n")
    draw = np.random.default_rng(0)
    words = ["Zürich", "seven", "quick", "12", "purple", "violin", "(sic)", "ox"]
    rows = [" ".join(draw.choice(words, 30)) for _ in range(6)]
    (folder / "other.csv").write_text("body\n" + "\n".join(rows) + "\n", encoding="utf-8")
    settings = "{kind: forgetting, path: other.csv, text: '{{ body }}'}"
    file.write_text(file.read_text().replace("OTHER", settings), encoding="utf-8")
    return file


def test_a_study_reports_learning_and_forgetting(study: Path) -> None:
    assert main(["run", str(study), "--out", str(study.parent / "out")]) == 0
    results = pd.read_csv(study.parent / "out" / "results.csv")
    of_other = results[results.task == "other"]
    bits = of_other[of_other.metric == "bits_per_byte"].set_index("variant").value
    forgotten = of_other[of_other.metric == "forgetting"].set_index("variant").value
    assert list(forgotten.index) == ["full"]
    assert forgotten["full"] == pytest.approx(bits["full"] - bits["base"], rel=1e-6)
    estimates = pd.read_csv(study.parent / "out" / "estimates.csv").query("metric == 'forgetting'")
    assert (estimates.ci_low < estimates["mean"]).all()
    assert estimates.n_documents.tolist() == [6]
    report = (study.parent / "out" / "report.md").read_text(encoding="utf-8")
    assert "### Learning and forgetting" in report
    assert f"{forgotten['full']:+.3f}" in report
    # Ranked by its own text, not by that of another domain.
    assert "test perplexity" in report.split("## What was compared")[0]


def test_text_that_stands_in_training_is_found(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaked = study.with_name("leaked.yaml")
    text = study.read_text().replace("path: other.csv, text: '{{ body }}'", "path: notes.jsonl, text: '{{ content }}'")
    leaked.write_text(text)
    assert main(["run", str(leaked), "--out", str(study.parent / "leaked")]) == 2
    assert "between `train` and `other`" in capsys.readouterr().err
