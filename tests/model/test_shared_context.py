"""Tokens after contexts that are kept, against the model's own forward over each text alone."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from paretune.model.forward import packed_model
from paretune.model.shared_context import PromptTree, SharedContexts, sharing
from tests.tiny import VOCABULARY_SIZE, make_model


def ids(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, count).astype(np.int32)


TREES = [
    PromptTree(ids(21, 0), (ids(3, 1), ids(0, 2), ids(9, 3))),
    PromptTree(ids(1, 4), (ids(5, 5),)),
    PromptTree(ids(14, 6), (ids(2, 7), ids(4, 8))),
]


@pytest.mark.parametrize("architecture", ["gpt2", "gpt2-inverse-scaling", "llama", "qwen3", "gemma2", "gemma3", "smollm3"])
def test_each_branch_goes_on_as_its_text_alone(architecture, tmp_path):
    """Contexts that come later, and a row that is given back and taken again; texts are longer than the windows (8)."""
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32).eval()
    plain = copy.deepcopy(model)
    cache = SharedContexts(packed_model(model), num_rows=2, num_slots=3, context_tokens=21, branch_tokens=14)
    texts = {(n, slot): [*TREES[n].context, *ids] for n in range(3) for slot, ids in enumerate(TREES[n].prompts)}

    def check(branches: list[tuple[int, int]], logits: torch.Tensor) -> None:
        for branch, found in zip(branches, logits, strict=True):
            with torch.no_grad():
                alone = plain(input_ids=torch.tensor([texts[branch]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)

    def step(branches: list[tuple[int, int]]) -> None:
        depths = [len(texts[branch]) for branch in branches]
        for n, branch in enumerate(branches):
            texts[branch].append((7 * n + depths[n]) % VOCABULARY_SIZE)
        trees, slots = [TREES[n] for n, _ in branches], [slot for _, slot in branches]
        check(branches, cache.step(trees, slots, depths, [texts[branch][-1] for branch in branches]))

    with sharing(cache.packed):
        check([(0, 0), (0, 1), (0, 2), (1, 0)], cache.read(TREES[:2]))
        step([(0, 0), (0, 1), (0, 2), (1, 0)])
        step([(1, 0), (0, 2)])
        cache.keep({TREES[1]})
        step([(1, 0)])
        check([(2, 0), (2, 1)], cache.read(TREES[2:]))
        for _ in range(3):
            step([(2, 1), (1, 0), (2, 0)])
        # Three tokens of a branch beside one of another; the last two are taken back.
        first = len(texts[2, 0])
        texts[2, 0].append(3)
        texts[1, 0].append(9)
        places = [TREES[2]] * 3 + [TREES[1]], [0] * 4, [first, first + 1, first + 2, len(texts[1, 0]) - 1]
        check([(2, 0), (1, 0)], cache.step(*places, [3, 8, 5, 9])[[0, 3]])
        step([(2, 0)])


def test_the_attention_of_the_model_is_as_it_was_afterwards(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", tmp_path), dtype=torch.float32).eval()
    packed, before = packed_model(model), model.config._attn_implementation
    with pytest.raises(ValueError, match="without a pass"), sharing(packed):
        model(input_ids=torch.tensor([[1, 2]]))
    assert model.config._attn_implementation == before
