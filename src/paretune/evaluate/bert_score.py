"""BERTScore (Zhang et al. 2020, https://arxiv.org/abs/1904.09675): texts compared by an encoder's vectors of their tokens.

Each token of the one text is matched with the most similar token of the other, by the cosine of the vectors after one layer:
precision is the mean over the answer's tokens, recall over the reference's. As in the authors' package bert-score without
weights by frequency and without rescaling: the tokens that begin and end a text are matched with, and not counted.
The encoder computes in float32 whatever the study's precision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from paretune.data.tokenizer import pretrained_arguments, usable_positions
from paretune.errors import NeedsError
from paretune.pipeline.resources import Resource

_BATCH = 32
"""Texts of like length in one pass."""


@dataclass(frozen=True)
class Encoder:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int
    """The vectors are those after it."""
    max_tokens: int
    """Longer texts are cut at their end, as the package cuts them."""
    lead: str
    """What stands before a text: a space for RoBERTa, which tells the first word of a text from all others without it."""


@dataclass(frozen=True)
class _Vectors:
    """A text as vectors of length 1, [T, W]; `counted` [T] is False for the tokens that begin and end it."""

    unit_TW: torch.Tensor
    counted_T: torch.Tensor


def load_encoder(config: Mapping[str, Any], resource: Resource, device: torch.device) -> Encoder:
    """The encoder at `resource`, and `layer` of `config`; NeedsError for another model."""
    name, arguments = pretrained_arguments({"trust_remote_code": False}, resource)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
        model = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **arguments)
    except (OSError, ValueError) as error:
        raise NeedsError(f"{name}: encoder cannot be loaded: {str(error).splitlines()[0]}") from None
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
        raise NeedsError(
            f"{name}: its tokenizer has no [CLS], [SEP] or padding token, so it is no encoder; take RoBERTa, or BERT"
        )
    longest = min(tokenizer.model_max_length, usable_positions(model.config))
    lead = " " if model.config.model_type == "roberta" else ""
    return Encoder(model.to(device).eval(), tokenizer, config["layer"], longest, lead)


def bert_score(
    encoder: Encoder, texts: Sequence[str], references: Sequence[str], emit: Callable[..., None] = lambda **_: None
) -> list[dict[str, float]]:
    """`bert_score_precision`, `_recall` and `_f1` of each text against its reference; 0 where one of them is empty."""
    vectors = _encode(encoder, [*texts, *references], emit)
    scores = []
    for text, reference in ((vectors[t.strip()], vectors[r.strip()]) for t, r in zip(texts, references, strict=True)):
        precision = recall = 0.0
        if text.counted_T.any() and reference.counted_T.any():
            similarity_TR = text.unit_TW @ reference.unit_TW.T
            precision = similarity_TR.max(dim=1).values[text.counted_T].mean().item()
            recall = similarity_TR.max(dim=0).values[reference.counted_T].mean().item()
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores.append({"bert_score_precision": precision, "bert_score_recall": recall, "bert_score_f1": f1})
    return scores


def _encode(encoder: Encoder, texts: Sequence[str], emit: Callable[..., None]) -> dict[str, _Vectors]:
    """Each different text once, those of like length together."""
    distinct = sorted({text.strip() for text in texts}, key=lambda text: (len(text), text))
    vectors: dict[str, _Vectors] = {}
    for start in range(0, len(distinct), _BATCH):
        batch = distinct[start : start + _BATCH]
        emit(done=start, total=len(distinct), part="bert_score")
        encoded = encoder.tokenizer(
            [encoder.lead + text if text else text for text in batch],
            padding=True,
            truncation=True,
            max_length=encoder.max_tokens,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(encoder.model.device)
        with torch.no_grad():
            states = encoder.model(**encoded, output_hidden_states=True).hidden_states[encoder.layer].float()
        for text, ids_T, mask_T, state_TW in zip(batch, encoded["input_ids"], encoded["attention_mask"], states, strict=True):
            ids_T, state_TW = ids_T[mask_T.bool()], state_TW[mask_T.bool()]
            special = torch.tensor([encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id], device=ids_T.device)
            counted_T = ~torch.isin(ids_T, special)
            vectors[text] = _Vectors(torch.nn.functional.normalize(state_TW, dim=-1).cpu(), counted_T.cpu())
    return vectors
