"""BERTScore against the authors' package, and by hand where the package is not installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from paretune.errors import NeedsError
from paretune.evaluate.bert_score import bert_score, load_encoder
from paretune.evaluate.tasks import evaluate_tasks
from paretune.pipeline.resources import Resource
from tests.evaluate.stages import make_context, read_scores, write_task_tokens
from tests.tiny import make_model, randomise

WORDS = [
    "the",
    "train",
    "to",
    "harbour",
    "leaves",
    "at",
    "seven",
    "and",
    "driver",
    "waits",
    "for",
    "nobody",
    "lamp",
    "copper",
    "a",
    "new",
    "engine",
    "was",
    "shown",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PAIRS = [
    ("The train leaves at seven.", "the driver waits for nobody"),
    ("a lamp", "a new engine was shown to the driver and to the train at seven"),
    ("copper", "copper"),
    ("", "a lamp"),
    ("harbour harbour harbour", "unknown words alone"),
]
LAYERS = 3


@pytest.fixture(scope="module")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tiny BERT with random weights."""
    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=12,
    ).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    model = BertModel(config)
    randomise(model)
    model.save_pretrained(directory)
    return directory


def test_scores_are_those_of_the_package(encoder_directory: Path) -> None:
    package = pytest.importorskip("bert_score")
    texts, references = [list(side) for side in zip(*PAIRS, strict=True)]
    for layer in (1, LAYERS):
        found = bert_score(load_encoder({"layer": layer}, Resource(path=encoder_directory), "cpu"), texts, references)
        # Without the empty text: the package's way to write special tokens is gone from transformers.
        filled = [n for n, text in enumerate(texts) if text]
        sides = [[side[n] for n in filled] for side in (texts, references)]
        expected = package.score(
            *sides, model_type=str(encoder_directory), num_layers=layer, device="cpu", use_fast_tokenizer=True
        )
        for name, values in zip(("precision", "recall", "f1"), expected, strict=True):
            assert [found[n][f"bert_score_{name}"] for n in filled] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_score_by_hand(encoder_directory: Path) -> None:
    encoder = load_encoder({"layer": 2}, Resource(path=encoder_directory), "cpu")
    with torch.no_grad():
        one, other = (
            torch.nn.functional.normalize(
                encoder.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0], dim=-1
            )
            for ids in ([2, 16, 17, 3], [2, 16, 16 + 2, 18, 3])
        )
    similarity = (one @ other.T).double()
    precision, recall = similarity.max(1).values[1:-1].mean().item(), similarity.max(0).values[1:-1].mean().item()
    words = [*SPECIAL, *WORDS]
    found = bert_score(encoder, [" ".join(words[n] for n in (16, 17))], [" ".join(words[n] for n in (16, 18, 18))])
    assert found[0]["bert_score_precision"] == pytest.approx(precision, abs=1e-5)
    assert found[0]["bert_score_f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


def test_the_same_text_is_1_and_an_empty_one_0(encoder_directory: Path) -> None:
    found = bert_score(load_encoder({"layer": 2}, Resource(path=encoder_directory), "cpu"), *zip(*PAIRS, strict=True))
    assert found[2]["bert_score_f1"] == pytest.approx(1)
    assert set(found[3].values()) == {0.0}


def test_a_causal_model_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match=r"no \[CLS\], \[SEP\] or padding token"):
        load_encoder({"layer": 1}, Resource(path=make_model("llama", tmp_path)), "cpu")


def test_answers_of_a_task_are_scored_with_the_encoder(tmp_path: Path, encoder_directory: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    rows = [("test", "d", "The train leaves.", f"\nT{n}:", " copper") for n in range(2)]
    tokens = write_task_tokens(base, rows, tmp_path / "tokens")
    scoring: dict[str, Any] = {"max_new_tokens": 4, "stop": []}
    tasks = {"t0": scoring | {"score": ["bert_score", "contains"]}, "t1": scoring | {"score": ["contains"]}}
    context = make_context(base, {"tasks": tasks, "encoder": {"layer": 2}}, tmp_path / "draft", inputs={"tokens": tokens})
    context.resources["encoder"] = Resource(path=encoder_directory)
    evaluate_tasks(context)
    scores = read_scores(tmp_path / "draft")
    written = [json.loads(line) for line in (tmp_path / "draft" / "generations.jsonl").read_text().splitlines()]
    of_bert = scores[scores.metric == "bert_score_f1"]
    assert of_bert.task.tolist() == ["t0"]
    expected = bert_score(
        load_encoder({"layer": 2}, Resource(path=encoder_directory), "cpu"), [written[0]["text"]], [" copper"]
    )
    assert of_bert.value.tolist() == pytest.approx([expected[0]["bert_score_f1"]])
