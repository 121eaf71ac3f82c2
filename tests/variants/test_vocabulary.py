"""Smaller vocabularies: texts of kept tokens are written as before, others come back, and logits are those of the rows."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from paretune.errors import SpecError, StageError
from paretune.pipeline.checks import check_gguf, check_vocabulary
from paretune.pipeline.lock import LockedBase
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.study.methods import PruneVocabulary, QuantizeGguf
from paretune.variants.vocabulary import kept_ids, parts_of, prune_vocabulary, smaller_tokenizer
from tests.evaluate.stages import BASE, write_tokens
from tests.surgery_table import measure_change
from tests.tiny import ARCHITECTURES, make_model, make_tokenizer

TRAIN = "The train to the harbour leaves at seven; the train waits."
OTHERS = ("A new engine was shown to the press.", "Question: copper? é 東京 \U0001f600 <bos>", "  two  spaces\n\n\tand\ttabs ")
TEXTS = [("train", "a", TRAIN), ("validation", "b", "the harbour leaves"), ("test", "c", OTHERS[0])]


def context_of(base: Path, folder: Path) -> StageContext:
    (folder / "draft").mkdir(parents=True)
    return StageContext(
        config={"base": BASE, "method": {}, "max_length": 64, "precision": "float32", "device": "cpu"},
        inputs={"tokens": write_tokens(base, TEXTS, folder / "tokens")},
        resources={"base": Resource(path=base)},
        options=RunOptions(),
        draft=folder / "draft",
        emit=lambda **_: None,
    )


class Rows(nn.Module):
    """The whole model, asked about the tokens that stay."""

    def __init__(self, model: nn.Module, kept: torch.Tensor) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def forward(self, tokens: torch.Tensor, **arguments: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.model(self.kept[tokens], **arguments).logits[..., self.kept])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fewer_tokens_mean_the_same_live_cached_reloaded_and_adapted(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    context = context_of(bases[architecture], tmp_path)
    metrics = prune_vocabulary(context)
    kept = torch.tensor(json.loads((context.draft / "vocabulary.json").read_text()))
    assert (metrics["tokens_before"], metrics["tokens_after"]) == (300, len(kept))
    assert 256 < len(kept) < 290
    assert (metrics["rewritten_train"], metrics["rewritten_validation"], metrics["rewritten_test"]) == (0, 0, 1)
    live = AutoModelForCausalLM.from_pretrained(context.draft).eval()
    assert live.get_input_embeddings().num_embeddings == live.config.vocab_size == len(kept)
    same = Rows(AutoModelForCausalLM.from_pretrained(bases[architecture]).eval(), kept)
    differences = measure_change(live, same, tmp_path)
    assert {name: value for name, value in differences.items() if not value < 1e-5} == {}
    before, after = (AutoTokenizer.from_pretrained(path) for path in (bases[architecture], context.draft))
    assert kept[after(TRAIN)["input_ids"]].tolist() == before(TRAIN)["input_ids"]
    assert (kept[live.config.bos_token_id], kept[live.config.eos_token_id]) == (before.bos_token_id, before.eos_token_id)
    assert (after.bos_token_id, after.eos_token_id) == (live.config.bos_token_id, live.config.eos_token_id)
    for text in OTHERS:
        assert after.decode(after(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def _smaller(tokenizer: PreTrainedTokenizerFast, texts: tuple[str, ...]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = kept_ids(content, {token for text in texts for token in tokenizer(text)["input_ids"]})
    smaller = smaller_tokenizer(content, {old: new for new, old in enumerate(kept)})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(smaller))), kept


WORDS = [
    "low",
    "lower",
    "lowest",
    "newer",
    "newest",
    "wide",
    "wider",
    "widest",
    "slow",
    "slower",
    "slowest",
    "the",
    "and",
    "then",
    "there",
    "these",
    "those",
]


def _grown(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with bytes to fall back on, as Gemma's (all splits of a token are merges there) and T5's are."""
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "<unk>", *byte_tokens], show_progress=False)
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator([" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bytes", "byte fallback", "unigram"])
def test_texts_of_kept_tokens_are_written_as_before(kind: str) -> None:
    tokenizer = make_tokenizer() if kind == "bytes" else _grown(kind)
    smaller, kept = _smaller(tokenizer, ("the lowest slower", "then wider"))
    assert len(kept) < len(tokenizer)
    as_before = 0
    for first in WORDS:
        for second in WORDS:
            text = f"{first} {second}"
            before, after = tokenizer(text)["input_ids"], smaller(text)["input_ids"]
            if {*before} <= {*kept}:
                assert [kept[token] for token in after] == before
                as_before += 1
            elif kind != "unigram":
                assert smaller.decode(after) == text
    assert 4 <= as_before < len(WORDS) ** 2
    if kind == "byte fallback":
        assert smaller.decode(smaller("Zürich 東")["input_ids"]) == "Zürich 東"


def test_what_is_merged_on_the_way_is_what_the_ranks_say() -> None:
    ranks = {("a", "b"): 0, ("c", "d"): 1, ("ab", "cd"): 2, ("b", "c"): 3, ("a", "bcd"): 4}
    assert parts_of("abcd", ranks) == {"a", "b", "c", "d", "ab", "cd", "abcd"}
    assert parts_of("bcx", ranks) == {"b", "c", "x", "bc"}


def test_spare_special_tokens_leave_and_others_stay() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<unused0>", "<|im_start|>"]})
    smaller, kept = _smaller(tokenizer, ("a",))
    assert "<|im_start|>" in smaller.get_vocab()
    assert "<unused0>" not in smaller.get_vocab()
    assert len(smaller) == len(kept)


def test_a_tokenizer_that_cannot_lose_tokens_is_refused(tmp_path: Path) -> None:
    word_piece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    word_piece.save(str(tmp_path / "tokenizer.json"))
    base = LockedBase(resource=Resource(path=tmp_path), digest="", tokenizer_digest="", config={"architectures": ["X"]})
    with pytest.raises(
        SpecError, match=r"v\.prune\.vocabulary: the tokenizer of base `b` cannot be made smaller: it is of the"
    ):
        check_vocabulary(PruneVocabulary(), "v.prune.vocabulary", "b", base)
    with pytest.raises(StageError, match="cannot be made smaller"):
        kept_ids(json.loads((tmp_path / "tokenizer.json").read_text()), {1})


def test_a_smaller_tokenizer_is_none_that_llama_cpp_knows(tmp_path: Path) -> None:
    make_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    base = LockedBase(resource=Resource(path=tmp_path), digest="", tokenizer_digest="", config=config)
    left = check_vocabulary(PruneVocabulary(), "v[0]", "b", base)
    with pytest.raises(SpecError, match=r"v\[1\]: llama.cpp's converter knows a tokenizer by what it writes"):
        check_gguf(QuantizeGguf(), "v[1]", "b", LockedBase(base.resource, "", "", left))
