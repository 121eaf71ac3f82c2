"""Measured choices of blocks: the losses are those of the models without the blocks, and only training text is read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from paretune.data.trees import Example
from paretune.errors import SpecError, StageError
from paretune.model.blocks import block_list, remove_blocks, skipped_blocks
from paretune.model.forward import score
from paretune.pipeline import block_search
from paretune.pipeline.block_search import EXACT_SETS, runs_of
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.variants import choose
from paretune.variants.calibration import Window
from paretune.variants.choose import (
    choose_by_loss,
    choose_by_turn,
    choose_random,
    choose_run,
    mean_scores,
    race_by_loss,
    stability,
)
from paretune.variants.stages import prune_blocks
from tests.evaluate.stages import BASE, reference_logits, write_tokens
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, VOCABULARY_SIZE, make_model, randomise


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def some_examples(lengths: Sequence[int] = (21, 40, 5, 33, 2), seed: int = 0) -> list[Example]:
    generator = np.random.default_rng(seed)
    return [Example(generator.integers(2, VOCABULARY_SIZE, length).astype(np.int32)) for length in lengths]


def windows_of(examples: Sequence[Example]) -> list[Window]:
    return [Window(str(number), (example,)) for number, example in enumerate(examples)]


def losses_of(model: PreTrainedModel, examples: Sequence[Example]) -> np.ndarray:
    return np.array([one.nats.sum() for one in score(model, examples, forward_tokens=4096)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_the_model_without_the_blocks(architecture: str, bases: dict[str, Path]) -> None:
    examples = some_examples()
    choice = choose_by_loss(load(bases[architecture]), windows_of(examples), 2, forward_tokens=80)
    assert (choice.computed, choice.tried) == ("walk", "all sets")
    assert len(choice.scores) == 1 + 4 + 6
    for removed in ((), (0,), (1,), (2,), (3,), (0, 1), (1, 3), (2, 3)):
        model = load(bases[architecture])
        if removed:
            remove_blocks(model, removed, base_fingerprint="")
        np.testing.assert_allclose(choice.scores[removed], losses_of(model, examples), rtol=1e-5)
    means = mean_scores(choice.scores, windows_of(examples))
    assert means[choice.removed] == min(mean for removed, mean in means.items() if len(removed) == 2)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_losses_are_those_of_float64(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    examples = some_examples()
    choice = choose_by_loss(load(bases[architecture]), windows_of(examples), 1, forward_tokens=4096)
    for block in range(NUM_BLOCKS):
        pruned = load(bases[architecture])
        remove_blocks(pruned, [block], base_fingerprint="")
        pruned.save_pretrained(tmp_path / str(block))
        logits_of = reference_logits(tmp_path / str(block))
        for example, found in zip(examples, choice.scores[(block,)], strict=True):
            ids = torch.from_numpy(example.ids).long()
            nats = -logits_of(ids.tolist())[:-1].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
            assert found == pytest.approx(nats.sum().item(), rel=1e-5)


@pytest.mark.parametrize(("forward_tokens", "state_bytes"), [(1, 1), (64, 1 << 16), (1 << 20, 1 << 30)])
def test_memory_does_not_change_the_answer(forward_tokens: int, state_bytes: int, bases: dict[str, Path]) -> None:
    examples = some_examples()
    expected = choose_by_loss(load(bases["qwen2"]), windows_of(examples), 2, forward_tokens=4096)
    found = choose_by_loss(
        load(bases["qwen2"]), windows_of(examples), 2, forward_tokens=forward_tokens, state_bytes=state_bytes
    )
    assert found.removed == expected.removed
    for removed, sums in expected.scores.items():
        np.testing.assert_allclose(found.scores[removed], sums, rtol=1e-5)


def test_of_many_sets_blocks_go_one_at_a_time(tmp_path: Path) -> None:
    num_blocks = 7
    assert 1 + 7 + 21 + 35 + 35 + 21 <= EXACT_SETS < 1000
    base, examples = make_model("llama", tmp_path, num_hidden_layers=num_blocks), some_examples((20, 20))
    exact = choose_by_loss(load(base), windows_of(examples), 3, forward_tokens=4096)
    assert exact.tried == "all sets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_search, "EXACT_SETS", 10)
        greedy = choose_by_loss(load(base), windows_of(examples), 3, forward_tokens=4096)
    assert greedy.tried == "one at a time"
    assert {len(removed): sum(len(one) == len(removed) for one in greedy.scores) for removed in greedy.scores} == {
        0: 1,
        1: 7,
        2: 6,
        3: 5,
    }
    for removed, sums in greedy.scores.items():
        np.testing.assert_allclose(sums, exact.scores[removed], rtol=1e-5)
    by_size = [min((s.sum(), r) for r, s in greedy.scores.items() if len(r) == size)[1] for size in (1, 2, 3)]
    assert set(by_size[0]) < set(by_size[1]) < set(by_size[2]) == set(greedy.removed)
    totals = {removed: sums.sum() for removed, sums in exact.scores.items() if len(removed) == 3}
    assert exact.removed == min(totals, key=lambda removed: totals[removed])


def test_what_cannot_be_walked_is_evaluated_one_by_one(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    examples = some_examples()
    expected = choose_by_loss(load(bases["smollm3"]), windows_of(examples), 2, forward_tokens=4096)
    monkeypatch.setattr(choose, "agrees", lambda *_: False)
    for exact_sets in (EXACT_SETS, 0):
        monkeypatch.setattr(block_search, "EXACT_SETS", exact_sets)
        found = choose_by_loss(load(bases["smollm3"]), windows_of(examples), 2, forward_tokens=4096)
        assert (found.computed, found.removed) == ("one by one", expected.removed)
        assert found.scores.keys() == expected.scores.keys()
        for removed, sums in expected.scores.items():
            np.testing.assert_allclose(found.scores[removed], sums, rtol=1e-5)
    greedy = choose_by_loss(load(bases["smollm3"]), windows_of(examples), 3, forward_tokens=4096)
    assert greedy.tried == "one at a time"
    assert len(greedy.removed) == 3


SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": NUM_BLOCKS, "vocab_size": VOCABULARY_SIZE}
BEYOND_THE_TABLE = {
    "falcon": ({"model_type": "falcon"} | SMALL, "walk"),
    "mixtral": ({"model_type": "mixtral", "intermediate_size": 64, "num_key_value_heads": 2} | SMALL, "walk"),
    # Its attention biases have the batch in them, so its blocks cannot be called on more rows.
    "bloom": ({"model_type": "bloom", "n_head": 4} | SMALL, "one by one"),
}


@pytest.mark.parametrize("name", BEYOND_THE_TABLE)
def test_architectures_nobody_named_are_walked_or_evaluated_one_by_one(name: str) -> None:
    fields, computed = BEYOND_THE_TABLE[name]
    model, examples = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval(), some_examples()
    randomise(model)
    choice = choose_by_loss(model, windows_of(examples), 1, forward_tokens=64)
    assert choice.computed == computed
    np.testing.assert_allclose(choice.scores[()], losses_of(model, examples), rtol=1e-5)
    for index in range(NUM_BLOCKS):
        with skipped_blocks(model, [index]):
            np.testing.assert_allclose(choice.scores[(index,)], losses_of(model, examples), rtol=1e-5)


def test_influence_and_angle_are_those_of_the_hidden_states(bases: dict[str, Path]) -> None:
    examples = some_examples((20,))
    model = load(bases["gpt2"])
    states: list[torch.Tensor] = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda _, args, output: states.append(output.detach()))
    model.transformer.h[0].register_forward_pre_hook(lambda _, args: states.append(args[0].detach()))
    with torch.no_grad():
        model(torch.from_numpy(examples[0].ids).long()[None], use_cache=False)
    x = [state[0, :-1].double() / state[0, :-1].double().norm(dim=-1, keepdim=True) for state in states]
    influence = [(1 - (x[i] * x[i + 1]).sum(-1)).sum().item() for i in range(NUM_BLOCKS)]
    angles = [(torch.arccos((x[i] * x[i + 2]).sum(-1)) / torch.pi).sum().item() for i in range(NUM_BLOCKS - 1)]
    by_influence = choose_by_turn(load(bases["gpt2"]), windows_of(examples), 2, choose="influence")
    by_angle = choose_by_turn(load(bases["gpt2"]), windows_of(examples), 2, choose="angular")
    assert [by_influence.scores[(i,)][0] for i in range(NUM_BLOCKS)] == pytest.approx(influence, rel=1e-5)
    assert by_influence.removed == tuple(sorted(np.argsort(influence)[:2]))
    assert [by_angle.scores[(i, i + 1)][0] for i in range(NUM_BLOCKS - 1)] == pytest.approx(angles, rel=1e-5)
    first = int(np.argmin(angles))
    assert by_angle.removed == (first, first + 1)


def test_random_blocks_follow_the_seed() -> None:
    drawn = [choose_random(16, 3, seed) for seed in range(20)]
    assert drawn == [choose_random(16, 3, seed) for seed in range(20)]
    assert len(set(drawn)) > 10
    assert all(list(blocks) == sorted(set(blocks)) and 0 <= blocks[0] <= blocks[-1] < 16 for blocks in drawn)
    with pytest.raises(SpecError, match="`count: 16` of 16 blocks"):
        choose_random(16, 16, 0)


TEXTS = [
    ("train", "a", "The train to the harbour leaves at seven, and the driver waits for nobody." * 3),
    ("train", "b", "She read the letter twice, folded it, and put it under the lamp."),
    ("validation", "c", "A new engine was shown to the press."),
    ("test", "d", "The older one stays in production for another year."),
]


def context_of(
    base: Path, method: dict[str, object], folder: Path, texts: Sequence[tuple[str, str, str]] = TEXTS
) -> StageContext:
    (folder / "draft").mkdir(parents=True)
    fields = {"blocks": None, "count": 1, "calibration": {"documents": 64, "tokens": 16384, "seed": 0}}
    return StageContext(
        config={"base": BASE, "method": fields | method, "max_length": 32, "precision": "float32", "device": "cpu"},
        inputs={"tokens": write_tokens(base, texts, folder / "tokens")},
        resources={"base": Resource(path=base)},
        options=RunOptions(),
        draft=folder / "draft",
        emit=lambda **_: None,
    )


@pytest.mark.parametrize("chosen", ["loss", "influence", "angular"])
def test_the_stage_removes_what_it_measured_and_keeps_the_scores(chosen: str, bases: dict[str, Path], tmp_path: Path) -> None:
    context = context_of(bases["llama"], {"choose": chosen}, tmp_path)
    metrics = prune_blocks(context)
    scores = {tuple(one["removed"]): one["score"] for one in metrics["block_scores"]}
    singles = {removed: value for removed, value in scores.items() if len(removed) == 1}
    assert tuple(metrics["removed_blocks"]) == min(singles, key=lambda removed: singles[removed])
    assert metrics["calibration_documents"] == 2
    assert AutoModelForCausalLM.from_pretrained(context.draft).config.num_hidden_layers == NUM_BLOCKS - 1
    table = pd.read_parquet(context.draft / "block_scores.parquet")
    assert set(table["document"]) == {"a", "b"}
    for removed, value in scores.items():
        rows = table[[tuple(one) == removed for one in table["removed"]]]
        assert rows["tokens"].sum() == metrics["calibration_tokens"]
        assert rows["sum"].sum() / rows["tokens"].sum() == pytest.approx(value)


def test_only_training_text_is_read(bases: dict[str, Path], tmp_path: Path) -> None:
    held_out = [(split, document, text if split == "train" else text[::-1]) for split, document, text in TEXTS]
    method = {"choose": "loss"}
    first = prune_blocks(context_of(bases["gpt2"], method, tmp_path / "one"))
    second = prune_blocks(context_of(bases["gpt2"], method, tmp_path / "two", held_out))
    assert first["block_scores"] == second["block_scores"]
    changed = [(split, document, text[::-1] if split == "train" else text) for split, document, text in TEXTS]
    third = prune_blocks(context_of(bases["gpt2"], method, tmp_path / "three", changed))
    assert first["block_scores"] != third["block_scores"]


def test_a_count_that_leaves_nothing_is_refused_before_anything_is_measured(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="`count: 4` of 4 blocks"):
        prune_blocks(context_of(bases["llama"], {"choose": "loss", "count": 4}, tmp_path))


def test_a_loss_that_is_no_number_is_told(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose_broken(_: object, windows: Sequence[Window], *__: object, **___: object) -> choose.Choice:
        scores = {(): np.ones(len(windows)), (2,): np.full(len(windows), np.inf)}
        return choose.Choice((2,), scores, "walk", "all sets")

    monkeypatch.setattr(choose, "choose_by_loss", choose_broken)
    with pytest.raises(
        StageError, match=r"without blocks \[2\] the model's loss is no finite number in float32; write `precision"
    ):
        prune_blocks(context_of(bases["llama"], {"choose": "loss"}, tmp_path, TEXTS[1:]))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_half_precision_is_walked_within_its_rounding(architecture: str, bases: dict[str, Path]) -> None:
    examples = some_examples()
    exact = choose_by_loss(load(bases[architecture]), windows_of(examples), 1, forward_tokens=64)
    half = choose_by_loss(load(bases[architecture]).to(torch.bfloat16), windows_of(examples), 1, forward_tokens=64)
    assert half.computed == "walk"
    for removed, sums in exact.scores.items():
        assert half.scores[removed].sum() == pytest.approx(sums.sum(), rel=0.02)


def test_slopes_of_blocks_are_those_of_finite_differences(bases: dict[str, Path]) -> None:
    examples, step = some_examples((21, 33)), 1e-3
    for name in ("gpt2", "gemma3"):
        slopes = choose_by_turn(load(bases[name]).double(), windows_of(examples), 1, choose="taylor").scores
        model = load(bases[name]).double()
        _, blocks = block_list(model)
        for index in (0, 2):
            losses = []
            for factor in (1 + step, 1 - step):
                handle = blocks[index].register_forward_hook(
                    lambda _, args, output, factor=factor: (
                        (args[0] + factor * (output[0] - args[0]), *output[1:])
                        if isinstance(output, tuple)
                        else args[0] + factor * (output - args[0])
                    )
                )
                losses.append(losses_of(model, examples))
                handle.remove()
            np.testing.assert_allclose(slopes[index,], -(losses[0] - losses[1]) / (2 * step), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("chosen", ["loss", "taylor", "influence", "angular"])
def test_protected_blocks_stay_and_runs_are_runs(chosen: str, bases: dict[str, Path], tmp_path: Path) -> None:
    free = prune_blocks(context_of(bases["llama"], {"choose": chosen}, tmp_path / "free"))["removed_blocks"]
    method = {"choose": chosen, "protect": free}
    other = prune_blocks(context_of(bases["llama"], method, tmp_path / "protected"))
    assert other["removed_blocks"] != free
    assert 0 <= other["chosen_again"] <= 1
    method = {"choose": chosen, "count": None, "fraction": 0.5, "contiguous": True, "protect": [0]}
    first, second = prune_blocks(context_of(bases["llama"], method, tmp_path / "run"))["removed_blocks"]
    assert second == first + 1
    assert first in (1, 2)


def test_the_run_is_the_one_without_which_the_loss_is_lowest(bases: dict[str, Path]) -> None:
    examples = some_examples()
    choice = choose_run(load(bases["qwen3"]), windows_of(examples), runs_of(NUM_BLOCKS, 2))
    exact = choose_by_loss(load(bases["qwen3"]), windows_of(examples), 2, forward_tokens=4096)
    for run in ((0, 1), (1, 2), (2, 3)):
        np.testing.assert_allclose(choice.scores[run], exact.scores[run], rtol=1e-5)
    assert choice.removed == min(((0, 1), (1, 2), (2, 3)), key=lambda run: exact.scores[run].sum())


def test_a_race_measures_what_all_sets_would_and_its_record_says_how_far_it_came(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    examples = some_examples((30,) * 12)
    windows = [Window(str(number % 6), (example,)) for number, example in enumerate(examples)]
    exact = choose_by_loss(load(bases["smollm3"]), windows_of(examples), 2, forward_tokens=64)
    race = race_by_loss(load(bases["smollm3"]), windows, 2, passes=1e9, forward_tokens=64)
    assert (race.tried, race.computed) == ("race", "walk")
    for removed, sums in race.scores.items():
        np.testing.assert_allclose(sums, exact.scores[removed][: len(sums)], rtol=1e-5)
    method = {"choose": "loss", "count": 2, "budget": {"search": "race", "passes": 4}}
    metrics = prune_blocks(context_of(bases["llama"], method, tmp_path))
    assert metrics["tried"] == "race"
    assert metrics["search"]["sets_of_this_size"] == 6
    table = pd.read_parquet(tmp_path / "draft" / "block_scores.parquet")
    chosen = table[[sorted(one) == metrics["removed_blocks"] for one in table["removed"]]]
    assert chosen["sum"].tolist() == chosen["reference"].tolist()


def test_a_choice_is_as_stable_as_its_documents() -> None:
    generator = np.random.default_rng(0)
    windows = [Window(str(number), (Example(np.zeros(11, np.int32)),)) for number in range(40)]
    sure = {(block,): 20 + block + generator.normal(0, 0.1, 40) for block in range(4)}
    told = stability(choose.Choice((0,), sure, "walk", "all sets"), windows, False)
    assert told == {"chosen_again": 1.0, "sets_alike": []}
    unsure = sure | {(1,): sure[0,] + generator.normal(0, 1, 40), (0,): sure[0,]}
    told = stability(choose.Choice((0,), unsure, "walk", "all sets"), windows, False)
    assert told["sets_alike"] == [[1]]
    assert 0.1 < told["chosen_again"] < 0.9
