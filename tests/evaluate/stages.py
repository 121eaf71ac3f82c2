"""Contexts for evaluation bodies, without a study or a store, and a float64 reference of a model's log-likelihoods."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from paretune.data.examples import SCHEMA as TASK_SCHEMA
from paretune.data.tokenizer import SCHEMA, load_tokenizer
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact, RunOptions, Stage, StageContext
from tests.pipeline.planned import record_of

BASE = {"digest": "sha256:0", "trust_remote_code": False}


def make_context(
    base: Path,
    evaluation: Mapping[str, Any],
    draft: Path,
    *,
    inputs: Mapping[str, Artifact] | None = None,
    items: str | Path | None = None,
    max_length: int = 512,
    forward_tokens: int = 4096,
) -> StageContext:
    draft.mkdir(parents=True, exist_ok=True)
    return StageContext(
        config={"base": BASE, "evaluation": evaluation, "precision": "float32", "device": "cpu", "max_length": max_length},
        inputs=inputs or {},
        resources={"base": Resource(path=base)} | ({"items": Resource(path=items)} if items else {}),
        options=RunOptions(forward_tokens=forward_tokens),
        draft=draft,
        emit=lambda **_: None,
    )


def make_artifact(path: Path, **metrics: Any) -> Artifact:
    return Artifact(path, record_of(Stage("test", {}, ""), metrics=metrics, path=path), {})


def write_tokens(base: Path, texts: Sequence[tuple[str, str, str]], directory: Path) -> Artifact:
    """An artifact of the tokenize stage with (split, document, text); every text is an example of its own."""
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    rows = [
        {
            "split": split,
            "document": document,
            "example": str(number),
            "ids": tokenizer.encode(text),
            "bytes": len(text.encode()),
            "lossless": "�" not in text,
        }
        for number, (split, document, text) in enumerate(texts)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), directory / "tokens.parquet")
    return make_artifact(directory)


def write_task_tokens(base: Path, rows: Sequence[tuple[str, str, str, str, str]], directory: Path) -> Artifact:
    """An artifact of the tokenize stage with (split, document, context, prompt, completion); two tasks `t0`, `t1` a record."""
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    written = [
        {
            "split": split,
            "document": document,
            "example": str(number // 2),
            "task": f"t{number % 2}",
            "context": tokenizer.encode(context),
            "prompt": tokenizer.encode(prompt),
            "completion": tokenizer.encode(completion),
            "end": [tokenizer.eos_id],
            "reference": completion,
            "bytes": len(completion.encode()),
            "lossless": True,
        }
        for number, (split, document, context, prompt, completion) in enumerate(rows)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(written, TASK_SCHEMA), directory / "tokens.parquet")
    return make_artifact(directory)


def read_scores(draft: Path) -> pd.DataFrame:
    return pd.read_parquet(draft / "scores.parquet")


@cache
def reference_logits(base: Path) -> Any:
    """Token ids to logits, [T, V], by a plain forward pass of one unpadded sequence in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager").eval()

    def logits_of(ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([list(ids)]), use_cache=False).logits[0]

    return logits_of


def reference_nats(base: Path) -> Any:
    """Token ids to -log p of each after the first (float64, T - 1), and whether each is the most likely."""
    logits_of = reference_logits(base)

    def nats_of(ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, targets = logits_of(ids)[:-1], torch.tensor(list(ids[1:]))
        return -logits.log_softmax(-1)[torch.arange(len(targets)), targets], logits.argmax(-1) == targets

    return nats_of
