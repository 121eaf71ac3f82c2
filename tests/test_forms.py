"""What ships is what was measured: tied embeddings, mixtures of experts and bases in bfloat16, by the command line."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from exported_loss import document_nats
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.cli import main
from tests.conftest import STUDY, write_study
from tests.tiny import make_model

_HEAD = STUDY.split("variants:")[0].replace("seeds: [0, 1]", "seeds: [0]").replace("keep: best", "keep: last")
_EVALUATE = "evaluate:\n  perplexity: {stride: 32}\n"


def run(folder: Path, variants: str, base: str = "llama", precision: str = "compute: float32", **overrides: object) -> Path:
    """Run a study of one base; returns the study file."""
    file = write_study(folder)
    make_model(base, folder / "model", **overrides)
    head = _HEAD.replace("compute: float32", precision)
    file.write_text(f"{head}variants:\n  base: []\n{variants}{_EVALUATE}", encoding="utf-8")
    assert main(["run", str(file), "--out", str(folder / "out")]) == 0
    return file


def value(folder: Path, variant: str, metric: str) -> float:
    results = pd.read_csv(folder / "out" / "results.csv")
    chosen = results[(results["variant"] == variant) & (results["metric"] == metric)]
    return float(chosen[chosen["split"].isin(["test"]) | chosen["split"].isna()]["value"].iloc[-1])


@torch.no_grad()
def loss(model: torch.nn.Module, folder: Path) -> float:
    """Nats per token of the test split."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    (file,) = (folder / ".paretune").glob("data-*/documents.parquet")
    documents = pd.read_parquet(file)
    nats, count = 0.0, 0
    for text in documents[documents["split"] == "test"]["text"]:
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        nats, count = nats + document_nats(model, ids, 64, 32, in_each=False), count + len(ids) - 1
    return nats / count


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_of_an_adapted_tied_embedding_report_adapter_and_export_are_one_model(architecture: str, tmp_path: Path) -> None:
    names = "[wte, c_attn]" if architecture == "gpt2" else "[embed_tokens, q_proj]"
    variant = f"  tied: [{{train.lora: {{r: 4, alpha: 16, targets: {names}, learning_rate: 1.0e-2}}}}]\n"
    file = run(tmp_path, variant, architecture, tie_word_embeddings=True)
    for form in ("hf", "adapter"):
        assert main(["export", str(file), "tied", "--format", form, "--to", str(tmp_path / form)]) == 0
    reported = value(tmp_path, "tied", "loss")
    assert reported < value(tmp_path, "base", "loss")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert not whole.config.tie_word_embeddings
    assert loss(whole, tmp_path) == pytest.approx(reported, rel=1e-5)
    for base in (tmp_path / "model", tmp_path / "adapter" / "base"):
        live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter")
        assert loss(live.eval(), tmp_path) == pytest.approx(reported, rel=1e-5)
    assert loss(live.merge_and_unload(), tmp_path) == pytest.approx(reported, rel=1e-5)
    added = whole.get_output_embeddings().weight.numel()
    assert f"{added:,} parameters larger" in " ".join((tmp_path / "out" / "report.txt").read_text().split())
    assert value(tmp_path, "tied", "model_bytes") - value(tmp_path, "base", "model_bytes") == 4 * added


def test_a_base_in_bfloat16_ships_in_bfloat16_and_is_measured_so(tmp_path: Path) -> None:
    lora = "{train.lora: {r: 4, targets: all-linear, learning_rate: 1.0e-2}}"
    variants = f"  lora: [{lora}]\n  full: [train.full]\n  pruned: [{{prune.blocks: {{count: 1}}}}]\n"
    variants += f"  both: [{{prune.blocks: {{count: 1}}}}, {lora}]\n"
    file = run(tmp_path, variants, dtype="bfloat16")
    base = (tmp_path / "model" / "model.safetensors").stat().st_size
    (pruned,) = (tmp_path / ".paretune").glob("prune.blocks-*/model.safetensors")
    assert {tensor.dtype for tensor in load_file(pruned).values()} == {torch.bfloat16}
    for variant in ("base", "lora", "full", "pruned", "both"):
        to = tmp_path / variant
        assert main(["export", str(file), variant, "--to", str(to)]) == 0
        assert {tensor.dtype for tensor in load_file(to / "model.safetensors").values()} == {torch.bfloat16}
        assert json.loads((to / "config.json").read_text())["dtype"] == "bfloat16"
        exported = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
        assert loss(exported, tmp_path) == pytest.approx(value(tmp_path, variant, "loss"), rel=1e-5)
        assert value(tmp_path, variant, "model_bytes") == 2 * exported.num_parameters()
        assert (to / "model.safetensors").stat().st_size <= base + 1000
    assert main(["export", str(file), "both", "--format", "adapter", "--to", str(tmp_path / "adapter")]) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter/base/model.safetensors").values()} == {torch.bfloat16}


def test_a_study_may_ship_in_float32(tmp_path: Path) -> None:
    variant = "  lora: [{train.lora: {r: 4, learning_rate: 1.0e-2}}]\n"
    file = run(tmp_path, variant, precision="compute: float32, export: float32", dtype="bfloat16")
    assert main(["export", str(file), "lora", "--to", str(tmp_path / "hf")]) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.float32}
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert loss(exported, tmp_path) == pytest.approx(value(tmp_path, "lora", "loss"), rel=1e-5)
    assert value(tmp_path, "lora", "model_bytes") == 4 * exported.num_parameters()
