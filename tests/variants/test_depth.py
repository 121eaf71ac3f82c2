"""Less of a model's depth: blocks that are left out as it is loaded, and tokens that leave early, by every way of reading."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, DynamicCache

from paretune.data.trees import Example, unshared
from paretune.evaluate.answers import Prompt, write_answers
from paretune.evaluate.cost import evaluate_size, time_generation, weight_bytes
from paretune.evaluate.generate import generate
from paretune.model.exits import attach, exits_of
from paretune.model.forward import score
from paretune.model.load import DEPTH, LoadedModel, load_model
from paretune.pipeline.stage import Artifact
from paretune.study.methods import ExitBounds
from paretune.variants.exits import ExitPoint, choose_threshold, exit_early, prove_exits
from paretune.variants.proof import compute_at_once, compute_one_by_one
from paretune.variants.stages import prune_blocks, skip_blocks
from tests.evaluate.stages import make_artifact, make_context, write_tokens
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, load, make_model

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
WORDS = ("river", "bends", "where", "mill", "stands", "nobody", "grinds", "corn", "there", "any", "more", "since", "spring")


def made(body, base: Path, directory: Path, method: dict, **others) -> Artifact:
    """The artifact of a stage's body."""
    tokens, given = others.get("tokens"), others.get("given")
    inputs = ({"tokens": tokens} if tokens else {}) | ({"model": given} if given else {})
    context = make_context(base, {}, directory, inputs=inputs, max_length=24)
    del context.config["evaluation"]
    for name in () if tokens else ("precision", "device", "max_length"):
        del context.config[name]
    context.config["method"] = method
    return replace(make_artifact(directory, **body(context)), inputs={"model": given} if given else {})


def loaded_from(base: Path, artifact: Artifact | None, directory: Path, **how) -> LoadedModel:
    inputs = {"model": artifact} if artifact else {}
    return load_model(make_context(base, {}, directory, inputs=inputs), **how)


def tokens_of(base: Path, directory: Path, splits: tuple[str, ...]) -> Artifact:
    rng = np.random.default_rng(3)
    texts = [(split, f"{split}{n}", " ".join(rng.choice(WORDS, 30))) for split in splits for n in range(6)]
    return write_tokens(base, texts, directory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama") / "base")


# Skipping.


@pytest.mark.parametrize("architecture", ["llama", "gpt2-inverse-scaling", "gpt-neox", "gemma3", "opt", "smollm3"])
def test_what_skips_is_what_was_pruned(architecture, bases, tmp_path):
    base, method = bases[architecture], {"blocks": [0, 2]}
    pruned = made(prune_blocks, base, tmp_path / "pruned", method)
    skipping = made(skip_blocks, base, tmp_path / "skipping", method)
    assert [file.name for file in skipping.path.iterdir()] == [DEPTH]
    same, model = (loaded_from(base, each, tmp_path / "x").model for each in (pruned, skipping))
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    # The weights are equal; the last bits of what they give may go by where these lie in memory.
    torch.testing.assert_close(compute_at_once(model), compute_at_once(same), **ROUNDING)
    torch.testing.assert_close(compute_one_by_one(model), compute_one_by_one(same), **ROUNDING)
    assert model.config.to_dict().keys() == same.config.to_dict().keys()
    for name in ("removed_blocks", "blocks_after", "parameters", "removed_parameters"):
        assert skipping.record.metrics[name] == pruned.record.metrics[name]


def test_text_is_written_and_scored_alike(llama, tmp_path):
    pruned, skipping = (made(body, llama, tmp_path / body.__name__, {"count": 1}) for body in (prune_blocks, skip_blocks))
    both = [loaded_from(llama, each, tmp_path / "x", fused=True) for each in (pruned, skipping)]
    ids = np.random.default_rng(0).integers(2, 300, 60).astype(np.int32)
    asked = [Example(ids[:30]), Example(ids[30:40], 2, ids[:20]), Example(ids[40:50], 0, ids[:20])]
    one, other = ([each.nats for each in score(loaded.packed, asked, forward_tokens=512)] for loaded in both)
    np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), **ROUNDING)
    one, other = (generate(loaded, ["the mill", "spring"], 12) for loaded in both)
    assert [each.text for each in one] == [each.text for each in other]


@pytest.mark.parametrize("choose", ["loss", "taylor", "influence"])
def test_a_measured_choice_is_that_of_pruning(choose, llama, tmp_path):
    tokens, method = tokens_of(llama, tmp_path / "tokens", ("train",)), {"count": 2, "choose": choose}
    pruned, skipping = (
        made(body, llama, tmp_path / body.__name__, method, tokens=tokens) for body in (prune_blocks, skip_blocks)
    )
    for name in ("removed_blocks", "block_scores", "chosen_again", "blocks_before"):
        assert skipping.record.metrics[name] == pruned.record.metrics[name]
    assert {file.name for file in skipping.path.iterdir()} == {DEPTH, "block_scores.parquet"}


