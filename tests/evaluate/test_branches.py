"""Answers after a shared context: the text of each is that of plain generation, one prompt at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from paretune.data.tokenizer import load_tokenizer
from paretune.data.trees import ROUND_TO
from paretune.evaluate import branches
from paretune.evaluate.branches import Ask, answer, place_bytes
from paretune.model import shared_context
from paretune.model.load import LoadedModel, load_pretrained, max_positions
from tests.evaluate.stages import BASE
from tests.tiny import make_model

CONTEXTS = [
    "The train to the harbour leaves at seven, and the driver waits for nobody. " * 2,
    "A lamp.",
    "She read the letter twice.",
]
PROMPTS = ["\nTitle:", "", "\nWhich of these is a metal? Answer:"]


def load(architecture: str, folder: Path) -> LoadedModel:
    base = make_model(architecture, folder)
    model = load_pretrained(str(base), torch.float32).eval()
    return LoadedModel(model, load_tokenizer(BASE, str(base)), torch.device("cpu"), max_positions(model.config))


def asks_of(loaded: LoadedModel, limit: int = 12) -> list[Ask]:
    trunks = [np.array([loaded.tokenizer.prefix_id, *loaded.tokenizer.encode(context)], np.int32) for context in CONTEXTS]
    return [
        Ask(trunk, np.array(loaded.tokenizer.encode(prompt), np.int32), limit + n)
        for trunk in trunks
        for n, prompt in enumerate(PROMPTS)
    ]


def plain(loaded: LoadedModel, ask: Ask) -> list[int]:
    """Plain greedy generation of transformers, one unpadded sequence."""
    ids = torch.tensor([[*ask.trunk.tolist(), *ask.prompt.tolist()]])
    config = GenerationConfig(max_new_tokens=ask.limit, eos_token_id=loaded.tokenizer.eos_id, pad_token_id=0)
    found = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
        0, ids.shape[1] :
    ].tolist()
    return found[: found.index(1)] if 1 in found else found


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox", "llama", "mistral", "qwen2", "gemma2", "gemma3", "opt"])
def test_answers_are_those_of_plain_generation(architecture: str, tmp_path: Path) -> None:
    loaded = load(architecture, tmp_path)
    asks = asks_of(loaded)
    assert place_bytes(loaded.packed)
    found = answer(loaded, asks)
    assert [list(each.ids) for each in found] == [plain(loaded, ask) for ask in asks]
    assert [each.ids for each in answer(loaded, asks, share=False)] == [each.ids for each in found]


def test_answers_do_not_depend_on_what_is_answered_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    asks = asks_of(loaded)
    together = answer(loaded, asks)
    for name, limit in (("MAX_BRANCHES", 1), ("MAX_BRANCHES", 2), ("MAX_BRANCHES", 8), ("MAX_BYTES", 1), ("PASS_TOKENS", 1)):
        monkeypatch.setattr(branches, name, limit)
        assert [each.text for each in answer(loaded, asks)] == [each.text for each in together]
    assert [each.text for each in answer(loaded, asks[::-1])][::-1] == [each.text for each in together]


def test_a_context_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    read = []
    hook = loaded.model.get_input_embeddings().register_forward_hook(lambda _, arguments, __: read.append(arguments[0].numel()))
    asks = asks_of(loaded, limit=1)
    answer(loaded, asks, share=True)
    hook.remove()
    once = {id(ask.trunk): len(ask.trunk) for ask in asks}
    assert sum(once.values()) <= max(read) < sum(once.values()) + sum(len(ask.prompt) + 1 for ask in asks) + ROUND_TO


def test_an_architecture_that_cannot_share_answers_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    monkeypatch.setattr(shared_context, "_attend", lambda query, *_: torch.zeros_like(query))
    assert place_bytes(loaded.packed) is None
    asks = asks_of(loaded)[:3]
    assert [list(each.ids) for each in answer(loaded, asks)] == [plain(loaded, ask) for ask in asks]


def test_an_answer_ends_at_its_stop_text(tmp_path: Path) -> None:
    loaded = load("llama", tmp_path)
    asks = asks_of(loaded)
    whole = answer(loaded, asks)[0]
    stop = whole.text[4:6]
    cut = answer(loaded, [Ask(asks[0].trunk, asks[0].prompt, asks[0].limit, (stop,)), *asks[1:]])
    assert (cut[0].text, cut[0].stopped_by) == (whole.text[: whole.text.index(stop)], "stop")
    assert loaded.tokenizer.decode(cut[0].ids).startswith(cut[0].text + stop)
    assert [each.text for each in cut[1:]] == [each.text for each in answer(loaded, asks)[1:]]


@pytest.mark.parametrize(("num_short", "expected"), [(20, [21]), (150, [64, 87])])
def test_a_long_context_is_not_put_beside_more_short_ones_than_have_room(num_short: int, expected: list[int]) -> None:
    empty = np.zeros(0, np.int32)
    asks = [Ask(np.zeros(length, np.int32), empty, 8) for length in (900, *[20] * num_short)]
    groups = list(branches._groups(asks))
    assert sorted(index for group in groups for tree in group for index in tree) == list(range(num_short + 1))
    assert [len(group) for group in groups] == expected
