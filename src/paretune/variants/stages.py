"""The stage bodies of removing blocks and of leaving them out."""

import json
from dataclasses import asdict
from typing import Any

import torch

from paretune.model.adapters import count_parameters
from paretune.model.blocks import block_list, choose_blocks
from paretune.model.load import DEPTH, load_model
from paretune.pipeline.block_search import num_removed
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import PruneBlocks, SkipBlocks, WhichBlocks
from paretune.variants.calibration import read_windows
from paretune.variants.choose import choose_measured, choose_random
from paretune.variants.finish import leave
from paretune.variants.proof import prune_blocks as prune_and_prove
from paretune.variants.proof import skip_blocks as skip_and_prove
from paretune.variants.seam import Seam, projections_that_add, sew
from paretune.variants.walk import Removed


def prune_blocks(context: StageContext) -> dict[str, Any]:
    """Stage body: remove blocks, show that nothing else changed, and leave a model directory that plain transformers loads."""
    config = context.parse(MethodConfig[PruneBlocks])
    method = config.method
    if method.seam != "none" and method.is_measured:  # where config.json does not tell, before a choice that takes its time
        projections_that_add(load_model(context, torch.float32).model)
    chosen, measured = choose_measured(context, config) if method.is_measured else (method.blocks, {})
    loaded = load_model(context, torch.float32)
    before, _ = count_parameters(loaded.model)
    num_blocks = len(block_list(loaded.model)[1])
    drop = chosen or _choose_without_text(method, num_blocks)
    seams: list[Seam] = []
    if method.seam != "none":
        windows = read_windows(context, config, loaded.tokenizer.prefix_id)
        how = {"forward_tokens": context.options.forward_tokens, "emit": context.emit}
        seams = sew(loaded.model, drop, windows, seam=method.seam, **how)
    context.emit(done=0, total=1, part="showing that nothing else changed")
    proof = prune_and_prove(loaded.model, drop, context.draft, base_fingerprint=config.base.digest)
    return {
        "removed_blocks": sorted(drop),
        "blocks_before": num_blocks,
        "blocks_after": num_blocks - len(drop),
        **({"seams": [asdict(seam) for seam in seams]} if seams else {}),
        **leave(context, loaded.model, loaded.tokenizer, before, proof),
        **measured,
    }


def skip_blocks(context: StageContext) -> dict[str, Any]:
    """Stage body: leave the list of the blocks that are left out as the model is loaded, shown to change nothing else."""
    config = context.parse(MethodConfig[SkipBlocks])
    method = config.method
    chosen, measured = choose_measured(context, config) if method.is_measured else (method.blocks, {})
    model = load_model(context, torch.float32).model
    before, num_blocks = count_parameters(model)[0], len(block_list(model)[1])
    drop = sorted(chosen or _choose_without_text(method, num_blocks))
    context.emit(done=0, total=1, part="showing that nothing else changed")
    difference = skip_and_prove(model, drop, base_fingerprint=config.base.digest)
    (context.draft / DEPTH).write_text(json.dumps({"skip": drop}), encoding="utf-8")
    parameters, _ = count_parameters(model)
    return {
        "removed_blocks": drop,
        "blocks_before": num_blocks,
        "blocks_after": num_blocks - len(drop),
        "removed_parameters": before - parameters,
        "parameters": parameters,
        "largest_difference": difference,
        **measured,
    }


def _choose_without_text(method: WhichBlocks, num_blocks: int) -> Removed:
    count = num_removed(method.model_dump(mode="json"), num_blocks)
    if method.choose == "random":
        return choose_random(num_blocks, count, method.seed or 0, method.protect)
    assert method.choose in ("first", "last"), "all others are measured"
    return choose_blocks(num_blocks, count=count, choose=method.choose, protect=method.protect)
