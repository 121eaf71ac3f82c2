"""Which texts are unsafe by a study's `safety:`, its list of words, its classifier, or both; for data and for generations.

Words are found as whole words by their tokens: runs of letters, digits and marks in any script, single characters where a
script writes no spaces, and single signs; so `f*ck` and `c++` can stand in a list, and `ass` is not found in `class`. The
classifier is one for sequences that the user names; it computes in float32, and torch is imported where it is used.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from paretune.errors import DataError, NeedsError
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage_configs import ClassifierConfig, SafetyConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = regex.compile(rf"[{_ALONE}]|[\w--[{_ALONE}]]+|[^\w\s]", regex.V1)

_BATCH = 32
"""Parts of like length in one pass."""

Words = Mapping[str, Sequence[tuple[str, ...]]]
"""By its first token, each entry of a list as its tokens."""


@dataclass(frozen=True)
class Classifier:
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    unsafe: tuple[int, ...]
    """Indices of the labels that stand for unsafe text."""
    threshold: float
    max_tokens: int
    """Of a part; longer texts are read in several."""


@dataclass(frozen=True)
class Filter:
    """What counts as unsafe: either may be missing."""

    words: Words
    classifier: Classifier | None

    def flags(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is unsafe."""
        unsafe = [holds_words(text, self.words) for text in texts]
        if self.classifier is not None:
            rest = [n for n, flag in enumerate(unsafe) if not flag]
            for n, p in zip(rest, unsafe_probabilities(self.classifier, [texts[n] for n in rest]), strict=True):
                unsafe[n] = p >= self.classifier.threshold
        return unsafe


def load_filter(config: SafetyConfig, resources: Mapping[str, Resource]) -> Filter:
    """The filter of a stage: `words` and `classifier` of `config`, at the resources `safety.words` and `safety.classifier`."""
    words = read_words(Path(str(resources["safety.words"]))) if config.words is not None else {}
    if config.classifier is None:
        return Filter(words, None)
    return Filter(words, load_classifier(config.classifier, resources["safety.classifier"], config.device or "cpu"))


def read_words(file: Path) -> Words:
    """The entries of a list, one a line; DataError for a file that is no UTF-8 or holds none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"`{file}` is not UTF-8 (byte {error.start}); save it as UTF-8, one word or phrase a line") from None
    entries = {_tokens(line) for line in lines if not line.lstrip().startswith("#")} - {()}
    if not entries:
        raise DataError(f"`{file}` holds no words; write one word or phrase a line, or leave `words` out")
    words: dict[str, list[tuple[str, ...]]] = {}
    for entry in sorted(entries):
        words.setdefault(entry[0], []).append(entry)
    return words


def holds_words(text: str, words: Words) -> bool:
    """Whether an entry of `words` stands in `text`, as whole words in any case."""
    if not words:
        return False
    tokens = _tokens(text)
    starts = (n for n, token in enumerate(tokens) if token in words)
    return any(tokens[n : n + len(entry)] == entry for n in starts for entry in words[tokens[n]])


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """The labels of a classifier by its config.json, in the order of its outputs; transformers' names where it has none."""
    named = config.get("id2label") or {n: f"LABEL_{n}" for n in range(config.get("num_labels", 2))}
    return [str(named[key]) for key in sorted(named, key=int)]


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())))


def load_classifier(config: ClassifierConfig, resource: Resource, device: str) -> Classifier:
    """The classifier at `resource`; NeedsError for one that is none, or lacks weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from paretune.data.tokenizer import pretrained_arguments, usable_positions

    name, arguments = pretrained_arguments({"trust_remote_code": False}, resource)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **arguments
        )
    except (OSError, ValueError) as error:
        raise NeedsError(f"{name}: the classifier cannot be loaded: {str(error).splitlines()[0]}") from None
    if info["missing_keys"]:
        missing = min(info["missing_keys"])
        raise NeedsError(f"{name}: is no trained classifier, its weights lack `{missing}`; name a model for classification")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    labels = labels_of(model.config.to_dict())
    unsafe = tuple(labels.index(label) for label in config.unsafe)
    longest = min(tokenizer.model_max_length, usable_positions(model.config))
    return Classifier(model.to(device).eval(), tokenizer, unsafe, config.threshold, longest)


def unsafe_probabilities(classifier: Classifier, texts: Sequence[str]) -> list[float]:
    """Probability of the unsafe labels of each text, 0 of an empty one; of one longer than the model reads, that of its
    worst part.

    Labels that do not exclude each other have a sigmoid each, of which the largest counts; others share a softmax.
    """
    import torch

    probabilities = [0.0] * len(texts)
    filled = [n for n, text in enumerate(texts) if text.strip()]
    if not filled:
        return probabilities
    encoded = classifier.tokenizer(
        [texts[n] for n in filled], truncation=True, max_length=classifier.max_tokens, return_overflowing_tokens=True
    )
    parts, owners = encoded["input_ids"], [filled[n] for n in encoded["overflow_to_sample_mapping"]]
    order = sorted(range(len(parts)), key=lambda n: len(parts[n]))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        padded = classifier.tokenizer.pad({"input_ids": [parts[n] for n in chosen]}, return_tensors="pt")
        with torch.no_grad():
            logits_NL = classifier.model(**padded.to(classifier.model.device)).logits.float()
        if classifier.model.config.problem_type == "multi_label_classification" or logits_NL.shape[1] == 1:
            unsafe_N = logits_NL.sigmoid()[:, classifier.unsafe].amax(dim=1)
        else:
            unsafe_N = logits_NL.softmax(dim=1)[:, classifier.unsafe].sum(dim=1)
        for n, p in zip(chosen, unsafe_N.tolist(), strict=True):
            probabilities[owners[n]] = max(probabilities[owners[n]], p)
    return probabilities
