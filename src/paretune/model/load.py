"""Load a base or an artifact: weights from safetensors, adapters merged, nothing left at random."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from paretune.data.tokenizer import TextTokenizer, load_tokenizer, pretrained_arguments
from paretune.errors import NeedsError, StageError
from paretune.model.adapters import untie_adapted
from paretune.model.bits import bitsandbytes, settle_nf4
from paretune.model.blocks import remove_blocks
from paretune.model.exits import attach, serve
from paretune.model.forward import PackedModel, num_positions, packed_model
from paretune.model.fused import fuse
from paretune.model.int8 import INT8, load_int8
from paretune.model.llama_cpp import LlamaCpp
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact, StageContext

GGUF = "model.gguf"
"""The weights inside an artifact that is run by llama.cpp."""
ADAPTER = "adapter"
"""Directory of a PEFT adapter inside an artifact."""
DEPTH = "depth.json"
"""What of its parent's depth an artifact runs: `skip`, blocks that are left out, or `exits`, the arguments of `attach`. An
artifact without it and without an adapter is itself a model directory."""


@dataclass(frozen=True)
class LoadedModel:
    model: PreTrainedModel | LlamaCpp
    """In evaluation mode, on `device`; or a file in the runtime that it ships for, which writes and scores alike."""
    tokenizer: TextTokenizer
    device: torch.device
    max_positions: int | None
    """Longest sequence that the positions of the model reach; None where nothing limits it."""

    @cached_property
    def packed(self) -> PackedModel | LlamaCpp:
        """The model for token trees. What is shown about it is shown once, so the model must stay as it is."""
        return self.model if isinstance(self.model, LlamaCpp) else packed_model(self.model)


def load_model(
    context: StageContext, dtype: torch.dtype | None = None, *, fused: bool = False, served: bool = False
) -> LoadedModel:
    """The model that a stage is given: its input `model`, or the base.

    As it ships, in the precision of the stage's config; or as it is, in `dtype`, for what changes it further.
    `fused` is for what is only measured: the same function, computed faster, by modules that are not all transformers' own;
    `served` for what is only timed: by the kernels that whoever runs the model has, though they round otherwise.
    """
    context.emit(done=0, total=1, part="loading the model")
    ships = None if dtype else context.config.get("ships")
    dtype = dtype or getattr(torch, context.config["precision"])
    artifact = context.inputs.get("model")
    base = (context.config["base"], context.resources["base"])
    device = torch.device(context.config.get("device", "cpu"))
    if artifact is not None and (artifact.path / GGUF).is_file():
        running = LlamaCpp(artifact.path / GGUF, AutoConfig.from_pretrained(artifact.path))
        return LoadedModel(running, load_tokenizer(*base, artifact), torch.device("cpu"), num_positions(running))
    if artifact is not None and (artifact.path / INT8).is_file():
        model, ships, device = load_int8(str(artifact.path)), None, torch.device("cpu")
    else:
        # An adapter is merged in float32, and rounded once.
        model = _load(artifact, base, torch.float32 if ships and artifact else dtype).to(device).eval()
    if ships:
        cast(model, getattr(torch, ships))
        cast(model, dtype)
    if getattr(model, "is_quantized", False):
        settle_nf4(model, dtype, served=served)
    if artifact is not None and (exits := _depth(artifact).get("exits")):
        attach(model, tuple(exits["after"]), exits["threshold"], exits["confidence"])
    if served:
        serve(model)
    if fused:
        fuse(model)
    return LoadedModel(model, load_tokenizer(*base, artifact), device, num_positions(model))


def cast(model: PreTrainedModel, dtype: torch.dtype, *, only_if_exact: bool = False) -> None:
    """Round the weights of `model` to `dtype`, but those that transformers keeps in float32; with `only_if_exact` only where
    nothing is lost."""
    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    weights = [p for name, p in model.named_parameters() if not any(part in kept for part in name.split("."))]
    weights = [weight for weight in weights if weight.is_floating_point()]
    if only_if_exact and not all(torch.equal(weight, weight.to(dtype).to(weight.dtype)) for weight in weights):
        return
    for weight in weights:
        weight.data = weight.data.to(dtype)


def load_pretrained(name: str, dtype: torch.dtype, **arguments: Any) -> PreTrainedModel:
    """A causal LM from a directory or the hub; StageError if any of its weights would be left at random."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in words
            **arguments,
        )
    except (OSError, ValueError) as error:
        raise NeedsError(f"{name}: model cannot be loaded: {str(error).splitlines()[0]}") from None
    broken = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if broken:
        raise StageError(
            f"{name}: weights are missing or of another shape than config.json says ({len(broken)}, like `{broken[0]}`); "
            "copy the model again, whole"
        )
    return model


def _load(artifact: Artifact | None, base: tuple[Mapping[str, Any], Resource], dtype: torch.dtype) -> PreTrainedModel:
    if artifact is None:
        name, arguments = pretrained_arguments(*base)
        return load_pretrained(name, dtype, **arguments)
    adapter = artifact.path / ADAPTER
    if depth := _depth(artifact):
        model = _load(artifact.inputs.get("model"), base, dtype)
        if skipped := depth.get("skip"):
            remove_blocks(model, skipped, base_fingerprint=base[0]["digest"])
        return model
    if not adapter.is_dir():
        if "quantization_config" in (artifact.path / "config.json").read_text(encoding="utf-8"):
            bitsandbytes()
        return load_pretrained(str(artifact.path), dtype)
    return merged(_load(artifact.inputs.get("model"), base, dtype), adapter)


def _depth(artifact: Artifact) -> dict[str, Any]:
    file = artifact.path / DEPTH
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """`model` with the PEFT adapter in the directory `adapter` added to its weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        adapted = PeftModel.from_pretrained(model, str(adapter))
    untie_adapted(adapted)
    return adapted.merge_and_unload()