def test_cuts_follow_each_other(llama, tmp_path):
    first = made(prune_blocks, llama, tmp_path / "first", {"blocks": [0]})
    second = made(skip_blocks, llama, tmp_path / "second", {"blocks": [1]}, given=first)
    third = made(skip_blocks, llama, tmp_path / "third", {"blocks": [1]}, given=second)
    model = loaded_from(llama, third, tmp_path / "x").model
    assert model.config.paretune_kept_blocks == [1]
    only = made(prune_blocks, llama, tmp_path / "only", {"blocks": [0, 2, 3]})
    expected = compute_at_once(loaded_from(llama, only, tmp_path / "x").model)
    torch.testing.assert_close(compute_at_once(model), expected, **ROUNDING)


def test_the_bytes_are_those_of_what_it_was_made_of(llama, tmp_path):
    skipping = made(skip_blocks, llama, tmp_path / "skipping", {"count": 2})
    size = evaluate_size(make_context(llama, {}, tmp_path / "size", inputs={"model": skipping}))
    whole, model = AutoModelForCausalLM.from_pretrained(llama), loaded_from(llama, skipping, tmp_path / "x").model
    assert size["model_bytes"] == weight_bytes(whole)
    assert size["parameters"] == sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())


# Leaving early.


def token_by_token(base: Path, ids: list[int], after: list[int], threshold: float) -> tuple[torch.Tensor, list[int]]:
    """Logits [T, V] and the blocks that ran for each token of a Llama, one token at a time: above the block that a token leaves
    after, no more than its keys and values are made."""
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    cache, logits, depths = DynamicCache(config=model.config), [], []
    for position, token in enumerate(ids):
        states = model.model.embed_tokens(torch.tensor([[token]]))
        cos, sin = model.model.rotary_emb(states, torch.tensor([[position]]))
        depth = None
        for index, layer in enumerate(model.model.layers):
            if depth is not None:
                normed, attention = layer.input_layernorm(states), layer.self_attn
                keys, values = (
                    projection(normed).view(1, 1, -1, attention.head_dim).transpose(1, 2)
                    for projection in (attention.k_proj, attention.v_proj)
                )
                half = keys.shape[-1] // 2
                turned = torch.cat([-keys[..., half:], keys[..., :half]], -1)
                cache.update(keys * cos[:, None] + turned * sin[:, None], values, index)
                continue
            states = layer(states, past_key_values=cache, position_embeddings=(cos, sin), attention_mask=None)
            sure = functional.softmax(model.lm_head(model.model.norm(states)), -1).max()
            if index in after and sure >= threshold:
                depth = index + 1
        logits.append(model.lm_head(model.model.norm(states))[0, 0])
        depths.append(depth or len(model.model.layers))
    return torch.stack(logits), depths


AFTER = [0, 2]


@pytest.fixture(scope="module")
def early(llama, tmp_path_factory) -> tuple[Artifact, float]:
    """Exits that a part of all tokens takes, and their threshold."""
    model = load(llama)
    exits = attach(model, tuple(AFTER), 0.0, "probability")
    sure = compute_at_once(model).softmax(-1).amax(-1)
    threshold = float(sure.quantile(0.6))
    assert exits.all_left
    method = {"after": AFTER, "threshold": threshold}
    return made(exit_early, llama, tmp_path_factory.mktemp("early") / "early", method), threshold


def texts() -> np.ndarray:
    return np.random.default_rng(5).integers(2, 300, 80).astype(np.int32)


@torch.no_grad()
def test_scores_are_those_of_one_token_at_a_time(llama, early, tmp_path):
    artifact, threshold = early
    ids = texts()
    asked = [Example(ids[:40]), Example(ids[40:50], 2, ids[:20]), Example(ids[50:60], 0, ids[:20]), Example(ids[60:])]
    loaded = loaded_from(llama, artifact, tmp_path / "x", fused=True)
    depths = []
    for scores, example in zip(score(loaded.packed, asked, forward_tokens=512), map(unshared, asked), strict=True):
        logits, ran = token_by_token(llama, example.ids.tolist(), AFTER, threshold)
        nats = -logits.log_softmax(-1)[:-1].gather(1, torch.from_numpy(example.ids[1:, None]).long()).flatten()
        np.testing.assert_allclose(scores.nats, nats[example.first_target - 1 :].numpy(), atol=2e-4)
        depths += ran
    assert {1, 3, NUM_BLOCKS} == {*depths}


@torch.no_grad()
def test_text_is_written_by_what_is_scored(llama, early, tmp_path):
    artifact, threshold = early
    ids, loaded = texts(), loaded_from(llama, artifact, tmp_path / "x")
    prompts = [Prompt(ids[:20], ids[20:23], 8), Prompt(ids[:20], ids[30:30], 8), Prompt(ids[40:50], ids[50:60], 8)]
    for prompt, answer in zip(prompts, write_answers(loaded, prompts), strict=True):
        text = [*prompt.context.tolist(), *prompt.ids.tolist()]
        for token in answer.ids:
            assert token == int(token_by_token(llama, text, AFTER, threshold)[0][-1].argmax())
            text.append(token)


@torch.no_grad()
def test_what_is_timed_writes_the_same_and_leaves_blocks_out(llama, early, tmp_path):
    artifact, threshold = early
    served = loaded_from(llama, artifact, tmp_path / "x", served=True)
    ran = [0] * NUM_BLOCKS
    for index, block in enumerate(served.model.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.__setitem__(index, ran[index] + 1))
    ids = texts()[:30].tolist()
    output = served.model(torch.tensor([ids[:4]]), use_cache=True)
    got = [output.logits[0]]
    before = [*ran]
    for token in ids[4:]:
        output = served.model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        got.append(output.logits[0])
    logits, depths = token_by_token(llama, ids, AFTER, threshold)
    torch.testing.assert_close(torch.cat(got), logits, atol=2e-4, rtol=1e-4)
    assert [now - then for now, then in zip(ran, before, strict=True)] == [
        sum(depth > index for depth in depths[4:]) for index in range(NUM_BLOCKS)
    ]
    assert time_generation(served, torch.tensor([ids]), 4).ms_per_token > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("confidence", ["probability", "margin"])
def test_exits_mean_one_function_on_every_architecture(architecture, confidence, bases):
    model = load(bases[architecture])
    assert prove_exits(model, (0, 2), confidence) < 1e-4
    compute_at_once(model)
    assert 0 < (exits_of(model).depths_RT < NUM_BLOCKS).float().mean() < 1


def test_the_threshold_is_chosen_on_validation(llama, tmp_path):
    tokens = tokens_of(llama, tmp_path / "tokens", ("train", "validation"))
    method = {
        "after": [1],
        "within": {"agreement": 0.3},
        "thresholds": [0.04, 0.06, 0.02, 0.999],
        "calibration": {"tokens": 500},
    }
    artifact = made(exit_early, llama, tmp_path / "early", method, tokens=tokens)
    metrics = artifact.record.metrics
    curve = metrics["curve"]

    assert [point["threshold"] for point in curve] == [0.999, 0.06, 0.04, 0.02]
    assert curve[0]["loss"] == 0
    assert curve[0]["agreement"] == 1
    assert curve[0]["blocks"] == NUM_BLOCKS > curve[-1]["blocks"] >= 2
    assert [point["blocks"] for point in curve] == sorted((point["blocks"] for point in curve), reverse=True)
    for point in curve[1:]:
        assert point["agreement_low"] < point["agreement"] < 1
        assert point["loss_high"] > point["loss"]
    held = [point["threshold"] for point in curve if point["agreement_low"] >= 0.3]
    assert metrics["threshold"] == held[-1]
    assert metrics["calibration_documents"] == 6
    written = json.loads((tmp_path / "early" / DEPTH).read_text())
    assert written == {"exits": {"after": [1], "threshold": held[-1], "confidence": "probability"}}


def test_what_is_tried_ends_at_the_first_that_is_not_shown():
    points = [ExitPoint(0.9, 0.0, 0.01, 1.0, 0.99, 20), ExitPoint(0.8, 0.03, 0.05, 0.9, 0.8, 15)]
    points.append(ExitPoint(0.7, 0.0, 0.01, 1.0, 0.99, 12))
    assert choose_threshold(points, ExitBounds(loss=0.02)) == 0.9
    assert choose_threshold(points, ExitBounds(loss=0.06)) == 0.7
    assert choose_threshold(points, ExitBounds(loss=0.06, agreement=0.9)) == 0.9
    assert choose_threshold([ExitPoint(0.9, 0.0, None, 1.0, None, 20)], ExitBounds(loss=1.0)) is None


def test_with_no_threshold_nothing_leaves(llama, tmp_path):
    directory = tmp_path / "never"
    directory.mkdir()
    (directory / DEPTH).write_text(json.dumps({"exits": {"after": [1], "threshold": None, "confidence": "margin"}}))
    model = loaded_from(llama, make_artifact(directory), tmp_path / "x", served=True).model
    expected = compute_at_once(loaded_from(llama, None, tmp_path / "y").model)
    torch.testing.assert_close(compute_at_once(model), expected, **ROUNDING)
