"""What config.json of a model says. The names of its fields differ between architectures, and are known here alone."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError

_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = re.compile(r"(attention|query)_heads$|^n_heads?$")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MLP = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_HEAD_DIM = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "granite"))
"""Architectures that take a `head_dim`, whether their config.json has it or not."""
_DIVIDED = frozenset(("llama", "gemma2", "gemma3_text"))
"""Of these, those whose class refuses a number of heads that does not divide the width of the hidden states all the same."""
_NORMED_MLPS = frozenset(
    ("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "olmo2", "olmo3", "glm4", "exaone4", "afmoe", "flex_olmo")
)
"""Architectures that norm what an MLP writes before it is added to the hidden states."""
DEQUANTIZED_FROM = "paretune_dequantized_from"
"""Field of our own: the format that the weights were in before they were made whole, like `GGUF Q4_1`."""
REWRITTEN = "paretune_rewritten_tokenizer"
"""Field of our own, of a plan alone: that a method leaves another tokenizer."""
_POSITIONS = ("max_position_embeddings", "n_positions")


def read_config(file: Path, where: str) -> dict[str, Any]:
    """config.json of a model; NeedsError, beginning with `where`, where it is missing or damaged."""
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NeedsError(f"{where}: no config.json in `{file.parent}`; name a directory in Hugging Face format") from None
    except OSError as error:
        raise NeedsError(f"{where}: `{file}` cannot be read ({error.strerror}); check its permissions") from None
    except ValueError as error:
        raise NeedsError(f"{where}: `{file}` cannot be read as JSON ({error}); copy the model again") from None
    if not isinstance(config, dict):
        raise NeedsError(f"{where}: `{file}` holds no configuration, but a {type(config).__name__}; copy the model again")
    return config


def check_writes_text(config: Mapping[str, Any], where: str) -> None:
    """NeedsError, beginning with `where`, for the config of another kind of model than a causal LM."""
    names = architectures(config)
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        kind = ", ".join(names) or f"{config.get('model_type', 'unknown')} (no `architectures`)"
        raise NeedsError(
            f"{where}: `{kind}` is no causal language model; Paretune trains and measures models that write text from left "
            "to right (architectures ending in ForCausalLM or LMHeadModel), not encoders or extractive models"
        )
    text = config.get("text_config", config)
    heads = any(_HEADS.search(key) for key in text) or ("num_heads" in text and "attention_types" in text)
    if num_blocks(config) is not None and width(text) and not heads:
        raise NeedsError(
            f"{where}: `{names[0]}` has no attention (config.json names no heads): it reads a text as a recurrence, as Mamba "
            "and RWKV do, and texts cannot be kept apart in it; name a base with attention"
        )


def check_whole(path: Path, where: str) -> None:
    """NeedsError, beginning with `where`, for what is no model in Hugging Face format and looks like one: an adapter, a folder
    of GGUF files."""
    adapter = path / "adapter_config.json"
    if os.path.isfile(adapter):  # False, too, where that cannot be told
        try:
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (ValueError, AttributeError):
            base = None
        raise NeedsError(
            f"{where}: `{path}` holds an adapter (adapter_config.json), not a whole model; name the directory of its base"
            f"{f', `{base}`' if base else ''}, or merge the adapter into it and save that (`merge_and_unload` of PEFT)"
        )
    if files := [] if (path / "config.json").exists() else sorted(path.glob("*.gguf")):
        raise NeedsError(f"{where}: `{path}` holds GGUF files and no config.json; name one of the files, `{files[0]}`")


def quantized_by(config: Mapping[str, Any]) -> str | None:
    """How the weights are quantized, like `bitsandbytes`; None for whole ones."""
    quantized = config.get("quantization_config")
    if not quantized:
        return None
    return str(quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized)


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes that the weights are for."""
    return [str(name) for name in config.get("architectures") or []]


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Longest sequence that the model reaches; None where it names no limit."""
    limits = (config.get(name) for name in _POSITIONS)
    return next((int(limit) for limit in limits if limit), None)


def num_blocks(config: Mapping[str, Any]) -> int | None:
    """Transformer blocks; None where they stand under no name that is known."""
    return _count(config, _BLOCKS)


def with_num_blocks(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The config of the same model with `count` blocks."""
    if "text_config" in config:
        return {**config, "text_config": with_num_blocks(config["text_config"], count)}
    return {**config, **{name: count for name in _BLOCKS if name in config}}


def with_fields(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with some fields of its decoder set."""
    if "text_config" in config:
        return {**config, "text_config": {**config["text_config"], **fields}}
    return {**config, **fields}


def num_experts(config: Mapping[str, Any]) -> int | None:
    """Routed experts of a layer; None for a dense model."""
    return _count(config, _EXPERTS)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding: an id from there on cannot be read; None where it is not known."""
    return _count(config, ("vocab_size",))


def dtype(config: Mapping[str, Any]) -> str | None:
    """Number format of the weights, as torch calls it; None where it names none."""
    name = str(config.get("dtype") or config.get("torch_dtype"))
    return name if name in ("float32", "bfloat16", "float16") else None


def width(config: Mapping[str, Any]) -> int:
    """Of the hidden states; 0 where it is not known."""
    return int(config.get("hidden_size") or config.get("n_embd") or 0)


def num_heads(config: Mapping[str, Any]) -> int:
    """Of attention; 0 where it is not known."""
    return int(config.get("num_attention_heads") or config.get("n_head") or 0)


def mlp_width(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The field that says how wide the MLP of every block is, and its value; None where none does."""
    text = config.get("text_config", config)
    name = next((name for name in _MLP if name in text), None)
    value = text.get(name) if name else None
    if name == "n_inner" and value is None:
        value = 4 * width(text)
    return (str(name), value) if isinstance(value, int) and num_experts(config) is None else None


def adds_mlps_as_written(config: Mapping[str, Any]) -> bool:
    """Whether what an MLP writes is added to the hidden states as it is, neither normed nor scaled; also of an architecture
    that is not known here."""
    text = config.get("text_config", config)
    return text.get("model_type") not in _NORMED_MLPS and text.get("residual_multiplier", 1) == 1


def head_counts(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and channels of a head; zeros where they are not known."""
    text = config.get("text_config", config)
    heads = num_heads(text)
    size = text.get("head_dim") or (width(text) // heads if heads else 0)
    return heads, int(text.get("num_key_value_heads") or heads), int(size)


def takes_heads(config: Mapping[str, Any], heads: int | None = None) -> bool:
    """Whether the architecture takes so many heads (without a number: any other) beside the width of the hidden states."""
    text = config.get("text_config", config)
    kind = text.get("model_type")
    divides = heads is None or kind not in _DIVIDED or width(text) % heads == 0
    return divides and (bool(text.get("head_dim")) or kind in _HEAD_DIM)


def why_no_smaller(tokenizer: Mapping[str, Any]) -> str:
    """Why a tokenizer, by its tokenizer.json, cannot lose tokens and write all else as before; empty where it can."""
    model = tokenizer["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind not in ("BPE", "Unigram"):
        return f"it is of the kind {kind}, and only byte pairs and unigrams are sure to write a text as before without others"
    if kind == "BPE" and (model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        return "its byte pairs have a dropout, or marks for the parts of words"
    return ""


def _count(config: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """Of the decoder, by the first of `names` under which a whole number stands."""
    counts = map(config.get("text_config", config).get, names)
    return next((count for count in counts if isinstance(count, int)), None)
