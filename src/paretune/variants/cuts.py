"""What a narrower config takes from each block of a model: which weights shrink, in which dimension, and by which units.

No architecture is named: the shapes of a model of the narrower config are compared with those of the model at hand.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from paretune.errors import StageError
from paretune.model.blocks import block_list, refusing
from paretune.pipeline.config_json import head_counts, mlp_width


@dataclass(frozen=True)
class Narrowing:
    """What is to become of a model: its config, and how dimensions of its weights fall into units."""

    config: PreTrainedConfig
    """Of the narrower model."""
    units: int
    """Of a block, before."""
    keep: int
    fused: tuple[tuple[int, int], ...]
    """Lengths before and after of what a fused projection holds one behind the other, as queries, keys and values."""

    def unit_of(self, before: int, after: int) -> torch.Tensor:
        """For each index of a dimension that shrinks so: the unit that it belongs to, or -1 where it stays."""
        lengths = self.fused if (before, after) == tuple(map(sum, zip(*self.fused, strict=True))) else ((before, after),)
        parts = []
        for long, short in lengths:
            if long != short and (long % self.units or short * self.units != long * self.keep):
                raise StageError(f"a dimension of {long} that becomes {short} is not made of {self.units} equal units")
            whole = torch.arange(long)
            parts.append(whole // (long // self.units) if long != short else torch.full_like(whole, -1))
        return torch.cat(parts)


def narrow_mlp(config: PreTrainedConfig, stay: Callable[[int], int]) -> Narrowing:
    """MLPs of `stay(width)` channels; StageError where the config names no width that all blocks share."""
    config, text = _copied(config)
    found = mlp_width(text.to_dict())
    if found is None:
        raise StageError(f"the config of `{config.model_type}` names no width of the MLP that its blocks share")
    name, before = found
    after = stay(before)
    setattr(text, name, after)
    return Narrowing(config, before, after, ((before, after), (before, after)))


def narrow_heads(config: PreTrainedConfig, count: int) -> Narrowing:
    """`count` units of heads fewer: whole groups that share keys and values, or heads where all share one."""
    config, text = _copied(config)
    heads, shared, size = head_counts(text.to_dict())
    units = heads if shared == 1 else shared
    after = (units - count) * (heads // units)
    shared_after = shared if shared == 1 else units - count
    text.head_dim = size
    text.num_attention_heads, text.num_key_value_heads = after, shared_after
    queries, keys = (heads * size, after * size), (shared * size, shared_after * size)
    return Narrowing(config, units, units - count, (queries, keys, keys))


def _copied(config: PreTrainedConfig) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    copied = copy.deepcopy(config)
    return copied, copied.get_text_config(decoder=True)


@dataclass(frozen=True)
class Cut:
    """What a narrowing takes from one block: the projection, and the dimension and units of each weight that shrinks."""

    projection: nn.Module
    weights: Mapping[str, tuple[int, torch.Tensor]]
    """By name in the model: dimension, and the unit of each index of it or -1."""
    channels_C: torch.Tensor
    """The unit of each channel that the projection reads."""

    def matrix_DC(self) -> torch.Tensor:
        """The projection's weight, a view."""
        weight: torch.Tensor = self.projection.weight
        return weight if isinstance(self.projection, nn.Linear) else weight.T  # a Conv1D has it (in, out)


def find_cuts(model: PreTrainedModel, narrowing: Narrowing) -> list[Cut]:
    """Of each block; StageError where the narrower config builds something that is not this model with fewer units."""
    path, blocks = block_list(model)
    name = f"`{type(model).__name__}`"
    shapes, weights = narrower_shapes(model, narrowing.config), model.state_dict()
    found: list[dict[str, tuple[int, torch.Tensor]]] = [{} for _ in blocks]
    for key, weight in weights.items():
        if weight.shape == shapes[key]:
            continue
        dims = [dim for dim, (a, b) in enumerate(zip(weight.shape, shapes[key], strict=True)) if a != b]
        inside = key.removeprefix(f"{path}.")
        if inside == key or len(dims) != 1 or weight.ndim > 2:
            raise StageError(f"cannot narrow {name}: `{key}` would become {shapes[key]} from {tuple(weight.shape)}")
        dim = dims[0]
        found[int(inside.split(".")[0])][key] = (dim, narrowing.unit_of(weight.shape[dim], shapes[key][dim]))
    cuts = []
    for index, cut in enumerate(found):
        reading = []
        for key, (dim, units) in cut.items():
            module = model.get_submodule(key.rpartition(".")[0])
            if key.endswith(".weight") and weights[key].ndim == 2 and dim == (1 if isinstance(module, nn.Linear) else 0):
                reading.append((module, units))
        if len(reading) != 1:
            raise StageError(f"cannot narrow {name}: block {index} has {len(reading)} projections that read fewer, not one")
        cuts.append(Cut(reading[0][0], cut, reading[0][1]))
    return cuts


def narrower_shapes(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Of the weights of a model of `config`, by name; StageError where they are not called as those of `model`."""
    name = f"`{type(model).__name__}`"
    with refusing(f"cannot narrow {name}"), torch.device("meta"):
        shapes = {key: tuple(weight.shape) for key, weight in type(model)(config).state_dict().items()}
    if other := shapes.keys() ^ model.state_dict().keys():
        raise StageError(f"cannot narrow {name}: a narrower config gives other weights: {sorted(other)[:4]}")
    return shapes
