"""Checks of rows against what config.json, the tokenizer and the headers of a base say: lengths, blocks, modules."""

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError, SpecError
from paretune.pipeline.block_search import num_removed
from paretune.pipeline.config_json import (
    REWRITTEN,
    adds_mlps_as_written,
    architectures,
    head_counts,
    mlp_width,
    num_blocks,
    num_experts,
    num_positions,
    takes_heads,
    why_no_smaller,
    width,
    with_fields,
    with_num_blocks,
)
from paretune.pipeline.lock import LockedBase
from paretune.pipeline.machine import has, way_to
from paretune.pipeline.preflight import Setting, check_files
from paretune.pipeline.resources import count_weights, read_tokenizer, weight_shapes
from paretune.study.base import ticked
from paretune.study.evaluations import Generate, Latency, Tasks
from paretune.study.methods import (
    DistillLogits,
    DistillText,
    ExitEarly,
    Lora,
    PruneBlocks,
    PruneHeads,
    PruneMlp,
    PruneVocabulary,
    QuantizeGguf,
    QuantizeNf4,
    Shrink,
    TrainLastBlocks,
    TrainLora,
    WhichBlocks,
)

_SAME_NAMES = frozenset(
    ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "opt")
)
"""Architectures whose modules are called in their files as they are in memory; others may be renamed as they are loaded."""


