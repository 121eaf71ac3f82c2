from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from paretune.data.safety import Filter, holds_words, labels_of, load_classifier, load_filter, read_words, unsafe_probabilities
from paretune.errors import DataError, NeedsError
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage_configs import ClassifierConfig, SafetyConfig
from tests.tiny import make_model

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "kind", "cruel", "word", "another"]


def words_file(folder: Path, text: str) -> Path:
    file = folder / "words.txt"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("entry", "text", "expected"),
    [
        ("ass", "such an ASS!", True),
        ("ass", "a class, assume, ass_1", False),
        ("Stra\u00dfe", "die STRASSE entlang", True),
        ("caf\u00e9", "cafe\u0301s, cafe\u0301", True),
        ("caf\u00e9", "cafe\u0301s", False),
        ("self harm", "Self  harm", True),
        ("self harm", "self the harm", False),
        ("f*ck", "what the f*ck", True),
        ("c++", "in c++ and c", True),
        ("c++", "in c+ and c", False),
        ("\u574f\u8bdd", "\u4ed6\u8bf4\u574f\u8bdd\u4e86", True),
        ("\u0915", "\u0915\u093e", False),
        ("\u0915\u093e", "\u0930\u093e\u092e \u0915\u093e \u0918\u0930", True),
    ],
)
def test_words_are_whole_in_any_case_and_script(tmp_path: Path, entry: str, text: str, expected: bool) -> None:
    assert holds_words(text, read_words(words_file(tmp_path, f"# a comment\n\n{entry}\nanything\n"))) is expected


def test_a_list_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"words.txt` holds no words; write one word"):
        read_words(words_file(tmp_path, "# only\n\n  \n"))
    (tmp_path / "words.txt").write_bytes(b"b\xe9te\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_words(tmp_path / "words.txt")


@pytest.fixture(scope="module")
def classifier_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights over eight words that reads eight tokens."""
    directory = tmp_path_factory.mktemp("classifier")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=1.0,
        max_position_embeddings=8, id2label={0: "fine", 1: "rude", 2: "toxic"},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def judged(threshold: float, *unsafe: str) -> ClassifierConfig:
    return ClassifierConfig(unsafe=unsafe, threshold=threshold, digest="0")


def expected(directory: Path, ids: list[int]) -> torch.Tensor:
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return model(torch.tensor([[1, *ids, 2]])).logits[0]


def test_probabilities_are_those_of_the_model_whatever_the_batch(classifier_directory: Path) -> None:
    config = judged(0.5, "toxic", "rude")
    classifier = load_classifier(config, Resource(path=classifier_directory), "cpu")
    found = unsafe_probabilities(classifier, ["kind word", "cruel", "", "cruel word another kind"])
    for text, ids in ((0, [4, 6]), (1, [5]), (3, [5, 6, 7, 4])):
        share = expected(classifier_directory, ids).softmax(0)[1:].sum().item()
        assert found[text] == pytest.approx(share, abs=1e-5)
    assert found[2] == 0


def test_a_long_text_is_as_unsafe_as_its_worst_part(classifier_directory: Path) -> None:
    classifier = load_classifier(judged(0.5, "toxic"), Resource(path=classifier_directory), "cpu")
    text = "kind kind kind kind kind kind cruel cruel cruel"
    parts = [expected(classifier_directory, ids).softmax(0)[2].item() for ids in ([4] * 6, [5] * 3)]
    assert unsafe_probabilities(classifier, [text])[0] == pytest.approx(max(parts), abs=1e-5)


def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each(classifier_directory: Path) -> None:
    classifier = load_classifier(judged(0.5, "toxic", "rude"), Resource(path=classifier_directory), "cpu")
    classifier.model.config.problem_type = "multi_label_classification"
    largest = expected(classifier_directory, [5]).sigmoid()[1:].max().item()
    assert unsafe_probabilities(classifier, ["cruel"])[0] == pytest.approx(largest, abs=1e-5)


def test_a_filter_is_its_words_or_its_classifier(tmp_path: Path, classifier_directory: Path) -> None:
    texts = ["kind word", "cruel", "another"]
    classifier = load_classifier(judged(1.0, "toxic"), Resource(path=classifier_directory), "cpu")
    shares = unsafe_probabilities(classifier, texts)
    middle = sorted(shares)[1]
    classifier_config = judged(middle, "toxic")
    config = SafetyConfig(words="0", classifier=classifier_config, device="cpu")
    words = words_file(tmp_path, "word\n")
    places = {"safety.words": Resource(path=words), "safety.classifier": Resource(path=classifier_directory)}
    flags = load_filter(config, places).flags(texts)
    assert flags == ["word" in text or p >= middle for text, p in zip(texts, shares, strict=True)]
    assert Filter({}, None).flags(texts) == [False] * 3


def test_a_causal_model_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="is no trained classifier, its weights lack"):
        load_classifier(judged(0.5, "LABEL_1"), Resource(path=make_model("llama", tmp_path)), "cpu")


def test_labels_are_in_the_order_of_the_outputs() -> None:
    assert labels_of({"id2label": {"10": "k", "2": "c", "0": "a"}}) == ["a", "c", "k"]
    assert labels_of({}) == ["LABEL_0", "LABEL_1"]
