"""What was exported, read as others read it, against the losses that the study measured."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.data.examples import examples_of
from paretune.data.tokenizer import load_tokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import Example, unshared
from paretune.data.windows import window_examples
from paretune.errors import StoreError
from paretune.pipeline.plan import PlannedCell
from paretune.pipeline.store import Store

_DOCUMENTS = 4
_MOST = 0.02
"""Nats a token: above what an adapter that is merged, or not, in 16 bits rounds by, and below what a wrong weight does."""
INT8_MOST = 0.25
"""In dynamic int8 the last bit of a state decides a rounding: noise of 1e-7 moved the loss of texts of SmolLM2-135M by 0.06."""


def open_whole(directory: Path) -> PreTrainedModel:
    """The model of a directory by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def open_adapter(base: Path) -> Callable[[Path], nn.Module]:
    """The adapter of a directory, by PEFT, on the model of another."""

    def open_both(directory: Path) -> nn.Module:
        from peft import PeftModel

        return PeftModel.from_pretrained(open_whole(base), directory)

    return open_both


def check_round_trip(
    directory: Path, cell: PlannedCell, store: Store, opened: Callable[[Path], nn.Module], most: float = _MOST
) -> str:
    """What is told of the losses of a few documents: by the model that `opened` makes of `directory`, and in the record.

    StoreError where they are more than `most` nats a token apart; it says so where no perplexity is in the store to compare.
    """
    measured = list(islice(_measured(cell, store), _DOCUMENTS))
    if not measured:
        return "not checked: no perplexity was measured of it"
    model, largest = opened(directory).eval(), 0.0
    with torch.inference_mode():
        for examples, loss in measured:
            nats = torch.cat([_nats(model, example) for example in examples])
            largest = max(largest, abs(float(nats.mean()) - loss))
    if not largest <= most:
        raise StoreError(
            f"`{cell.variant}`, read back from what was to be exported, gives losses that are {largest:.3g} nats a "
            "token from those of the record; is transformers, or PEFT, of another version than the study ran with?"
        )
    return f"read back, it gives the losses of the record (within {largest:.1g} nats a token)"


def _nats(model: nn.Module, example: Example) -> torch.Tensor:
    ids = torch.from_numpy(example.ids).long()
    logits = model(input_ids=ids[None]).logits[0].double()
    return nn.functional.cross_entropy(logits[example.first_target - 1 : -1], ids[example.first_target :], reduction="none")


def _measured(cell: PlannedCell, store: Store) -> Iterator[tuple[list[Example], float]]:
    """Documents, or completions, in the windows that they were read in, with the loss a token in the record."""
    stages = [stage for stage in cell.evaluations.values() if stage.kind == "evaluate.perplexity"]
    artifact = next((store.artifact(stage) for stage in stages if store.find(stage)), None)
    if artifact is None:
        return
    scores = pq.read_table(artifact.path / "scores.parquet", filters=[("metric", "=", "loss")]).to_pylist()
    split = scores[0]["split"]
    losses = {score["example"]: score["value"] for score in scores if score["split"] == split}
    config, metrics = stages[0].config, artifact.record.metrics
    tokenizer = load_tokenizer(config["base"], stages[0].resources["base"], artifact.inputs.get("model"))
    rows = read_tokens(artifact.inputs["tokens"].path, split)
    rows = rows.where(rows.lengths("completion" if rows.has_tasks else "ids") > 0)
    if rows.has_tasks:
        examples, counts = examples_of(rows, tokenizer, metrics["window_tokens"], end=False), [1] * len(rows)
        names = [f"{row['example']}:{row['task']}" for row in rows]
    else:
        texts = [rows.ids_of("ids", n) for n in range(len(rows))]
        examples, counts = window_examples(texts, tokenizer, metrics["window_tokens"], metrics["stride"])
        names = [str(row["example"]) for row in rows]
    each = iter(examples)
    for name, count in zip(names, counts, strict=True):
        windows = [unshared(example) for example in islice(each, count)]
        if name in losses:
            yield windows, losses[name]
