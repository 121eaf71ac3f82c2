"""Narrow models: the whole one with zeros gives the same logits, and what stands in for what leaves is least squares."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.data.trees import Example
from paretune.errors import SpecError, StageError
from paretune.model.forward import score
from paretune.pipeline.checks import check_heads, check_mlp
from paretune.pipeline.lock import LockedBase
from paretune.pipeline.resources import Resource
from paretune.study.methods import PruneHeads, PruneMlp
from paretune.variants.cuts import find_cuts, narrow_heads, narrow_mlp
from paretune.variants.width import loss_slopes, narrow, prune_heads, prune_mlp
from tests.surgery_table import measure_change
from tests.tiny import ARCHITECTURES, MIXTURES, VOCABULARY_SIZE, make_model
from tests.variants.test_choose import context_of

FIXED_HEADS = ("gpt2", "gpt2-inverse-scaling", "gpt-neox", "opt")
TOLERANCE = 1e-5
READS_CHANNELS = ("mlp.c_proj", "dense_4h_to_h", "down_proj", "fc2")
READS_HEADS = ("o_proj",)


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def some_examples(count: int = 12) -> list[Example]:
    generator = np.random.default_rng(0)
    return [Example(generator.integers(2, VOCABULARY_SIZE, 20 + n).astype(np.int32)) for n in range(count)]


def reading(model: PreTrainedModel, names: Sequence[str]) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(tuple(names))]


def without(model: PreTrainedModel, names: Sequence[str], kept: Sequence[torch.Tensor], size: int) -> PreTrainedModel:
    """`model` whose projections read zeros in the place of the units that are not kept."""
    for module, keep in zip(reading(model, names), kept, strict=True):

        def mask(_: nn.Module, args: tuple[torch.Tensor], keep: torch.Tensor = keep) -> tuple[torch.Tensor]:
            return (args[0] * torch.isin(torch.arange(args[0].shape[-1]) // size, keep),)

        module.register_forward_pre_hook(mask)
    return model


PLAIN = {"by": "activation", "compensate": False, "base_fingerprint": "3f2a", "forward_tokens": 256}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fewer_channels_mean_the_same_live_cached_reloaded_and_adapted(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load(bases[architecture])
    width = 128 if architecture.startswith("gpt2") else 64
    live, scores, kept, _ = narrow(model, narrow_mlp(model.config, lambda _: 32), some_examples(), tmp_path / "a", **PLAIN)
    assert [len(each) for each in scores] == [width] * 4
    same = without(load(bases[architecture]), READS_CHANNELS, kept, 1)
    differences = measure_change(live, same, tmp_path)
    assert {name: value for name, value in differences.items() if not value < TOLERANCE} == {}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - FIXED_HEADS))
def test_fewer_heads_mean_the_same_live_cached_reloaded_and_adapted(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load(bases[architecture])
    live, _, kept, _ = narrow(model, narrow_heads(model.config, 1), some_examples(), tmp_path / "a", **PLAIN)
    assert (live.config.num_attention_heads, live.config.num_key_value_heads, live.config.head_dim) == (2, 1, 8)
    assert all(keep.tolist() in ([0], [1]) for keep in kept)
    same = without(load(bases[architecture]), READS_HEADS, kept, 16)
    differences = measure_change(live, same, tmp_path)
    assert {name: value for name, value in differences.items() if not value < TOLERANCE} == {}


def test_one_shared_head_of_keys_loses_queries_alone(tmp_path: Path) -> None:
    base = make_model("gemma3", tmp_path / "base", num_key_value_heads=1)
    with pytest.raises(SpecError, match=r"count: 1 leaves 3 heads .*, as they do not divide .* 32; write 2 or 3"):
        check_heads(PruneHeads(count=1), "v.prune.heads", "b", locked(base))
    model = load(base)
    live, _, kept, _ = narrow(model, narrow_heads(model.config, 2), some_examples(), tmp_path / "a", **PLAIN)
    assert (live.config.num_attention_heads, live.config.num_key_value_heads) == (2, 1)
    differences = measure_change(live, without(load(base), READS_HEADS, kept, 8), tmp_path)
    assert {name: value for name, value in differences.items() if not value < TOLERANCE} == {}


def test_what_stays_stands_in_for_what_leaves_by_least_squares(bases: dict[str, Path], tmp_path: Path) -> None:
    """Against numpy's least squares on the activations themselves: of all matrices on the channels that stay, the best."""
    examples, read = some_examples(40), []
    whole = load(bases["llama"])
    last = reading(whole, READS_CHANNELS)[0]
    handle = last.register_forward_pre_hook(lambda _, args: read.append(args[0][0].double()))
    with torch.no_grad():
        for example in examples:
            whole(torch.from_numpy(example.ids).long()[None])
    handle.remove()
    inputs = torch.cat(read).numpy()
    outputs = inputs @ last.weight.detach().double().numpy().T
    arguments = PLAIN | {"compensate": True}
    small, _, kept, _ = narrow(load(bases["llama"]), narrow_mlp(whole.config, lambda _: 32), examples, tmp_path, **arguments)
    found = reading(small, READS_CHANNELS)[0].weight.detach().double().numpy()
    best = np.linalg.lstsq(inputs[:, kept[0].numpy()], outputs, rcond=None)[0].T
    errors = [np.square(outputs - inputs[:, kept[0].numpy()] @ matrix.T).mean() for matrix in (found, best)]
    plain = last.weight.detach().double().numpy()[:, kept[0].numpy()]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert errors[0] < 0.9 * np.square(outputs - inputs[:, kept[0].numpy()] @ plain.T).mean()


