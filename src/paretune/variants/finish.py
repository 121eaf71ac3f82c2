"""Finish the directory of a model that was made smaller."""

from typing import Any

import torch
from transformers import PreTrainedModel

from paretune.data.tokenizer import TextTokenizer
from paretune.model.adapters import count_parameters
from paretune.model.load import cast
from paretune.pipeline.stage import StageContext
from paretune.variants.proof import SurgeryProof


def leave(
    context: StageContext, model: PreTrainedModel, tokenizer: TextTokenizer | None, before: int, proof: SurgeryProof
) -> dict[str, Any]:
    """Finish the directory of a model that had `before` parameters and was saved and proven, with the tokenizer unless it is
    there; what the record says of both models."""
    if ships := context.config.get("ships"):
        cast(model, getattr(torch, ships), only_if_exact=True)  # so that what was shown holds of it
        model.save_pretrained(context.draft)
    if tokenizer is not None:
        tokenizer.hf.save_pretrained(context.draft)
    after, _ = count_parameters(model)
    return {
        "removed_parameters": before - after,
        "parameters": after,
        "largest_difference": max(proof.identity, proof.cache, proof.reload, proof.reload_cache),
    }
