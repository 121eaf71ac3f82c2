"""The fields of a config that say something about single blocks, rewritten for the blocks that are kept.

transformers indexes such fields by position while a block keeps what it was built with, so a list that is forgotten gives
wrong masks without an error (Gemma 3: logits off by 2.4). No architecture is named here. A field is recognised by its
shape: a list with one entry a block, a list of block indices, a dict keyed by them, a run-length form of one of
those lists. Fields that say the same by an interval are set to the value that still gives the lists, where one exists.
"""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

NOT_PER_BLOCK = re.compile(r"token_ids?$|^architectures$|validation$|^paretune_")
INDICES = re.compile(r"(layers|layer_ids|idxs|indices|indexes|blocks)$")
INTERVAL = re.compile(r"interval|pattern|window_layers|every_n|period$|freq$|frequency$")


def prune_fields(config: PreTrainedConfig, keep: Sequence[int], num_blocks: int) -> None:
    """Change `config`, a decoder's config of `num_blocks` blocks, to that of the blocks `keep` (ascending) in place.

    Explicit lists are exact. An interval that cannot express them is dropped where the class does not declare it and
    left where it does: transformers then reads the lists.
    """
    before = {name: value for name, value in vars(config).items() if not NOT_PER_BLOCK.search(name)}
    lists = {name: value for name, value in before.items() if _is_one_entry_a_block(name, value, num_blocks)}
    pruned = {name: type(value)(value[index] for index in keep) for name, value in lists.items()}
    after = pruned | {
        name: changed
        for name, value in before.items()
        if name not in lists and (changed := _pruned_value(name, value, keep, num_blocks, lists)) != value
    }
    overrides = {int(index): fields for index, fields in config.to_dict().get("per_layer_config", {}).items()}
    config.num_hidden_layers = len(keep)
    for name, value in after.items():
        setattr(config, name, value)
    if overrides:
        config.per_layer_config = {new: overrides[old] for new, old in enumerate(keep) if old in overrides}
    if _derives(config, pruned, {}):
        return
    # An interval is set to the value from which the config's class derives the lists by itself, if it has one.
    intervals = {name: value for name, value in vars(config).items() if INTERVAL.search(name) and type(value) is int}
    for name in dict.fromkeys(name.removeprefix("_") for name in intervals):
        values = range(config.num_hidden_layers + 2)
        fitting = next((value for value in values if _derives(config, pruned, {name: value})), None)
        for spelling in {name, f"_{name}"} & intervals.keys():
            if fitting is not None:
                setattr(config, spelling, fitting)
            elif spelling not in type(config).__dataclass_fields__:
                delattr(config, spelling)


def _is_one_entry_a_block(name: str, value: Any, num_blocks: int) -> bool:
    """A list longer than the blocks counts where its name speaks of layers (SmolLM3 allows it); [0, 1, 2 ...] are indices."""
    if not isinstance(value, list | tuple) or len(value) < num_blocks:
        return False
    if len(value) > num_blocks:
        return "layer" in name
    return not (INDICES.search(name) and num_blocks > 2 and list(value) == list(range(num_blocks)))


def _pruned_value(name: str, value: Any, keep: Sequence[int], num_blocks: int, lists: dict[str, Any]) -> Any:
    """A field that refers to blocks in another form than one entry each; any other value is returned as it is."""
    new_index = {old: new for new, old in enumerate(keep)}
    if isinstance(value, list | tuple) and INDICES.search(name) and _are_indices(value, num_blocks):
        return type(value)(new_index[index] for index in value if index in new_index)
    if isinstance(value, dict) and "layer" in name and value:
        indices = [int(key) if isinstance(key, str) and key.isdigit() else key for key in value]
        if _are_indices(indices, num_blocks):
            return {type(key)(new_index[int(key)]): entry for key, entry in value.items() if int(key) in new_index}
    if isinstance(value, list | tuple) and all(
        isinstance(run, list | tuple) and len(run) == 2 and isinstance(run[0], list) and type(run[1]) is int for run in value
    ):
        # [[["global", "local"], 2]] is ["global", "local", "global", "local"] (GPT-Neo).
        expanded = [entry for entries, times in value for entry in entries * times]
        if any(expanded == list(entries) for entries in lists.values()):
            return [[[expanded[index]], 1] for index in keep]
    return value


def _are_indices(values: Sequence[Any], num_blocks: int) -> bool:
    return all(type(value) is int and 0 <= value < num_blocks for value in values) and len(set(values)) == len(values)


def _derives(config: PreTrainedConfig, pruned: dict[str, Any], changes: dict[str, int]) -> bool:
    """Whether the class, given `changes` and none of the lists, derives each list as `pruned` has it (or not at all)."""
    fields = {name: value for name, value in config.to_dict().items() if name not in pruned} | changes
    try:
        derived = type(config).from_dict(fields)
    except (ValueError, ZeroDivisionError, StrictDataclassError):
        return False
    return all(vars(derived).get(name) in (None, value) for name, value in pruned.items())