def test_importance_is_what_a_unit_adds_to_the_output(bases: dict[str, Path], tmp_path: Path) -> None:
    model, read = load(bases["qwen3"]), []
    projection = reading(model, READS_HEADS)[1]
    handle = projection.register_forward_pre_hook(lambda _, args: read.append(args[0][0].double()))
    with torch.no_grad():
        for example in some_examples():
            model(torch.from_numpy(example.ids).long()[None])
    handle.remove()
    weight = projection.weight.detach().double()
    added = [torch.cat(read)[:, 16 * u : 16 * u + 16] @ weight[:, 16 * u : 16 * u + 16].T for u in (0, 1)]
    _, scores, kept, _ = narrow(model, narrow_heads(model.config, 1), some_examples(), tmp_path, **PLAIN)
    expected = [each.square().sum(1).mean().sqrt().item() for each in added]
    assert scores[1].tolist() == pytest.approx(expected, rel=1e-4)
    assert kept[1].tolist() == [int(np.argmax(expected))]


def test_magnitude_is_the_norm_of_the_weights_of_a_unit(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load(bases["phi3"])  # gate and up in one matrix
    mlp = model.model.layers[2].mlp
    gate, up = mlp.gate_up_proj.weight.detach().double().chunk(2)
    expected = (gate.square().sum(1) + up.square().sum(1) + mlp.down_proj.weight.detach().double().square().sum(0)).sqrt()
    arguments = PLAIN | {"by": "magnitude"}
    _, scores, kept, _ = narrow(model, narrow_mlp(model.config, lambda _: 32), [], tmp_path, **arguments)
    assert scores[2].tolist() == pytest.approx(expected.tolist())
    assert kept[2].tolist() == sorted(expected.argsort(descending=True)[:32].tolist())


def test_slopes_are_those_of_finite_differences(bases: dict[str, Path]) -> None:
    examples = some_examples(3)
    model = load(bases["gpt2"]).double()
    cuts = find_cuts(model, narrow_mlp(model.config, lambda _: 64))
    (slopes,) = loss_slopes(model, [cuts[1].projection], [cuts[1].channels_C], examples)
    unit, step, changes = 5, 1e-4, []
    for sign in (1, -1):
        matrix = cuts[1].projection.weight.data
        before = matrix[unit].clone()
        matrix[unit] *= 1 + sign * step
        changes.append(np.array([one.nats.sum() for one in score(model, examples, forward_tokens=64)]))
        matrix[unit] = before
    assert slopes[unit].item() == pytest.approx(np.abs(changes[0] - changes[1]).mean() / (2 * step), rel=1e-2)


@pytest.mark.parametrize(
    ("body", "method", "expected"),
    [(prune_mlp, {"fraction": 0.5}, ("channels", 64, 32)), (prune_heads, {"count": 1, "by": "taylor"}, ("heads", 2, 1))],
)
def test_the_stage_leaves_an_ordinary_model_and_its_scores(
    body: object, method: dict[str, object], expected: tuple[str, int, int], bases: dict[str, Path], tmp_path: Path
) -> None:
    fields = {"by": "activation", "compensate": True, "calibration": {"documents": 64, "tokens": 16384, "seed": 0}}
    context = context_of(bases["llama"], {}, tmp_path)
    context = type(context)(**{**vars(context), "config": {**context.config, "method": fields | method}})
    metrics = body(context)  # type: ignore[operator]
    noun, before, after = expected
    assert (metrics[f"{noun}_before"], metrics[f"{noun}_after"]) == (before, after)
    assert load(context.draft).num_parameters() == metrics["parameters"]
    assert json.loads((context.draft / "config.json").read_text())["paretune_base_fingerprint"] == "sha256:0"
    assert (context.draft / "unit_scores.parquet").exists()


def locked(folder: Path) -> LockedBase:
    config = json.loads((folder / "config.json").read_text())
    return LockedBase(resource=Resource(path=folder), digest="", tokenizer_digest="", config=config)


@pytest.mark.parametrize("architecture", FIXED_HEADS)
def test_heads_that_no_config_can_say_are_refused_before_the_run(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot have fewer heads: it takes no `head_dim`"):
        check_heads(PruneHeads(count=1), "variants.v[0].prune.heads", "b", locked(make_model(architecture, tmp_path)))


@pytest.mark.parametrize("architecture", MIXTURES)
def test_channels_of_experts_are_refused_before_the_run(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot say another width of its MLPs"):
        check_mlp(PruneMlp(fraction=0.5), "variants.v[0].prune.mlp", "b", locked(make_model(architecture, tmp_path)))


def test_counts_that_leave_nothing_or_take_nothing_are_refused_before_the_run(tmp_path: Path) -> None:
    base = locked(make_model("llama", tmp_path))
    with pytest.raises(SpecError, match=r"count: 2 of the 2 groups of 2 heads in a block of base `b` leaves none"):
        check_heads(PruneHeads(count=2), "v.prune.heads", "b", base)
    for fraction, stay in ((0.1, 64), (0.9, 0)):
        with pytest.raises(SpecError, match=f"of the 64 channels of base `b` would leave {stay}, in multiples of 32"):
            check_mlp(PruneMlp(fraction=fraction), "v.prune.mlp", "b", base)
    assert check_mlp(PruneMlp(fraction=0.6), "v.prune.mlp", "b", base)["intermediate_size"] == 32
    assert check_heads(PruneHeads(count=1), "v.prune.heads", "b", base)["num_attention_heads"] == 2


def test_what_a_config_cannot_say_is_refused_by_the_model_too(bases: dict[str, Path]) -> None:
    model = load(bases["gpt2"])
    with pytest.raises(StageError, match="cannot narrow `GPT2LMHeadModel`"):
        find_cuts(model, narrow_heads(model.config, 1))
