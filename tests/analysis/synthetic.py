"""Records of studies that never ran: a seeded generator of what the stages would have left on disk.

`Shape` says which study; the true effects of the variants are in VARIANTS, so that tests know what a report has to find.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paretune.pipeline.records import Cell, Record, Results, write_record
from paretune.study.grid import grid_of
from paretune.study.study import load_study

MACHINE = {"system": "Linux", "processor": "Example CPU", "cores": 2, "memory_gib": 8, "accelerator": None}


@dataclass(frozen=True)
class Truth:
    """What a variant really is: its methods in YAML and its figures."""

    methods: str
    loss: float
    """Nats per token, before document and seed effects."""
    parameters: int = 7_000_000
    trainable: int | None = None
    tokens_per_second: float = 5000.0
    ms_per_token: float = 4.0
    right: float = 0.4
    """Share of questions answered rightly."""


VARIANTS = {
    "base": Truth("[]", 4.60, right=0.2),
    "full": Truth("[{train.full: {learning_rate: 3.0e-5}}]", 4.02, trainable=7_000_000, tokens_per_second=3000),
    "original": Truth(
        "[{train.lora: {r: 8, alpha: 16}}]", 4.10, parameters=7_073_728, trainable=73_728, tokens_per_second=5000
    ),
    "reduced": Truth(
        "[{prune.blocks: {count: 1}}, {train.lora: {r: 8, alpha: 16}}]",
        4.16,
        parameters=6_271_520,
        trainable=61_440,
        tokens_per_second=5800,
        ms_per_token=3.4,
        right=0.3,
    ),
}


@dataclass(frozen=True)
class Shape:
    variants: Mapping[str, Truth] = field(default_factory=lambda: VARIANTS)
    seeds: Sequence[int] = (0, 1)
    bases: Sequence[str] = ("novels",)
    datasets: Sequence[str] = ("news",)
    documents: int = 60
    """Of the test split; validation has as many."""
    evaluations: Sequence[str] = ("perplexity", "qa", "generate", "latency")
    splits: Sequence[str] = ("validation", "test")
    epochs: int = 3
    seed_effect: float = 0.004
    """Standard deviation of a seed's effect on the loss, in nats."""
    questions: int = 10
    prompts: Sequence[str] = ("The company announced today that", "A new vehicle")
    text: str = " it will open a plant in 2027.\n\nThe plant makes batteries for all models of the brand."
    leakage: str = "block"
    extra: str = ""
    """More YAML at the end of the study file."""


def make_results(root: Path, shape: Shape | None = None, seed: int = 0) -> Results:
    """Write the artifacts of a study below `root` and return its results."""
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    study_file = root / "study.yaml"
    study_file.write_text(study_text(shape), encoding="utf-8")
    data = {name: _data_record(root, name, shape) for name in shape.datasets}
    leakage = {
        name: _record(root, "leakage", {"dataset": name}, {"pairs": 2, "documents_touched_test": 1, "items_touched_qa": 3})
        for name in shape.datasets
        if shape.leakage == "allow"
    }
    tokens = {(base, name): _token_record(root, base, name, shape) for base in shape.bases for name in shape.datasets}
    cells = []
    for dataset in shape.datasets:
        for index, base in enumerate(shape.bases):
            difficulty = rng.normal(0, 0.3, (2, shape.documents))
            for name, truth in shape.variants.items():
                for cell_seed in shape.seeds if truth.trainable else (None,):
                    where = (base, dataset, name, cell_seed)
                    cells.append(_cell(root, where, truth, shape, difficulty + 0.2 * index, rng))
    study = load_study(study_file)
    bases = {name: {"config": {}} for name in study.bases}
    lock = {"precision": {"compute": "float32", "evaluate": "float32"}, "device": "cpu", "bases": bases}
    return Results(study, study_file, lock, data, leakage, tokens, tuple(cells))


