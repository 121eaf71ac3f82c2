"""Real tiny causal language models on disk, one for each row of a table of architectures.

Random weights, but not transformers' own initialisation: its standard deviation of 0.02 leaves a block's output so
small that a wrong block, mask or scale moves the logits by 1e-2 and looks like rounding. Here every matrix keeps the
size of its input, every bias and norm weight differs from its default, and dropout is off. Windows are 8 tokens, so
that a sequence of 20 is longer than them. The tokenizer is a byte-level BPE: it gives every text back.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

NUM_BLOCKS = 4
SLIDING_WINDOW = 8
VOCABULARY_SIZE = 300
MAX_LENGTH = 512

_GPT2 = {"n_layer": NUM_BLOCKS, "n_embd": 32, "n_head": 4, "n_positions": MAX_LENGTH} | dict.fromkeys(
    ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)
_MODERN = {
    "num_hidden_layers": NUM_BLOCKS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
}
_GROUPED = _MODERN | {"num_key_value_heads": 2, "head_dim": 8}
_WINDOW = {"sliding_window": SLIDING_WINDOW}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"} | _GPT2,
    "gpt2-inverse-scaling": {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True} | _GPT2,
    "gpt-neox": {"model_type": "gpt_neox"} | _MODERN,
    "llama": {"model_type": "llama"} | _GROUPED,
    "mistral": {"model_type": "mistral"} | _GROUPED | _WINDOW,
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2} | _GROUPED | _WINDOW,
    "qwen3": {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 2} | _GROUPED | _WINDOW,
    "gemma": {"model_type": "gemma"} | _GROUPED,
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 8} | _GROUPED | _WINDOW,
    "gemma3": {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window_pattern": 3} | _GROUPED | _WINDOW,
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2} | _MODERN | _WINDOW,
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2, "use_sliding_window": True} | _GROUPED | _WINDOW,
    "opt": {
        "model_type": "opt",
        "num_hidden_layers": NUM_BLOCKS,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
    },
}
"""The keyword arguments of each architecture's config; `sliding` layers alternate with full ones where it has both."""

_ROUTED = _GROUPED | {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4} | _ROUTED,
    "granite-moe": {"model_type": "granitemoe", "num_local_experts": 4} | _ROUTED,
    "qwen2-moe": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 24,
    }
    | _ROUTED,
    "olmoe": {"model_type": "olmoe", "num_experts": 4} | _ROUTED,
    "jetmoe": {"model_type": "jetmoe", "num_local_experts": 4, "num_key_value_heads": 2, "kv_channels": 8} | _MODERN,
}
"""Mixtures of experts: fused experts and a router, with or without a shared expert and an attention of experts."""


def make_model(architecture: str, directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write config, safetensors and tokenizer of a tiny model into `directory` (made if missing) and return it.

    `overrides` are fields of the architecture's config; the same arguments write the same weights.
    """
    tokenizer = make_tokenizer()
    fields = {
        "vocab_size": VOCABULARY_SIZE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    dtype = getattr(torch, str(overrides.pop("dtype", "float32")))
    config = AutoConfig.for_model(**(fields | (ARCHITECTURES | MIXTURES)[architecture] | overrides))
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed=seed)
    model.to(dtype)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def randomise(model: PreTrainedModel, *, seed: int = 0) -> None:
    """Draw every weight anew: matrices that keep the size of their input, vectors around their default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.ndim >= 2:
                parameter.copy_(noise * min(parameter.shape) ** -0.5)
            else:
                parameter.add_(0.1 * noise)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY_SIZE` tokens: `<bos>` is id 0, `<|endoftext|>` id 1; it adds neither by itself.

    No padding token. The end has the name that Qwen2 gives it, for transformers loads that architecture with a
    tokenizer class of its own, which would add its name as one more token, beyond the embedding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<bos>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY_SIZE}")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|endoftext|>")


_TEXT = [
    "The train to the harbour leaves at seven, and the driver waits for nobody.",
    "A new engine was shown to the press; the older one stays in production for another year.",
    "She read the letter twice, folded it, and put it under the lamp where the others were lying.",
    "Question: which of these is a metal? Answer: copper. Question: which of these is a gas? Answer: argon.",
]
