"""Studies that can be planned and not run: a base of a few bytes, and the plan that follows from a text.

Planning reads config.json, the headers of safetensors files and tokenizer.json, and nothing of this is a model.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.pipeline.lock import Lock, resolve_lock
from paretune.pipeline.plan import Plan, make_plan
from paretune.pipeline.preflight import check_study
from paretune.pipeline.records import Record
from paretune.pipeline.stage import Stage
from paretune.study.study import load_study

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_positions": 1024,
    "n_embd": 64,
    "n_layer": 6,
    "n_head": 4,
}
STUDY = """
study: example
bases: {small: {path: small}, other: {path: other}}
data:
  notes: {source: {path: notes.jsonl}, document: title, text: "{{ title }}\\n\\n{{ content }}"}
train: {epochs: 2, batch_size: 4, max_length: 64}
precision: {compute: float32}
seeds: [0, 1]
variants:
  base: []
  full: [{train.full: {learning_rate: 3.0e-5}}]
  original: [{train.lora: {r: 4}}]
  reduced: [{prune.blocks: {count: 1, choose: last}}, {train.lora: {r: 4}}]
  shorter: [{prune.blocks: {count: 1, choose: last}}]
  named: {bases: [small], methods: [{prune.blocks: {blocks: [0, 2]}}]}
evaluate:
  perplexity: {}
  qa: {path: questions.json, slice_by: [difficulty]}
  generate: {prompts: [The train], max_new_tokens: 8}
  latency: {prompt_tokens: 8, new_tokens: 4}
compare: {baseline: original}
"""


def write_base(folder: Path, config: Mapping[str, Any] = GPT2, shapes: Mapping[str, Sequence[int]] | None = None) -> Path:
    """config.json, a safetensors file of zeros, and a tokenizer of whole words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_TOKENIZER), encoding="utf-8")
    write_weights(folder / "model.safetensors", shapes or {"wte.weight": (16, 64)})
    return folder


def write_weights(file: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 1
        for length in shape:
            size *= length
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(content)) + content)
        stream.truncate(8 + len(content) + end)  # a hole: zeros that take no disk


def write_planned(folder: Path, text: str = STUDY) -> Path:
    """A study file with what it names; returns the file."""
    write_base(folder / "small")
    write_base(folder / "other", GPT2 | {"n_layer": 4})
    rows = [{"title": f"Note {number}", "content": "the train waits. " * (number + 1)} for number in range(20)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = [{"question": "What waits?", "answer": "the train", "difficulty": "easy"}]
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return folder / "study.yaml"


def lock_of(file: Path, device: str = "auto") -> Lock:
    return resolve_lock(load_study(file), file, device)


def plan_of(file: Path) -> Plan:
    study = load_study(file)
    return make_plan(study, resolve_lock(study, file), file.parent)


def record_of(stage: Stage, **fields: Any) -> Record:
    """The record of a stage as if it had run, without files."""
    inputs = {role: parent.key for role, parent in stage.inputs.items()}
    known = {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "device": "cpu", "machine": {}, "peak_memory_bytes": 1}
    known |= {"versions": {}, "git_commit": None, "argv": (), "options": {}, "metrics": {}, "files": {}}
    return Record(stage.key, stage.kind, stage.revision, stage.config, inputs, **known | fields)


def check(file: Path) -> None:
    """What is asked before a plan is made."""
    study = load_study(file)
    check_study(study, resolve_lock(study, file), file.parent)


def described(plan: Plan) -> dict[str, Stage]:
    """Every stage by what a person would call it, like `small/notes/reduced seed 0: train.lora`."""
    found = {f"{name}: data": stage for name, stage in plan.data.items()}
    found |= {f"{name}: leakage": stage for name, stage in plan.leakage.items()}
    found |= {f"{name}: audit": stage for name, stage in plan.audit.items()}
    found |= {f"{base}/{name}: tokenize": stage for (base, name), stage in plan.tokens.items()}
    for cell in plan.cells:
        owner = f"{cell.base}/{cell.dataset}/{cell.variant}" + ("" if cell.seed is None else f" seed {cell.seed}")
        found |= {f"{owner}: {stage.kind}": stage for stage in cell.methods}
        found |= {f"{owner}: {name}": stage for name, stage in cell.evaluations.items()}
    return found


_TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "the": 1, "train": 2, "waits": 3, ".": 4}, "unk_token": "<unk>"},
    "pre_tokenizer": {"type": "Whitespace"},
}
