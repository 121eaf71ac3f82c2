"""The stage bodies of training: what they refuse before they begin, and what of an adapter beside packed matrices is kept."""

import numpy as np
import pytest
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from paretune.data.examples import examples_of
from paretune.data.tokenizer import load_tokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import Example
from paretune.errors import StageError
from paretune.model.forward import PackedModel, score
from paretune.model.loss import Head
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage_configs import BaseConfig, TrainConfig
from paretune.study.methods import TrainLora
from paretune.study.train import Train
from paretune.train.stages import _check_layout, train_lora
from tests.evaluate.stages import BASE, make_context, write_tokens
from tests.tiny import make_model


def test_contexts_are_not_shared_where_the_architecture_cannot_keep_tasks_apart() -> None:
    packed = PackedModel(nn.Linear(1, 1), Head(nn.Linear(1, 1), num_words=1), isolates=False)
    ids = np.arange(4, dtype=np.int32)
    with pytest.raises(StageError, match="Linear cannot keep tasks apart that share a context; write `layout: padded` under"):
        _check_layout(Train(layout="trees"), packed, [Example(ids), Example(ids, 0, ids)])
    _check_layout(Train(layout="padded"), packed, [Example(ids, 0, ids)])
    _check_layout(Train(layout="trees"), packed, [Example(ids)])


@pytest.mark.parametrize("load", ["int8", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_beside_packed_matrices_is_merged_into_those_that_they_were_made_of(architecture, load, tmp_path):
    base = make_model(architecture, tmp_path / "base", **({"n_embd": 64} if architecture == "gpt2" else {"hidden_size": 64}))
    texts = [(split, f"{split}{n}", f"A text about the number {n}.") for split in ("train", "validation") for n in range(6)]
    method = TrainLora(r=2, targets="all-linear", load=load, learning_rate=1e-2, bias="all")
    context = make_context(base, {}, tmp_path / "draft", inputs={"tokens": write_tokens(base, texts, tmp_path / "tokens")})
    context.config.clear()
    context.config.update(
        TrainConfig(
            base=BaseConfig(**BASE),
            method=method,
            train=Train(max_steps=4, batch_size=3, max_length=32),
            seed=0,
            precision="float32",
            device="cpu",
        ).model_dump(mode="json")
    )
    context.resume.mkdir()
    metrics = train_lora(context)
    whole = AutoModelForCausalLM.from_pretrained(base)
    assert metrics["base_parameters"] == sum(p.numel() for p in whole.parameters())
    assert metrics["parameters"] == metrics["base_parameters"] + sum(
        t.numel()
        for name, t in load_file(tmp_path / "draft" / "adapter" / "adapter_model.safetensors").items()
        if "lora" in name
    )
    assert metrics["packed_validation_loss"] == metrics["best_validation_loss"]
    assert 1e-6 < abs(metrics["packed_validation_loss"] - metrics["merged_validation_loss"]) < 0.5
    examples = examples_of(read_tokens(tmp_path / "tokens", "validation"), load_tokenizer(BASE, Resource(path=base)), 32)
    merged = PeftModel.from_pretrained(whole, tmp_path / "draft" / "adapter").merge_and_unload().eval()
    nats = np.concatenate([each.nats for each in score(merged, examples, forward_tokens=64)])
    assert metrics["merged_validation_loss"] == pytest.approx(nats.mean(), abs=1e-5)
