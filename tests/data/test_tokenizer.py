"""The seam rule on the two families of tokenizers: bytes, and SentencePiece with its dummy space."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from paretune.data.tokenizer import TextTokenizer, load_tokenizer
from paretune.errors import DataError, NeedsError
from paretune.pipeline.resources import Resource
from tests.tiny import VOCABULARY_SIZE, make_model, make_tokenizer


def test_padding_beyond_the_embedding_is_that_of_a_token_that_exists(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path)
    hf = AutoTokenizer.from_pretrained(base)
    hf.add_special_tokens({"pad_token": "<pad>"})
    assert hf.pad_token_id == VOCABULARY_SIZE
    hf.save_pretrained(base)
    tokenizer = load_tokenizer({"trust_remote_code": False}, Resource(path=base))
    assert tokenizer.pad_id == tokenizer.hf.pad_token_id == tokenizer.eos_id
    with pytest.raises(DataError, match=r"holds the token `<pad>`, 300, and the embedding of the base has 300 rows"):
        tokenizer.encode("a <pad> b")


def test_a_beginning_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path)
    hf = AutoTokenizer.from_pretrained(base)
    hf.add_special_tokens({"bos_token": "<new>"})
    hf.save_pretrained(base)
    with pytest.raises(NeedsError, match="has 301 tokens, its embedding 300 rows: `<new>` is token 300"):
        load_tokenizer({"trust_remote_code": False}, Resource(path=base))


def wrapped(hf: PreTrainedTokenizerFast) -> TextTokenizer:
    return TextTokenizer(hf, prefix_id=0, eos_id=1, stop_ids=frozenset({1}), pad_id=1)


@pytest.fixture(scope="module")
def with_dummy_space() -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(["The answer is Paris. The question is where.\nParis"] * 3, trainer)
    return wrapped(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


@pytest.fixture(scope="module")
def with_prefix_space() -> TextTokenizer:
    """Byte-level, with `add_prefix_space`, as RoBERTa's and some of GPT-2's kind."""
    hf = make_tokenizer()
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return wrapped(hf)


PIECES = [
    ("Question: where?\nAnswer:", " Paris"),
    ("The ", "answer"),
    ("Title: ", "Paris\n"),
    ("a\n", "\n b"),
    ("x", ""),
    ("Paris", ", and"),
    ("a", "  b"),
]


@pytest.mark.parametrize(("start", "piece"), PIECES)
def test_pieces_tokenized_apart_join_to_the_literal_text(with_dummy_space, with_prefix_space, start, piece):
    for tokenizer in (with_dummy_space, with_prefix_space, wrapped(make_tokenizer())):
        joined = tokenizer.encode(start) + tokenizer.encode_continuation(piece)
        assert tokenizer.decode(joined).removeprefix(" ") == start + piece


def test_a_tokenizer_that_puts_a_space_at_every_seam_is_refused():
    hf = make_tokenizer()
    spaces = pre_tokenizers.ByteLevel(add_prefix_space=True)
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), spaces])
    with pytest.raises(NeedsError, match=r"puts a space before every piece of a text, also before 'Paris'.*add_prefix_space"):
        wrapped(hf).encode_continuation("Paris")
    assert wrapped(hf).decode(wrapped(hf).encode_continuation(" Paris")) == " Paris"


def test_the_prefix_is_that_which_is_asked_for(tmp_path):
    hf = make_tokenizer()
    tokenizer = wrapped(hf)
    assert [tokenizer.prefix_ids(prefix) for prefix in ("auto", "bos", "eos", "none", "tokenizer")] == [[0], [0], [1], [], []]
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    assert tokenizer.prefix_ids("tokenizer") == [0]
    hf.bos_token = None
    without = TextTokenizer(hf, prefix_id=1, eos_id=1, stop_ids=frozenset({1}), pad_id=1)
    assert without.prefix_ids("auto") == [1]
    with pytest.raises(NeedsError, match="no BOS token; write `auto` or `eos`"):
        without.prefix_ids("bos")


def test_a_beginning_does_get_the_dummy_space(with_dummy_space):
    assert with_dummy_space.encode_continuation("Paris") != with_dummy_space.encode("Paris")
    assert with_dummy_space.encode_continuation(" Paris") == with_dummy_space.encode("Paris")


def test_special_ids_come_from_tokenizer_and_configs(tmp_path):
    directory = make_model("llama", tmp_path, eos_token_id=[1, 7])
    tokenizer = load_tokenizer({"trust_remote_code": False}, Resource(path=directory))
    assert (tokenizer.prefix_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 1)
    assert tokenizer.stop_ids == {1, 7}


def test_without_bos_the_end_of_text_stands_before_every_text(tmp_path):
    directory = make_model("gpt2", tmp_path, bos_token_id=None)
    make_tokenizer().save_pretrained(directory)
    config = directory / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"bos_token": "<bos>",', ""))
    assert load_tokenizer({"trust_remote_code": False}, Resource(path=directory)).prefix_id == 1


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    directory = make_model("gpt2", tmp_path, eos_token_id=None)
    config = directory / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<|endoftext|>",', ""))
    with pytest.raises(NeedsError, match="no end-of-text token; add `eos_token`"):
        load_tokenizer({"trust_remote_code": False}, Resource(path=directory))
