"""What is known of a base from its headers is what the loaded model is like; no study that runs is refused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from paretune.errors import DataError, NeedsError, SpecError
from paretune.pipeline.lock import resolve_lock
from paretune.pipeline.preflight import check_study
from paretune.pipeline.resources import weight_shapes
from paretune.study.study import load_study
from tests.conftest import STUDY, write_study
from tests.pipeline.planned import write_base
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, make_model


def check(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    study = load_study(file)
    check_study(study, resolve_lock(study, file), file.parent)


def test_a_study_that_runs_is_not_refused(study_file: Path) -> None:
    check(study_file, STUDY)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_module_of_an_architecture_may_be_a_target(architecture: str, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    make_model(architecture, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    targets = {name.rpartition(".")[2] for name in linear if any(part.isdigit() for part in name.split("."))}
    assert len(targets) >= 3
    for target in (*targets, next(name for name in linear if name.rpartition(".")[2] in targets).split(".", 1)[1]):
        check(file, STUDY.replace("targets: all-linear", f"targets: [{target}]"))
    with pytest.raises(SpecError, match=r"no linear module `nothing`; it has `"):
        check(file, STUDY.replace("targets: all-linear", "targets: [nothing]"))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox", "llama", "opt"])
def test_the_number_of_blocks_is_that_of_the_model(architecture: str, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    make_model(architecture, tmp_path / "model")
    check(file, STUDY.replace("count: 1", f"count: {NUM_BLOCKS - 1}"))
    with pytest.raises(SpecError, match=f"leaves no block; base `tiny` has {NUM_BLOCKS} blocks"):
        check(file, STUDY.replace("count: 1", f"count: {NUM_BLOCKS}"))


def test_shapes_of_the_headers_are_those_of_the_weights(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", tmp_path))
    assert weight_shapes(tmp_path).items() <= {name: tuple(w.shape) for name, w in model.state_dict().items()}.items()
    assert sum(torch.Size(shape).numel() for shape in weight_shapes(tmp_path).values()) == model.num_parameters()


def test_a_prompt_may_be_as_long_as_leaves_room_for_one_token(study_file: Path) -> None:
    # Bytes without a merge in this tokenizer; the prefix is one more token, of 512.
    check(study_file, STUDY.replace("A lamp", "#" * 510))
    with pytest.raises(SpecError, match="has 512 tokens, and base `tiny` reaches 512"):
        check(study_file, STUDY.replace("A lamp", "#" * 511))


def test_the_first_record_is_read_and_no_other(study_file: Path) -> None:
    notes = study_file.parent / "notes.jsonl"
    first = notes.read_text().splitlines()[0]
    notes.write_text(f"{first}\nnot JSON\n")
    check(study_file, STUDY)
    notes.write_text(f"not JSON\n{first}\n")
    with pytest.raises(DataError, match="line 1, column 1: not JSON"):
        check(study_file, STUDY)


def test_an_encoder_has_the_layer_that_is_asked_for(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    write_base(tmp_path / "encoder", {"model_type": "bert", "num_hidden_layers": 4})
    text = STUDY.replace(
        'text: "{{ title }}\\n\\n{{ content }}"', 'tasks: {t: {completion: "{{ title }}", score: [bert_score]}}'
    )
    text = text.replace("perplexity: {}", "perplexity: {}\n  tasks: {encoder: {path: encoder, layer: 4}}")
    check(file, text)
    with pytest.raises(SpecError, match=r"evaluate\.tasks\.encoder\.layer: there is no layer `5`; it has 4"):
        check(file, text.replace("layer: 4", "layer: 5"))
    (tmp_path / "encoder" / "tokenizer.json").unlink()
    with pytest.raises(NeedsError, match=r"evaluate\.tasks\.encoder: `.*` holds no tokenizer"):
        check(file, text)
