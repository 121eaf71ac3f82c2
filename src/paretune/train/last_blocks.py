"""Training of the last blocks: the trunk below them is only read, and no gradient is taken or kept there."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from paretune.errors import SpecError
from paretune.model.adapters import count_parameters, untie_head
from paretune.model.blocks import block_list
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import TrainConfig
from paretune.study.methods import TrainLastBlocks
from paretune.train.stages import Trained, train


def train_last_blocks(context: StageContext) -> dict[str, Any]:
    """Stage body: the last blocks, what follows them and, if asked, the head; the artifact is a model directory.

    Of the record, `trained_blocks` are the blocks by their index in the model that the method was given, `base_parameters` all
    of its parameters, and `untied_parameters` what it took besides to give the head a matrix of its own.
    """
    config = context.parse(TrainConfig[TrainLastBlocks])
    return train(context, config, config.method.learning_rate, last_blocks(context, config.method, config.precision))


def last_blocks(context: StageContext, method: TrainLastBlocks, precision: str) -> Trained:
    """The last blocks of a model, saved as a model directory; the numbers are those of the stage body."""

    def choose(model: PreTrainedModel) -> dict[str, Any]:
        before, count = count_parameters(model)[0], len(block_list(model)[1])
        model.requires_grad_(False)
        if method.head and is_tied(model):
            untie_head(model)
        parts = last_parts(model, method.count)
        for part in [*parts, model.get_output_embeddings()] if method.head else parts:
            part.requires_grad_(True)
        return {
            "base_parameters": before,
            "trained_blocks": list(range(count - method.count, count)),
            "untied_parameters": count_parameters(model)[0] - before,
        }

    def save(loaded: LoadedModel) -> None:
        model = loaded.model
        if precision != "float32":  # what is frozen was rounded for the products
            weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
            model = load_model(context, torch.float32).model
            if method.head and is_tied(model):
                untie_head(model)
            model.load_state_dict(weights, strict=False)
        model.save_pretrained(context.draft)
        loaded.tokenizer.hf.save_pretrained(context.draft)

    return Trained(choose, save)


def last_parts(model: PreTrainedModel, count: int) -> list[nn.Module]:
    """The last `count` blocks of `model`, and every module with weights that a pass comes to after them and before the head.

    StageError where the blocks cannot be found; SpecError where there are fewer.
    """
    blocks = block_list(model)[1]
    if count > len(blocks):
        raise SpecError(f"train.last_blocks.count: the model has {len(blocks)} blocks; write at most {len(blocks)}")
    inside = set(blocks.modules())
    after: list[nn.Module] = []
    passed = [False]
    handles = [blocks[-1].register_forward_hook(lambda *_: passed.__setitem__(0, True))]
    for module in model.base_model.modules():
        if module not in inside and next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(lambda module, _: after.append(module) if passed[0] else None))
    try:
        with torch.no_grad():
            model.base_model(input_ids=torch.ones((1, 4), dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [*blocks[-count:], *after]


def is_tied(model: PreTrainedModel) -> bool:
    """Whether head and embedding of `model` are one matrix."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight
