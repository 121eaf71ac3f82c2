"""The stage body of removing blocks."""

from dataclasses import asdict
from typing import Any

import torch

from paretune.model.adapters import count_parameters
from paretune.model.blocks import block_list, choose_blocks
from paretune.model.load import load_model
from paretune.pipeline.block_search import num_removed
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import PruneBlocks
from paretune.variants.calibration import read_windows
from paretune.variants.choose import choose_measured, choose_random
from paretune.variants.finish import leave
from paretune.variants.proof import prune_blocks as prune_and_prove
from paretune.variants.seam import Seam, projections_that_add, sew


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
    if chosen:
        drop = chosen
    else:
        count = num_removed(method.model_dump(mode="json"), num_blocks)
        if method.choose == "random":
            drop = choose_random(num_blocks, count, method.seed or 0, method.protect)
        else:
            drop = choose_blocks(num_blocks, count=count, choose=method.choose, protect=method.protect)
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
