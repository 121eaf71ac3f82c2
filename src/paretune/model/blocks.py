"""Find the blocks of a causal language model and remove some, so that what is left is an ordinary model of fewer blocks.

A block that moves to another position must take with it what the model says about it in four places: the list of blocks,
the cache index inside the block, the per-block fields of the config, and constants that the block's position was folded
into (GPT-2's inverse-layer scaling). No architecture is named for the first three: a second model is built from the new
config on the meta device, where it costs nothing, and the live one must agree with it in every module, every shape and
every plain attribute. What cannot be made to agree is refused. `proof.py` then compares logits.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from paretune.errors import SpecError, StageError
from paretune.model.block_fields import prune_fields
from paretune.model.twin import REFUSALS

KEPT_BLOCKS = "paretune_kept_blocks"
"""Config field: for each block of the model its index in the base."""
BASE_FINGERPRINT = "paretune_base_fingerprint"
"""Config field: the fingerprint of that base."""

STATE_OF_A_RUN = {"training", "gradient_checkpointing"}
"""Attributes of a module that no config fixes."""


def block_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The dotted path and the list of the model's decoder blocks: as long as the config says, called alike, not nested.

    Raises StageError where there is none or more than one such list.
    """
    config = _decoder_config(model)
    where = f"`{type(model).__name__}`"
    if model.config.is_encoder_decoder:
        raise StageError(f"cannot remove blocks of {where}: it has an encoder and a decoder; name a decoder-only base")
    try:
        num_blocks = config.num_hidden_layers
    except AttributeError:
        raise StageError(f"cannot find the blocks of {where}: its config has no `num_hidden_layers`") from None
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    alike = []
    for name, blocks in lists:
        if len(blocks) == num_blocks:
            parameters = [list(inspect.signature(block.forward).parameters) for block in blocks]
            if parameters[0] != ["input"] and parameters.count(parameters[0]) == num_blocks:
                alike.append((name, blocks))
    outer = [(name, blocks) for name, blocks in alike if not any(name.startswith(f"{other}.") for other, _ in alike)]
    if len(outer) != 1:
        names = ", ".join(f"`{name}` ({len(blocks)})" for name, blocks in lists) or "none"
        raise StageError(
            f"cannot find the blocks of {where}: {len(outer)} lists of `num_hidden_layers` = {num_blocks} modules that are "
            f"called alike, where one is needed; its module lists: {names}"
        )
    return outer[0]


def choose_blocks(
    num_blocks: int, *, count: int, choose: Literal["first", "last"], protect: Sequence[int] = ()
) -> tuple[int, ...]:
    """The indices of `count` blocks, none protected, at one end of `num_blocks`; SpecError if that leaves or removes none."""
    check_count(num_blocks, count)
    free = [block for block in range(num_blocks) if block not in protect]
    return tuple(free[:count] if choose == "first" else free[-count:])


def check_count(num_blocks: int, count: int) -> int:
    """`count` as it is; SpecError unless some of `num_blocks` can be removed and kept."""
    if not 1 <= count < num_blocks:
        raise SpecError(
            f"`count: {count}` of {num_blocks} blocks: at least one must be removed and one kept; "
            f"give a number from 1 to {num_blocks - 1}"
        )
    return count


def check_blocks(num_blocks: int, drop: Sequence[int]) -> tuple[int, ...]:
    """`drop` in ascending order; SpecError if it is empty, all blocks, out of range or names a block twice."""
    allowed = f"the model has {num_blocks} blocks, 0 to {num_blocks - 1}"
    for index in drop:
        if type(index) is not int or not 0 <= index < num_blocks:
            raise SpecError(f"cannot remove block `{index}`: {allowed}")
        if list(drop).count(index) > 1:
            raise SpecError(f"block `{index}` is named more than once in `{list(drop)}`; name each block once")
    if not drop:
        raise SpecError(f"no block is named; {allowed}")
    if len(drop) == num_blocks:
        raise SpecError(f"cannot remove all blocks `{sorted(drop)}`: {allowed}; keep at least one")
    return tuple(sorted(drop))