def study_text(shape: Shape) -> str:
    prompts = json.dumps(list(shape.prompts))
    known = {
        "perplexity": f"  perplexity: {{splits: [{', '.join(shape.splits)}]}}\n",
        "qa": "  qa: {path: qa.json, slice_by: [difficulty]}\n",
        "generate": f"  generate: {{prompts: {prompts}, max_new_tokens: 40}}\n",
        "latency": "  latency: {repeats: 5}\n",
    }
    written = {grid_of(name): truth.methods for name, truth in shape.variants.items()}
    return (
        "study: sketch\n"
        + "bases:\n"
        + "".join(f"  {base}: {{path: models/{base}}}\n" for base in shape.bases)
        + "data:\n"
        + "".join(
            f"  {name}: {{source: {{path: {name}.jsonl}}, document: title, leakage: {shape.leakage}, "
            'text: "{{ content }}"}\n'
            for name in shape.datasets
        )
        + f"train: {{epochs: {shape.epochs}, batch_size: 8, max_length: 512}}\n"
        + f"seeds: {list(shape.seeds)}\n"
        + "variants:\n"
        + "".join(f"  {name}: {methods}\n" for name, methods in written.items())
        + "evaluate:\n"
        + "".join(known[name] for name in shape.evaluations)
        + shape.extra
    )


