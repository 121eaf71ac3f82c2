"""Export a variant: a directory that transformers or PEFT loads with no Paretune installed.

`hf` writes whole weights, adapters merged, in the number format that the study ships and measured, so that the directory gives
the numbers of the report. `adapter` writes the PEFT adapter, and beside it the base that it belongs to where that is another
than the study's, pruned or with a head of its own: PEFT would load an adapter onto other blocks, or merge it into a matrix that
the head shares, without a word. What was quantized is copied as it was measured: `gguf` with what Ollama needs beside it,
`int8` with the lines that load it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from paretune.data.chat import ending_ids
from paretune.data.prepare import iterate_records
from paretune.data.tokenizer import load_tokenizer
from paretune.errors import SpecError, StoreError
from paretune.model.adapters import untie_head
from paretune.model.bits import bitsandbytes
from paretune.model.int8 import INT8, LOADING, load_int8
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.load import ADAPTER, GGUF, cast, load_model
from paretune.pipeline.plan import Plan, PlannedCell, Wanted, find_cell
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, Stage, StageContext
from paretune.pipeline.store import Store
from paretune.study.base import suggestion
from paretune.study.foreign import called
from paretune.variants.card import LOAD_ADAPTER, LOAD_WHOLE, gguf_card, model_card
from paretune.variants.gguf import modelfile
from paretune.variants.round_trip import INT8_MOST, check_round_trip, open_adapter, open_whole

CARD = "README.md"
FORMATS = ("hf", "adapter", "gguf", "int8")
_QUANTIZED = {"quantize.gguf": "gguf", "quantize.int8": "int8", "quantize.nf4": "hf"}
"""The one format that the last method of a variant leaves."""


Say = Callable[[str], None]


def export_variant(plan: Plan, store: Store, wanted: Wanted, to: Path, form: str = "", say: Say = lambda _: None) -> str:
    """Write the wanted cell to `to`, in the form that it was measured in unless named; returns what was written, in a sentence.
    `say` is told what is being done.

    Raises SpecError for a cell that is not in the study or not the only one, StoreError where it has not been trained yet or
    `to` is in use.
    """
    cell = find_cell(plan, wanted)
    quantized = _QUANTIZED.get(cell.methods[-1].kind) if cell.methods else None
    form = form or quantized or "hf"
    if cell.methods and cell.methods[-1].kind == "exit.early":
        raise SpecError(
            f"--format {form}: `{cell.variant}` ends with `exit.early`, which no format holds, as whatever serves it would "
            "need code of its own; export a variant without it, whose weights are the same"
        )
    if form not in FORMATS:
        raise SpecError(f"--format: no `{form}`{called(f'={form}') or suggestion(form, FORMATS)}")
    if quantized and form != quantized:
        raise SpecError(f"--format {form}: `{cell.variant}` ends with `{cell.methods[-1].kind}`; use `--format {quantized}`")
    if not quantized and form in ("gguf", "int8"):
        method = "quantize.gguf: {type: q8_0}" if form == "gguf" else "quantize.int8: {}"
        raise SpecError(
            f"--format {form}: `{cell.variant}` is not measured in it; add a variant that ends with `{method}`, so that what "
            "ships is what was measured"
        )
    if to.exists() and any(to.iterdir() if to.is_dir() else [to]):
        raise StoreError(f"--to: `{to}` exists and is not empty; name another directory")
    disable_progress_bar()
    dataset, example = plan.data[cell.dataset].config["dataset"], _example(store, plan.data[cell.dataset])
    with _whole(to) as draft:
        if form == "gguf":
            return _write_gguf(cell, store, draft, to, dataset, example)
        if quantized:
            told = _write_quantized(cell, store, draft, to, dataset, example)
            say("reading it back")
            if form == "int8":
                read_back = check_round_trip(draft, cell, store, lambda directory: load_int8(str(directory)), INT8_MOST)
            else:
                bitsandbytes()  # without its words
                read_back = check_round_trip(draft, cell, store, open_whole)
            return f"{told}; {read_back}"
        if form == "adapter":
            base = _write_adapter(cell, store, draft, to, dataset, example, say)
            say("reading it back")
            told = check_round_trip(draft, cell, store, open_adapter(base))
            return f"{to}: PEFT adapter of `{cell.variant}`; {told}"
        # Any evaluation knows base, precision and parents of the model that it measures.
        measured = next(iter(cell.evaluations.values()))
        inputs = {role: store.artifact(parent) for role, parent in measured.inputs.items() if role == "model"}
        loaded = load_model(_context(measured, inputs, say))
        cast(loaded.model, getattr(torch, measured.config.get("ships") or measured.config["precision"]))
        if example is not None and example.get("messages"):
            # Whatever loads the directory stops where a turn ends, as the study did.
            loaded.model.generation_config.eos_token_id = sorted(ending_ids(loaded.tokenizer))
        say("writing the model")
        loaded.model.save_pretrained(draft)
        loaded.tokenizer.hf.save_pretrained(draft)
        (draft / CARD).write_text(model_card(cell, dataset, loaded.tokenizer, example), encoding="utf-8")
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        del loaded
        say("reading it back")
        told = check_round_trip(draft, cell, store, open_whole)
        less = ", without the blocks that it skips" if cell.methods and cell.methods[-1].kind == "skip.blocks" else ""
        return f"{to}: whole model of `{cell.variant}`{less}, {dtype}; {told}"


def _example(store: Store, data: Stage) -> Mapping[str, Any] | None:
    """A row of the documents that nothing was learned from or chosen by; None where they are no longer there."""
    artifact = store.artifact(data)
    records = iterate_records(artifact.path / "documents.parquet") if artifact else iter(())
    return next((rows[0] for rows in records if rows[0]["split"] == "test"), None)


def _write_adapter(
    cell: PlannedCell,
    store: Store,
    draft: Path,
    to: Path,
    dataset: Mapping[str, Any],
    example: Mapping[str, Any] | None,
    say: Say,
) -> Path:
    """Returns where its base is."""
    last = cell.methods[-1] if cell.methods else None
    artifact = store.artifact(last) if last else None
    if last is None or artifact is None or not (artifact.path / ADAPTER).is_dir():
        raise SpecError(f"--format adapter: `{cell.variant}` does not end in an adapter; use `--format hf`")
    shutil.copytree(artifact.path / ADAPTER, draft, dirs_exist_ok=True)
    base = last.resources["base"]
    own_base = "model" in last.inputs or bool(artifact.record.metrics.get("untied_parameters"))
    if own_base:
        # Whole, merged and untied: what the adapter was trained on is not to be had anywhere else.
        parents = {role: parent for role, parent in artifact.inputs.items() if role == "model"}
        parent = load_model(_context(last, parents, say))
        if artifact.record.metrics.get("untied_parameters"):
            untie_head(parent.model)
        if ships := next(iter(cell.evaluations.values())).config.get("ships"):
            cast(parent.model, getattr(torch, ships), only_if_exact=True)
        parent.model.save_pretrained(draft / "base")
        parent.tokenizer.hf.save_pretrained(draft / "base")
        base = Resource(path=(to / "base").resolve())  # PEFT looks for a relative path where it is called from, and not here
    tokenizer = load_tokenizer(last.config["base"], last.resources["base"], artifact)
    tokenizer.hf.save_pretrained(draft)
    name, commit = base.hub or str(base), base.commit
    config_file = draft / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"base_model_name_or_path": name, "revision": commit}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    arguments = f'"{"base" if own_base else name}"' + (f', revision="{commit}"' if commit else "")
    card = model_card(cell, dataset, tokenizer, example, LOAD_ADAPTER.format(base=arguments))
    (draft / CARD).write_text(card, encoding="utf-8")
    return draft / "base" if own_base else base.directory() or Path(name)


def _write_gguf(
    cell: PlannedCell, store: Store, draft: Path, to: Path, dataset: Mapping[str, Any], example: Mapping[str, Any] | None
) -> str:
    last = cell.methods[-1]
    artifact = store.artifact(last)
    shutil.copyfile(artifact.path / GGUF, draft / GGUF)
    LlamaCpp(draft / GGUF, AutoConfig.from_pretrained(artifact.path))  # what was measured, to the byte; raises if not whole
    tokenizer = load_tokenizer(last.config["base"], last.resources["base"], artifact)
    chats = example is not None and example.get("messages") is not None
    (draft / "Modelfile").write_text(modelfile(tokenizer, chats=chats), encoding="utf-8")
    (draft / CARD).write_text(gguf_card(cell, dataset, artifact.record.metrics, chats=chats), encoding="utf-8")
    return f"{to}: `{cell.variant}` for llama.cpp, {artifact.record.metrics['type']}; its README.md says how to run it"


def _write_quantized(
    cell: PlannedCell, store: Store, draft: Path, to: Path, dataset: Mapping[str, Any], example: Mapping[str, Any] | None
) -> str:
    last = cell.methods[-1]
    artifact = store.artifact(last)
    shutil.copytree(artifact.path, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns("record.json"))
    tokenizer = load_tokenizer(last.config["base"], last.resources["base"], artifact)
    if example is not None and example.get("messages"):
        generation = GenerationConfig.from_pretrained(draft)
        generation.eos_token_id = sorted(ending_ids(tokenizer))
        generation.save_pretrained(draft)
    card = model_card(cell, dataset, tokenizer, example, LOADING if (draft / INT8).is_file() else LOAD_WHOLE)
    (draft / CARD).write_text(card, encoding="utf-8")
    return f"{to}: `{cell.variant}` as it was measured, after `{last.kind}`; its README.md says how to load it"


def _context(stage: Stage, inputs: dict, say: Say) -> StageContext:
    config = {**stage.config, "device": "cpu", "precision": "float32" if "train" in stage.config else stage.config["precision"]}
    return StageContext(config, inputs, stage.resources, RunOptions(), Path(), lambda part, **_: say(part))


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """A draft beside `to` that becomes `to` when the block ends well, and nothing otherwise."""
    draft = to.with_name(f".{to.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        # The mode that new files have: safetensors writes its own for their owner alone.
        mask = os.umask(0)
        os.umask(mask)
        for path in draft.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if to.exists():
            to.rmdir()
        draft.rename(to)
    except OSError as error:
        raise StoreError(f"--to: `{to}` cannot be written ({error.strerror}); name another directory") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
