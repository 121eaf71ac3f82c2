"""A sequence classifier that the user names, and how sure it is that a text is unsafe. It computes in float32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from paretune.data.safety import labels_of
from paretune.data.tokenizer import pretrained_arguments, usable_positions
from paretune.errors import NeedsError

_BATCH = 32
"""Parts of like length in one pass."""


@dataclass(frozen=True)
class Classifier:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    unsafe: tuple[int, ...]
    """Indices of the labels that stand for unsafe text."""
    threshold: float
    max_tokens: int
    """Of a part; longer texts are read in several."""


def load_classifier(config: Mapping[str, Any], resource: str, device: str) -> Classifier:
    """The classifier at `resource`, a directory or `hub:NAME@COMMIT`; NeedsError for one that is none, or lacks weights."""
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
    unsafe = tuple(labels.index(label) for label in config["unsafe"])
    longest = min(tokenizer.model_max_length, usable_positions(model.config))
    return Classifier(model.to(device).eval(), tokenizer, unsafe, config["threshold"], longest)


def unsafe_probabilities(classifier: Classifier, texts: Sequence[str]) -> list[float]:
    """Probability of the unsafe labels of each text; of one longer than the model reads, that of its worst part."""
    parts, owners = _parts(classifier, texts)
    found = [0.0] * len(texts)
    order = sorted(range(len(parts)), key=lambda n: len(parts[n]))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        padded = classifier.tokenizer.pad({"input_ids": [parts[n] for n in chosen]}, return_tensors="pt")
        with torch.no_grad():
            logits = classifier.model(**padded.to(classifier.model.device)).logits.float()
        for n, p in zip(chosen, _probabilities(classifier, logits).tolist(), strict=True):
            found[owners[n]] = max(found[owners[n]], p)
    return found


def _parts(classifier: Classifier, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """The ids of every part, special tokens around each, and the text that it is of; nothing of an empty text."""
    filled = [n for n, text in enumerate(texts) if text.strip()]
    if not filled:
        return [], []
    encoded = classifier.tokenizer(
        [texts[n] for n in filled], truncation=True, max_length=classifier.max_tokens, return_overflowing_tokens=True
    )
    return encoded["input_ids"], [filled[n] for n in encoded["overflow_to_sample_mapping"]]


def _probabilities(classifier: Classifier, logits: torch.Tensor) -> torch.Tensor:
    """[N, labels] to [N]: labels that do not exclude each other have a sigmoid each, others share a softmax."""
    if classifier.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return logits.sigmoid()[:, classifier.unsafe].amax(dim=1)
    return logits.softmax(dim=1)[:, classifier.unsafe].sum(dim=1)
