"""Tiny GGUF files, written by hand with `gguf` from the models of `tests.tiny`."""

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from transformers import AutoModelForCausalLM

_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_TYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}


def write_gguf(model_directory: Path, file: Path, kind: str) -> dict[str, torch.Tensor]:
    """Write the Llama or GPT-2 in a directory as GGUF of type `kind`; returns the weights that the file stands for, by the
    names of transformers."""
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    config, architecture = model.config, model.config.model_type
    heads, names = config.num_attention_heads, _LLAMA if architecture == "llama" else _GPT2
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads)
    if architecture == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
    else:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    tensor_type, file_type = _TYPES[kind]
    writer.add_file_type(file_type)
    _add_tokenizer(writer, json.loads((model_directory / "tokenizer.json").read_text()), config)
    meant = {}
    for name, weight in model.state_dict().items():
        *path, leaf = name.split(".")
        block = next((part for part in path if part.isdigit()), None)
        module = ".".join(path[path.index(block) + 1 :] if block else path)
        is_matrix = weight.ndim == 2 and module != "transformer.wpe"
        turned = architecture == "gpt2" and block is not None and is_matrix
        values = (weight.t() if turned else weight).contiguous().numpy()
        kept = quants.quantize(values, tensor_type if is_matrix else GGMLQuantizationType.F32)
        read = torch.from_numpy(quants.dequantize(kept, tensor_type if is_matrix else GGMLQuantizationType.F32).copy())
        meant[name] = read.t() if turned else read
        if module in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp has its rotary pairs side by side
            count = heads if "q_proj" in module else config.num_key_value_heads
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            kept = quants.quantize(np.ascontiguousarray(values), tensor_type)
        target = f"blk.{block}.{names[module]}.{leaf}" if block else f"{names[module]}.{leaf}"
        writer.add_tensor(target, kept, raw_dtype=tensor_type if is_matrix else GGMLQuantizationType.F32)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return meant


def _add_tokenizer(writer: GGUFWriter, tokenizer: dict, config: object) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda pair: pair[1])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