def check_which_blocks(config: WhichBlocks, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """The blocks are there, and one is left; the config of the model without them."""
    count = num_blocks(locked.config)
    if count is None:
        return locked.config
    has = f"base `{base}` has {count} blocks at this point, 0 to {count - 1}"
    removed = num_removed(config.model_dump(mode="json"), count)
    if config.protect and (wrong := [index for index in config.protect if index >= count]):
        raise SpecError(f"{where}.protect: there is no block `{wrong[0]}`; {has}")
    outside = [index for index in config.blocks or () if index >= count]
    if outside:
        raise SpecError(f"{where}.blocks: there is no block `{outside[0]}`; {has}")
    if removed >= count:
        field = "count" if config.count else "blocks" if config.blocks else "fraction"
        raise SpecError(f"{where}.{field}: removing {removed} leaves no block; {has}, so remove at most {count - 1}")
    if removed > count - len(config.protect):
        raise SpecError(
            f"{where}.protect: {len(config.protect)} protected blocks leave fewer than the {removed} to remove; {has}"
        )
    return with_num_blocks(locked.config, count - removed)


def check_blocks(config: PruneBlocks, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`prune.blocks`: the blocks as `check_which_blocks`, and a seam where one can be."""
    fewer = check_which_blocks(config, where, base, locked)
    if config.seam != "none" and mlp_width(locked.config) is None:
        raise SpecError(
            f"{where}.seam: base `{base}` ({', '.join(architectures(locked.config))}) has no single width of its MLPs, whose "
            "last projection would make up for the blocks; write `seam: none`"
        )
    if config.seam != "none" and not adds_mlps_as_written(locked.config):
        raise SpecError(
            f"{where}.seam: base `{base}` ({', '.join(architectures(locked.config))}) norms or scales what its MLPs write, so "
            "they cannot make up for removed blocks; write `seam: none`"
        )
    if config.seam != "none" and 0 in (config.blocks or ()):
        raise SpecError(f"{where}.seam: nothing stands before block 0 that could make up for it; write `seam: none`")
    return fewer


def check_exits(config: ExitEarly, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`exit.early`: blocks stand above each exit."""
    count = num_blocks(locked.config)
    if count is not None and (wrong := [block for block in config.exits(count) if block >= count - 1]):
        field = ".after" if config.after else ".first" if config.first is not None else ""
        raise SpecError(
            f"{where}{field}: no block stands after block {wrong[0]} that a token could leave out; base `{base}` has {count} "
            f"blocks at this point, 0 to {count - 1}" + (f", so write at most {count - 2}" if count > 1 else "")
        )
    return locked.config


def check_mlp(config: PruneMlp, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`prune.mlp`: the base says one width of its MLPs, and some channels leave and some stay."""
    found = mlp_width(locked.config)
    if found is None:
        raise SpecError(
            f"{where}: base `{base}` ({', '.join(architectures(locked.config))}) cannot say another width of its MLPs: "
            "config.json names no single one, as of routed experts, or ties it to the hidden states; take `prune.blocks`"
        )
    name, channels = found
    stay = config.stay(channels)
    if not 0 < stay < channels:
        raise SpecError(
            f"{where}.fraction: {config.fraction:g} of the {channels:,} channels of base `{base}` would leave {stay:,}, in "
            f"multiples of {config.STEP}; write one that leaves {config.STEP} or more and fewer than {channels:,}"
        )
    return with_fields(locked.config, {name: stay})


def check_heads(config: PruneHeads, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`prune.heads`: the architecture takes another number of heads, and one is left."""
    if not takes_heads(locked.config):
        raise SpecError(
            f"{where}: base `{base}` ({', '.join(architectures(locked.config))}) cannot have fewer heads: it takes no "
            "`head_dim`, so that a head is the width of the hidden states divided by their number; take `prune.mlp` or "
            "`prune.blocks`"
        )
    heads, shared, size = head_counts(locked.config)
    units, noun = (heads, "heads") if shared in (1, heads) else (shared, f"groups of {heads // shared} heads")
    if config.count >= units:
        raise SpecError(
            f"{where}.count: {config.count} of the {units} {noun} in a block of base `{base}` leaves none; write at most "
            f"{units - 1}"
        )
    after = heads // units * (units - config.count)
    if not takes_heads(locked.config, after):
        fitting = [count for count in range(1, units) if takes_heads(locked.config, heads // units * (units - count))]
        raise SpecError(
            f"{where}.count: {config.count} leaves {after} heads in a block of base `{base}`, which transformers refuses of "
            f"`{locked.config['model_type']}`, as they do not divide the width of the hidden states, {width(locked.config):,}; "
            f"write {' or '.join(map(str, fitting)) or '`prune.mlp` instead'}"
        )
    return with_fields(
        locked.config,
        {"num_attention_heads": after, "num_key_value_heads": 1 if shared == 1 else units - config.count, "head_dim": size},
    )


def check_vocabulary(config: PruneVocabulary, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`prune.vocabulary`: the tokenizer can lose tokens, as far as its files are at hand."""
    directory = locked.resource.directory()
    if directory is not None:
        file = directory / "tokenizer.json"
        reason = why_no_smaller(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else "it has no tokenizer.json"
        if reason:
            raise SpecError(f"{where}: the tokenizer of base `{base}` cannot be made smaller: {reason}; take the method out")
    return with_fields(locked.config, {REWRITTEN: True})


def tell_mlp(config: PruneMlp, base: str, locked: LockedBase) -> list[str]:
    """`prune.mlp`: the rounding."""
    _, channels = mlp_width(locked.config) or ("", 0)
    stay = config.stay(channels)
    return [f"prune.mlp with `fraction: {config.fraction:g}` leaves {stay:,} of {channels:,} channels of an MLP of `{base}`"]


def tell_heads(config: PruneHeads, base: str, locked: LockedBase) -> list[str]:
    """`prune.heads`: what a unit is, where it is no head."""
    heads, shared, _ = head_counts(locked.config)
    if shared in (1, heads):
        return []
    removed = config.count * heads // shared
    return [f"prune.heads with `count: {config.count}` takes {removed} of {heads} heads of a block of `{base}`: whole groups"]


def check_shrink(config: Shrink, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`shrink`: the blocks can be counted, one of them goes, and `last_blocks` are there at the end."""
    count = num_blocks(locked.config)
    if count is None:
        raise SpecError(f"{where}: config.json of base `{base}` does not say how many blocks it has; take `prune.blocks`")
    left = count - config.num_stops(count)
    if left == count:
        most = (count - 1) / count
        raise SpecError(f"{where}.to: {config.to:g} of {count} blocks is all of them; write at most {most:.3g}")
    config_left = with_num_blocks(locked.config, left)
    if config.heal.last_blocks:
        check_last_blocks(config.heal.last_blocks, f"{where}.heal.last_blocks", base, replace(locked, config=config_left))
    if config.heal.lora:
        check_targets(config.heal.lora, f"{where}.heal.lora", base, locked)
    return config_left


def check_last_blocks(config: TrainLastBlocks, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`train.last_blocks`: there are so many."""
    count = num_blocks(locked.config)
    if count is not None and config.count > count:
        raise SpecError(f"{where}.count: base `{base}` has {count} blocks at this point; write at most {count}")
    return locked.config


def check_student(config: DistillLogits | DistillText, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`distill.logits` and `distill.text`: their adapters, as those of `train.lora`."""
    return check_targets(config.lora, f"{where}.lora", base, locked) if config.lora else locked.config


def _check_rank(config: Lora, where: str, base: str, locked: LockedBase) -> None:
    """SpecError for a rank that no matrix has."""
    directory = locked.resource.directory()
    if directory is None:
        return
    shapes = [shape for name, shape in weight_shapes(directory).items() if any(part.isdigit() for part in name.split("."))]
    matrices = [shape[-2:] for shape in shapes if len(shape) in (2, 3)]  # of three: a matrix for each expert
    highest = max((min(shape) for shape in matrices), default=config.r)
    if config.r > highest:
        raise SpecError(
            f"{where}.r: {config.r:,} is a rank that no matrix of base `{base}` has, nor an update of it: the largest rank is "
            f"{highest:,}; write at most that, usual are 4 to 64, or train all weights"
        )


def check_targets(config: Lora, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`train.lora`: a rank that there can be, and linear modules called as `targets`."""
    if config.load and not has("bitsandbytes", "cpu"):
        raise NeedsError(f"{where}.load: `{config.load}` needs {way_to('bitsandbytes', 'cpu')}; or leave the field out")
    _check_rank(config, where, base, locked)
    if config.experts and num_experts(locked.config) is None:
        raise SpecError(f"{where}.experts: base `{base}` has no routed experts; leave the field out")
    directory = locked.resource.directory()
    if isinstance(config.targets, str) or directory is None or locked.config.get("model_type") not in _SAME_NAMES:
        return locked.config
    shapes = weight_shapes(directory)
    linear = {name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    for target in config.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            inside_blocks = sorted(
                {name.rpartition(".")[2] for name in linear if any(part.isdigit() for part in name.split("."))}
            )
            raise SpecError(f"{where}.targets: base `{base}` has no linear module `{target}`; it has {ticked(inside_blocks)}")
    return locked.config


def check_gguf(config: QuantizeGguf, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`quantize.gguf`: llama.cpp's converter knows the architecture, by the names in its source."""
    if locked.config.get("text_config", locked.config).get(REWRITTEN):
        raise SpecError(
            f"{where}: llama.cpp's converter knows a tokenizer by what it writes, and not the smaller one that "
            "`prune.vocabulary` leaves; take one of both out"
        )
    spec = importlib.util.find_spec("conversion")
    names = locked.config.get("architectures") or []
    if spec is None or not spec.submodule_search_locations or not names:
        return locked.config
    sources = [file.read_text(encoding="utf-8") for file in Path(spec.submodule_search_locations[0]).glob("*.py")]
    known = {
        name for text in sources for call in re.findall(r"\.register\(([^)]*)\)", text) for name in re.findall(r'"(\w+)"', call)
    }
    if not known.intersection(names):
        raise SpecError(
            f"{where}: llama.cpp does not know the architecture of base `{base}`, {names[0]}; take the method out for it"
        )
    return locked.config


def check_nf4(config: QuantizeNf4, where: str, base: str, locked: LockedBase) -> Mapping[str, Any]:
    """`quantize.nf4`: rows are whole blocks of 64 weights, as bitsandbytes takes them on a CPU; as far as config.json says."""
    if width(locked.config) % 64:
        raise SpecError(
            f"{where}: base `{base}` is {width(locked.config)} wide, no multiple of 64, and bitsandbytes unpacks such matrices "
            "wrongly on a CPU; take `quantize.int8` or `quantize.gguf`"
        )
    return locked.config


def tell_reach(config: TrainLora, base: str, locked: LockedBase) -> list[str]:
    """`train.lora`: the share of the weights that its targets reach, by the shapes in the files; nothing where only the loaded
    model would say."""
    directory = locked.resource.directory()
    names_known = config.targets == "all-linear" or locked.config.get("model_type") in _SAME_NAMES
    if directory is None or config.targets == "default" or not names_known:
        return []
    count, shapes = num_experts(locked.config), weight_shapes(directory)
    inside = {name: shape for name, shape in shapes.items() if any(part.isdigit() for part in name.split("."))}
    # A tensor for all experts of a layer, or one for each, which has a number of its own.
    experts = {
        name
        for name, shape in inside.items()
        if count and ((len(shape) == 3 and shape[0] == count) or sum(part.isdigit() for part in name.split(".")) > 1)
    }
    linear = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2 and name not in experts}
    if isinstance(config.targets, str):
        reached = [shape for name, shape in linear.items() if f"{name}.weight" in inside and shape[0] != count]
    else:
        reached = [
            shape for name, shape in linear.items() if any(f".{name}".endswith(f".{target}") for target in config.targets)
        ]
    whole, of_experts = count_weights(directory), sum(math.prod(shapes[name]) for name in experts)
    share = (sum(map(math.prod, reached)) + of_experts * config.experts) / whole
    targets = config.targets if isinstance(config.targets, str) else ", ".join(config.targets)
    line = f"train.lora with `targets: {targets}` reaches {share:.1%} of the weights of `{base}`"
    if experts and not config.experts:
        line += f"; the routed experts, {of_experts / whole:.1%}, have no adapter (`experts: true` gives them one)"
    return [line]


def check_latency(config: Latency, setting: Setting) -> None:
    """`latency`: the base reaches as far as prompt and new tokens."""
    for name, base in setting.lock.bases.items():
        positions, asked = num_positions(base.config), config.prompt_tokens + config.new_tokens
        if positions is not None and asked > positions:
            raise SpecError(
                f"{setting.where}: `prompt_tokens: {config.prompt_tokens}` and `new_tokens: {config.new_tokens}` are {asked} "
                f"tokens, and base `{name}` reaches {positions}; lower one of them"
            )


def check_prompts(config: Generate, setting: Setting) -> None:
    """`generate`: each prompt leaves room for a new token."""
    for index, prompt in enumerate(config.prompts):
        for name, base in setting.lock.bases.items():
            length, positions = num_tokens(base, prompt), num_positions(base.config)
            if positions is not None and length >= positions:
                raise SpecError(
                    f"{setting.where}.prompts[{index}]: `{prompt[:40]}...` has {length} tokens, and base `{name}` reaches "
                    f"{positions} positions, which leaves no room for a new one; shorten it"
                )


def check_encoder(config: Tasks, setting: Setting) -> None:
    """`tasks`: the encoder is one, and has the layer."""
    if config.encoder is None:
        return
    where = f"{setting.where}.encoder"
    locked = setting.lock.models[where]
    num_layers = num_blocks(locked.config)
    if num_layers is None:
        raise NeedsError(f"{where}: its config.json names no number of layers, so it is no encoder; take RoBERTa, or BERT")
    if config.encoder.layer is not None and config.encoder.layer > num_layers:
        raise SpecError(
            f"{where}.layer: there is no layer `{config.encoder.layer}`; it has {num_layers}, so write 1 to {num_layers}"
        )
    check_files(locked, where)


def num_tokens(base: LockedBase, text: str) -> int:
    """Tokens of a text and the prefix; its bytes at most, and 0 where the tokenizer is not at hand and they are too many."""
    positions, upper = num_positions(base.config), len(text.encode()) + 1
    if positions is None or upper < positions:
        return upper
    directory = base.resource.directory()
    if directory is None or not (directory / "tokenizer.json").is_file():
        return 0
    return len(read_tokenizer(directory / "tokenizer.json").encode(text, add_special_tokens=False).ids) + 1
