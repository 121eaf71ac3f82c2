"""Answers after a shared context: the text of each is that of plain generation, one prompt at a time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from paretune.data.tokenizer import load_tokenizer
from paretune.data.trees import ROUND_TO
from paretune.evaluate import answers
from paretune.evaluate.answers import Decoding, Prompt, continuation_text, write_answers
from paretune.model.forward import num_positions
from paretune.model.load import LoadedModel, load_pretrained
from paretune.model.shared_context import SharedContexts, bytes_per_entry
from paretune.pipeline.resources import Resource
from tests.evaluate.stages import BASE
from tests.tiny import VOCABULARY_SIZE, make_model

CONTEXTS = [
    "The train to the harbour leaves at seven, and the driver waits for nobody. " * 2,
    "A lamp.",
    "She read the letter twice.",
]
PROMPTS = ["\nTitle:", "", "\nWhich of these is a metal? Answer:"]


def load(architecture: str, folder: Path) -> LoadedModel:
    base = make_model(architecture, folder)
    model = load_pretrained(str(base), torch.float32).eval()
    return LoadedModel(model, load_tokenizer(BASE, Resource(path=base)), torch.device("cpu"), num_positions(model))


def prompts_of(loaded: LoadedModel, limit: int = 12) -> list[Prompt]:
    contexts = [np.array([loaded.tokenizer.prefix_id, *loaded.tokenizer.encode(context)], np.int32) for context in CONTEXTS]
    return [
        Prompt(context, np.array(loaded.tokenizer.encode(prompt), np.int32), limit + n)
        for context in contexts
        for n, prompt in enumerate(PROMPTS)
    ]


def plain(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    """Plain greedy generation of transformers, one unpadded sequence."""
    ids = torch.tensor([[*prompt.context.tolist(), *prompt.ids.tolist()]])
    config = GenerationConfig(max_new_tokens=prompt.max_new_tokens, eos_token_id=loaded.tokenizer.eos_id, pad_token_id=0)
    found = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
        0, ids.shape[1] :
    ].tolist()
    return found[: found.index(1)] if 1 in found else found


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox", "llama", "mistral", "qwen2", "gemma2", "gemma3", "opt"])
def test_answers_are_those_of_plain_generation(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(architecture, tmp_path)
    prompts = prompts_of(loaded)
    assert bytes_per_entry(loaded.packed)
    found = write_answers(loaded, prompts)
    assert [list(each.ids) for each in found] == [plain(loaded, prompt) for prompt in prompts]
    monkeypatch.setattr(answers, "bytes_per_entry", lambda packed: None)
    assert [each.ids for each in write_answers(loaded, prompts)] == [each.ids for each in found]


def test_an_answer_ends_with_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    prompts = prompts_of(loaded, limit=12)
    whole = [list(each.ids) for each in write_answers(loaded, prompts)]
    for length, at, limit in ((1, 5, 12), (3, 5, 12), (3, 5, 5), (3, 5, 6), (3, 5, 4)):
        ended = [
            replace(prompt, turn_end=tuple(ids[at : at + length]), max_new_tokens=limit)
            for prompt, ids in zip(prompts, whole, strict=True)
        ]
        for shares in (True, False):
            with monkeypatch.context() as patch:
                if not shares:
                    patch.setattr(answers, "bytes_per_entry", lambda packed: None)
                found = write_answers(loaded, ended)
            for prompt, ids, answer in zip(ended, whole, found, strict=True):
                end = list(prompt.turn_end)
                first = next((n for n in range(len(ids)) if ids[n : n + length] == end), len(ids))
                assert list(answer.ids) == ids[: min(first, limit)]
                if len(end) == length:
                    assert answer.stopped_by == ("eos" if first < limit else "max_new_tokens")


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_padded_rows_are_written_and_ended_by_the_same_rules(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(architecture, tmp_path)
    prompts = [replace(prompt, stops=("e", "\n"), seed=n) for n, prompt in enumerate(prompts_of(loaded, limit=30))]
    for decoding in (Decoding(), Decoding(1.5, top_p=0.9, top_k=40, repetition_penalty=1.3)):
        with monkeypatch.context() as patch:
            shared = write_answers(loaded, prompts, decoding)
            patch.setattr(answers, "bytes_per_entry", lambda packed: None)
            padded = write_answers(loaded, prompts, decoding)
        assert [(a.ids, a.text, a.stopped_by) for a in padded] == [(a.ids, a.text, a.stopped_by) for a in shared]
        assert "stop" in {a.stopped_by for a in shared}


def test_answers_do_not_depend_on_what_is_answered_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    prompts = prompts_of(loaded)
    together = write_answers(loaded, prompts)
    for name, limit in (("MAX_ANSWERS", 1), ("MAX_ANSWERS", 2), ("MAX_ANSWERS", 8), ("MAX_BYTES", 1), ("PASS_TOKENS", 1)):
        monkeypatch.setattr(answers, name, limit)
        assert [each.text for each in write_answers(loaded, prompts)] == [each.text for each in together]
    assert [each.text for each in write_answers(loaded, prompts[::-1])][::-1] == [each.text for each in together]


def test_guesses_save_passes_and_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    prompts = prompts_of(loaded)
    passes: list[int] = []
    step = SharedContexts.step
    monkeypatch.setattr(SharedContexts, "step", lambda self, *places: passes.append(len(places[0])) or step(self, *places))

    def written(guesses: Callable[[answers._Draft], list[int]]) -> tuple[int, list[tuple[int, ...]]]:
        passes.clear()
        monkeypatch.setattr(answers._Draft, "guesses", guesses)
        found = [each.ids for each in write_answers(loaded, prompts)]
        assert max(passes) <= answers.MAX_ANSWERS
        return len(passes), found

    num_plain, plainly = written(lambda draft: [])
    known = {id(prompt): ids for prompt, ids in zip(prompts, plainly, strict=True)}

    def right(draft: answers._Draft) -> list[int]:
        count = len(draft.ids)
        return list(known[id(draft.prompt)][count : min(count + 3, draft.limit - 1)])

    num_guessed, found = written(right)
    assert found == plainly
    assert num_guessed < num_plain / 2
    for guesses in (
        lambda draft: [(token + n) % 64 for n, token in enumerate(right(draft))],
        lambda draft: [5] * len(right(draft)),
    ):
        assert written(guesses)[1] == plainly


def test_what_followed_before_is_guessed() -> None:
    prompt = Prompt(np.array([1, 2, 3, 4], np.int32), np.array([], np.int32), 9)

    def guessed(ids: list[int], num_guesses: int) -> list[int]:
        return answers._Draft(prompt, 9, torch.Generator(), ids, num_guesses=num_guesses).guesses()

    assert guessed([2, 3], 3) == [4, 2, 3]
    assert guessed([2, 3], 1) == [4]
    assert guessed([7, 7, 7], 3) == [7, 7, 7]
    assert guessed([3, 2], 3) == []
    assert guessed([5, 6, 2, 3, 4, 2, 3], 3) == [4]  # the limit is 9, and the token after the last guess is chosen
    assert guessed([5], 3) == []


def test_a_context_is_read_once(tmp_path: Path) -> None:
    loaded = load("llama", tmp_path)
    assert bytes_per_entry(loaded.packed)
    read = []
    hook = loaded.model.get_input_embeddings().register_forward_hook(lambda _, arguments, __: read.append(arguments[0].numel()))
    prompts = prompts_of(loaded, limit=1)
    write_answers(loaded, prompts)
    hook.remove()
    once = sum({id(prompt.context): len(prompt.context) for prompt in prompts}.values())
    assert once <= max(read) < once + sum(len(prompt.ids) + 1 for prompt in prompts) + ROUND_TO


def test_an_architecture_that_cannot_share_answers_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", tmp_path)
    monkeypatch.setattr(SharedContexts, "step", lambda self, trees_B, *_: torch.zeros(len(trees_B), VOCABULARY_SIZE))
    assert bytes_per_entry(loaded.packed) is None
    prompts = prompts_of(loaded)[:3]
    assert [list(each.ids) for each in write_answers(loaded, prompts)] == [plain(loaded, prompt) for prompt in prompts]


def test_an_answer_ends_at_its_stop_text(tmp_path: Path) -> None:
    loaded = load("llama", tmp_path)
    prompts = prompts_of(loaded)
    whole = write_answers(loaded, prompts)[0]
    stop = whole.text[4:6]
    cut = write_answers(loaded, [replace(prompts[0], stops=(stop,)), *prompts[1:]])
    assert (cut[0].text, cut[0].stopped_by) == (whole.text[: whole.text.index(stop)], "stop")
    assert loaded.tokenizer.decode(cut[0].ids).startswith(cut[0].text + stop)
    assert [each.text for each in cut[1:]] == [each.text for each in write_answers(loaded, prompts)[1:]]


@pytest.mark.parametrize(("num_short", "expected"), [(20, [21]), (150, [64, 87])])
def test_a_long_context_is_not_put_beside_more_short_ones_than_have_room(num_short: int, expected: list[int]) -> None:
    empty = np.zeros(0, np.int32)
    prompts = [Prompt(np.zeros(length, np.int32), empty, 8) for length in (900, *[20] * num_short)]
    drafts = [answers._Draft(prompt, 8, torch.Generator()) for prompt in prompts]
    groups = list(answers._groups_by_context(drafts))
    assert {id(draft) for group in groups for tree in group for draft in tree} == set(map(id, drafts))
    assert [len(group) for group in groups] == expected


def test_text_keeps_the_space_that_a_decoder_drops_at_a_beginning() -> None:
    class Decoder:
        """As SentencePiece decodes: a word mark is a space, but for the first."""

        def decode(self, ids: list[int]) -> str:
            return "".join({1: "▁one", 2: "▁two", 3: "s"}[token] for token in ids).replace("▁", " ").removeprefix(" ")

    assert continuation_text(Decoder(), [1], [2, 3]) == " twos"
    assert continuation_text(Decoder(), [1], [3]) == "s"
    assert continuation_text(Decoder(), [], [2]) == "two"