def write_scores(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pd.DataFrame(list(rows)).to_parquet(directory / "scores.parquet", index=False)


def _data_record(root: Path, name: str, shape: Shape) -> Record:
    sizes = {"train": 8 * shape.documents, "validation": shape.documents, "test": shape.documents}
    metrics: dict[str, Any] = {"records": 10 * shape.documents + 2, "documents_unused": 0, "records_empty": 2}
    for split, documents in sizes.items():
        metrics |= {f"documents_{split}": documents, f"examples_{split}": documents, f"bytes_{split}": documents * 2000}
    return _record(root, "data", {"dataset": {"name": name}}, metrics)


def _token_record(root: Path, base: str, name: str, shape: Shape) -> Record:
    sizes = {"train": 8 * shape.documents, "validation": shape.documents, "test": shape.documents}
    metrics = {f"tokens_{split}": documents * 450 for split, documents in sizes.items()}
    config = {"base": {"digest": f"sha256:{base}"}, "max_length": 512, "too_long": "windows", "data": name}
    return _record(root, "tokenize", config, metrics | {"lossy_examples": 0, "skipped_examples": 0})


def _cell(
    root: Path,
    where: tuple[str, str, str, int | None],
    truth: Truth,
    shape: Shape,
    difficulty: np.ndarray,
    rng: np.random.Generator,
) -> Cell:
    base, dataset, name, seed = where
    identity = {"base": base, "dataset": dataset, "variant": name, "seed": seed}
    effect = rng.normal(0, shape.seed_effect) if truth.trainable else 0.0
    methods = []
    if truth.trainable:
        if "prune" in truth.methods:
            methods.append(_record(root, "prune.blocks", identity, {"blocks_removed": [5], "parameters": truth.parameters}))
        methods.append(_train_record(root, identity, truth, shape, effect, rng))
    size = {
        "parameters": truth.parameters,
        "model_bytes": 4 * (truth.parameters - (truth.trainable or 0) % 7_000_000),
        "adapter_bytes": 4 * truth.trainable if truth.trainable and truth.trainable < 7_000_000 else 0,
    }
    evaluations = {"size": _record(root, "evaluate.size", identity, size)}
    for task in shape.evaluations:
        record = _record(root, f"evaluate.{task}", identity, _evaluated(task, truth, rng))
        if task == "perplexity":
            write_scores(record.path, _perplexity_rows(truth.loss + effect, shape, difficulty, rng))
        elif task == "qa":
            write_scores(record.path, _question_rows(truth, shape, rng))
        elif task == "generate":
            _write_generations(record.path, shape, name)
        evaluations[task] = record
    return Cell(base, dataset, name, seed, tuple(methods), evaluations)


def _train_record(
    root: Path, identity: Mapping[str, Any], truth: Truth, shape: Shape, effect: float, rng: np.random.Generator
) -> Record:
    per_epoch = shape.documents
    steps, step_tokens = per_epoch * shape.epochs, 8 * 450
    speed = truth.tokens_per_second * rng.normal(1, 0.01)
    assert truth.trainable is not None
    metrics = {
        "parameters": truth.parameters,
        "trainable_parameters": truth.trainable,
        "train_seconds": steps * step_tokens / speed,
        "wall_seconds": steps * step_tokens / speed + 5,
        "train_tokens": steps * step_tokens,
        "train_tokens_per_second": speed,
        "peak_memory_bytes": int(9e8 if truth.trainable == 7_000_000 else 6e8),
        "steps": steps,
        "epochs_done": shape.epochs,
        "best_step": steps,
        "best_validation_loss": truth.loss + effect,
        "stopped_early": False,
        "repeated_steps": 0,
        "precision": "float32",
        "base_dropout": [0.1],
    }
    record = _record(root, "train.full" if truth.trainable == 7_000_000 else "train.lora", identity, metrics)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        at = step / steps
        level = truth.loss + effect + 0.55 * math.exp(-4 * at)
        common = {"step": step, "epoch": step / per_epoch, "seconds": step * step_tokens / speed, "tokens": step * step_tokens}
        lines.append(
            {
                **common,
                "train_loss": level - 0.05 * at + rng.normal(0, 0.12),
                "train_token_accuracy": 0.24 + 0.02 * at,
                "learning_rate": 3e-4 * (1 - at),
            }
        )
        if step % per_epoch == 0:
            lines.append({**common, "validation_loss": level, "validation_token_accuracy": 0.23 + 0.02 * at})
    (record.path / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return record


def _evaluated(task: str, truth: Truth, rng: np.random.Generator) -> dict[str, Any]:
    """Metrics of an evaluation's record; the multiple choice has four options."""
    return _latency(truth, rng) if task == "latency" else {"chance_accuracy": 0.25} if task == "qa" else {}


def _latency(truth: Truth, rng: np.random.Generator) -> dict[str, Any]:
    each = truth.ms_per_token * rng.normal(1, 0.01)
    first = 6 * each
    return {
        "first_token_ms": first * 1.02,
        "ms_per_token": each * 1.02,
        "first_token_ms_median": first,
        "ms_per_token_median": each,
        "prefill_tokens_per_second": 65e3 / first,
        "new_tokens_per_second": 1e3 / each,
        "joules_per_token": 0.02 * each,
        "threads": 2,
    }


def _perplexity_rows(loss: float, shape: Shape, difficulty: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    lengths = np.random.default_rng(1).integers(200, 700, shape.documents)
    for index, split in enumerate(("validation", "test")):
        if split not in shape.splits:
            continue
        for document in range(shape.documents):
            tokens = int(lengths[document])
            nats = loss + difficulty[index][document] + rng.normal(0, 0.02)
            place = {"split": split, "document": f"{split} {document}", "example": str(document)}
            rows += [
                {**place, "metric": "loss", "value": nats, "weight": float(tokens)},
                {**place, "metric": "bits_per_byte", "value": nats / math.log(2) / 4.4, "weight": tokens * 4.4},
                {**place, "metric": "token_accuracy", "value": 1 / (1 + nats), "weight": float(tokens)},
            ]
    return rows


def _question_rows(truth: Truth, shape: Shape, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for question in range(2 * shape.questions):
        place = {"split": "", "document": f"q{question}", "example": str(question), "weight": 1.0}
        place["slice.difficulty"] = "easy" if question % 2 else "hard"
        right = float(rng.random() < truth.right)
        if question < shape.questions:
            rows += [{**place, "metric": name, "value": right} for name in ("accuracy", "accuracy_unnormalised")]
        else:
            likelihood = {"metric": "log_likelihood", "value": -3 + truth.right + rng.normal(0, 0.5), "weight": 3.0}
            rows += [{**place, "metric": name, "value": right * (question % 3 == 0)} for name in ("exact_match", "contains")]
            rows.append({**place, **likelihood})
    return rows


def _write_generations(directory: Path, shape: Shape, name: str) -> None:
    lines = [
        {"prompt": prompt, "text": f"{shape.text} ({name})", "reference": None, "new_tokens": 40 - index, "seconds": 0.3}
        | {"stopped_by": "max_new_tokens" if index == 0 else "eos"}
        for index, prompt in enumerate(shape.prompts)
    ]
    (directory / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = [
        {
            "split": "",
            "document": str(index),
            "example": str(index),
            "metric": "new_tokens",
            "value": 40.0 - index,
            "weight": 1.0,
        }
        for index in range(len(shape.prompts))
    ]
    write_scores(directory, rows)


def _record(root: Path, kind: str, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Record:
    store = root / "store"
    store.mkdir(exist_ok=True)
    key = f"{len(list(store.iterdir())):064x}"
    path = store / f"{kind}-{key[-8:]}"
    path.mkdir()
    record = Record(
        key=key,
        kind=kind,
        revision=1,
        config=config,
        inputs={},
        started="2026-08-20T10:00:00+00:00",
        seconds=10.0,
        device="cpu",
        machine=MACHINE,
        peak_memory_bytes=500_000_000,
        versions={"python": "3.12.0", "paretune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        git_commit=None,
        argv=("paretune", "run", "study.yaml"),
        options={},
        metrics=metrics,
        files={},
        path=path,
    )
    write_record(record, path)
    return record