def remove_blocks(model: PreTrainedModel, drop: Sequence[int], *, base_fingerprint: str) -> None:
    """Remove the blocks `drop` (indices of this model) in place; cache indices, config and scaling follow.

    The config gets the kept indices of the base, composed if this model was pruned before, and the base's fingerprint
    (that of the first base, if pruned before). Works on the meta device. Raises SpecError on a wrong `drop`, StageError
    on a model that it cannot change; the model is not to be used after a StageError.
    """
    if not isinstance(model, PreTrainedModel) or any(".base_layer" in name for name, _ in model.named_modules()):
        raise StageError(
            f"cannot remove blocks of `{type(model).__name__}` with an adapter attached, whose weights belong to block "
            "indices; merge the adapter first"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise StageError(f"cannot remove blocks of a quantized `{type(model).__name__}`; put `prune.blocks` before `quantize`")
    path, blocks = block_list(model)
    num_blocks = len(blocks)
    dropped = check_blocks(num_blocks, drop)
    keep = [index for index in range(num_blocks) if index not in dropped]
    for index in reversed(dropped):
        del blocks[index]
    config_before = copy.deepcopy(_decoder_config(model))
    name = f"`{type(model).__name__}` without blocks {list(dropped)}"
    with refusing(f"cannot express {name} as a config"):
        prune_fields(_decoder_config(model), keep, num_blocks)
    kept_before = getattr(model.config, KEPT_BLOCKS, range(num_blocks))
    setattr(model.config, KEPT_BLOCKS, [kept_before[index] for index in keep])
    if getattr(model.config, BASE_FINGERPRINT, None) is None:
        setattr(model.config, BASE_FINGERPRINT, base_fingerprint)
    _agree_with_config(model, path, keep, config_before, name)


@contextmanager
def skipped_blocks(model: PreTrainedModel, skip: Sequence[int]) -> Iterator[None]:
    """Let the blocks `skip` return what they were given: the model without them, for use without a cache."""

    def return_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden

    _, blocks = block_list(model)
    handles = [blocks[index].register_forward_hook(return_input, with_kwargs=True) for index in skip]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what transformers raises on a config or weights that it cannot use into a StageError that says `what` failed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise StageError(f"{what}: {error}") from error


def _decoder_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config(decoder=True)


def _agree_with_config(
    model: PreTrainedModel, path: str, keep: Sequence[int], config_before: PreTrainedConfig, name: str
) -> None:
    """Make `model` what its config, written and read again, builds; StageError where it differs beyond that.

    An attribute of a kept block may follow the config if it is the block's index or the copy of a field; outside of the
    blocks any may, for it can only have been derived from the whole config.
    """
    with refusing(f"cannot express {name} as a config"), TemporaryDirectory() as directory:
        model.config.save_pretrained(directory)
        config = type(model.config).from_pretrained(directory, attn_implementation=model.config._attn_implementation)
        with torch.device("meta"):
            rebuilt = type(model)(config)
    _refuse_other_weights(model, rebuilt, name)
    fields_before, fields = vars(config_before), vars(_decoder_config(model))
    differences = []
    for module_name, twin in rebuilt.named_modules():
        inside = module_name.removeprefix(f"{path}.")
        position = int(inside.split(".")[0]) if inside != module_name else None  # of the block that the module stands in
        module = model.get_submodule(module_name)
        for attribute, value in _differing(module, twin).items():
            old = getattr(module, attribute)
            is_index = position is not None and (old, value) == (keep[position], position)
            is_copy = (old, value) == (fields_before.get(attribute), fields.get(attribute))
            if position is None or is_index or is_copy:
                setattr(module, attribute, value)
            elif attribute == "scaling" and isinstance(module, GPT2Attention):
                _fold_scaling(module, value)
            else:
                differences.append(f"`{module_name}.{attribute}` is {old!r} and would be {value!r}")
    if differences:
        raise StageError(f"cannot express {name} as a config: after a reload {'; '.join(differences[:4])}")


def _refuse_other_weights(model: PreTrainedModel, rebuilt: PreTrainedModel, name: str) -> None:
    """Raise StageError unless both have modules of the same classes and weights of the same shapes under the same names."""
    live, twin = ({key: type(module) for key, module in each.named_modules()} for each in (model, rebuilt))
    different = [f"module `{key}`" for key in live.keys() | twin.keys() if live.get(key) is not twin.get(key)]
    live, twin = ({key: tuple(weight.shape) for key, weight in each.state_dict().items()} for each in (model, rebuilt))
    different += [
        f"`{key}` with shape {live.get(key)} instead of {twin.get(key)}"
        for key in live.keys() | twin.keys()
        if live.get(key) != twin.get(key)
    ]
    if different:
        raise StageError(f"cannot express {name} as a config: it has another {', another '.join(sorted(different)[:4])}")


def _differing(module: nn.Module, twin: nn.Module) -> dict[str, Any]:
    """The plain public attributes of `module` that `twin` has with another value, with that value."""
    theirs = vars(twin)
    return {
        name: theirs[name]
        for name, value in vars(module).items()
        if name in theirs
        and not name.startswith("_")
        and name not in STATE_OF_A_RUN
        and _is_plain(value)
        and _is_plain(theirs[name])
        and value != theirs[name]
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _fold_scaling(attention: GPT2Attention, scaling: float) -> None:
    """Give the attention another `scaling` of its scores and take the ratio into its queries, so that they stay the same.

    score = scaling * q @ k with q = x @ W_q + b_q; GPT-2 with `scale_attn_by_inverse_layer_idx` derives the scaling from
    the position, 1 / (index + 1). The weights of `c_attn` are (input, [q | k | v]).
    """
    ratio = attention.scaling / scaling
    queries = attention.q_attn if attention.is_cross_attention else attention.c_attn
    with torch.no_grad():
        queries.weight[:, : attention.split_size] *= ratio
        queries.bias[: attention.split_size] *= ratio
    attention.scaling = scaling
