"""What a model costs to use: time to the first token and for each further one, and its size.

Times are of one sequence at a time, or as many as asked, greedy, with the KV cache on, through the model's forward pass alone:
each token is read back from the device before the next step, as whoever shows or checks it must do. Nothing stops the text, so
that every variant makes the same number of tokens.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from paretune.data.tokens import read_tokens
from paretune.errors import DataError
from paretune.evaluate.energy import EnergyMeter
from paretune.model.adapters import count_parameters
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.load import ADAPTER, DEPTH, LoadedModel, cast, load_model
from paretune.pipeline.stage import StageContext
from paretune.study.data import SPLITS
from paretune.study.evaluations import Latency


@dataclass(frozen=True)
class Timing:
    """One repeat, in milliseconds."""

    first_token_ms: float
    """From the prompts on the device to the first new token of each: the whole of them in one pass."""
    ms_per_token: float
    """Mean over the further tokens, one pass with the KV cache each, which makes a token of every sequence."""
    cpu_first_token_ms: float
    cpu_ms_per_token: float
    """Of these times what the thread that waits for the token had a core: less where other work had it."""


def evaluate_latency(context: StageContext) -> dict[str, Any]:
    """Stage body: mean and median over the repeats of wall and processor times, and every repeat in `samples.parquet`.

    A prompt is the prefix token and `prompt_tokens` tokens of real text; the sequences of a batch have different ones.
    `prefill_tokens_per_second` are those of prompts until the first new token, `new_tokens_per_second` those of all sequences,
    and `joules_per_token` all that the machine took for a repeat over its new tokens, where it tells. DataError if prompt and
    new tokens do not fit into the positions of the model, or the dataset has less text than that.
    """
    settings = Latency.model_validate(context.config["evaluation"], strict=False)
    loaded = load_model(context, served=True)
    # The prefix takes a position, the last new token does not: it is made and never read.
    if loaded.max_positions is not None and settings.prompt_tokens + settings.new_tokens > loaded.max_positions:
        raise DataError(
            f"`prompt_tokens: {settings.prompt_tokens}` and `new_tokens: {settings.new_tokens}` exceed the "
            f"{loaded.max_positions} positions of the model; lower one of them"
        )
    # Of the test split; where it is shorter, of validation and train after it.
    rows = (row for split in reversed(SPLITS) for row in read_tokens(context.inputs["tokens"].path, split))
    wanted = settings.batch_size * settings.prompt_tokens
    text = list(islice((token for row in rows for token in row["ids"].tolist()), wanted))
    if len(text) < wanted:
        each = f", for each of {settings.batch_size} sequences," if settings.batch_size > 1 else ""
        raise DataError(
            f"`prompt_tokens: {settings.prompt_tokens}`{each} is more than the dataset holds, {len(text)} tokens; lower it"
        )
    prompts = torch.tensor(text, device=loaded.device).view(settings.batch_size, settings.prompt_tokens)
    ids = torch.cat([prompts.new_full((len(prompts), 1), loaded.tokenizer.prefix_id), prompts], 1)
    timings, joules, meter = [], list[float](), EnergyMeter(loaded.device)
    runs = settings.warmup + settings.repeats
    context.emit(done=0, total=runs)
    for repeat in range(-settings.warmup, settings.repeats):
        meter.joules()
        if isinstance(loaded.model, LlamaCpp):
            timing = time_sequences(loaded.model, ids.tolist(), settings.new_tokens)
        else:
            timing = time_generation(loaded, ids, settings.new_tokens)
        if repeat >= 0:
            timings.append(timing)
            joules += [meter.joules() / (len(ids) * settings.new_tokens)] if meter.tells else []
        context.emit(done=settings.warmup + repeat + 1, total=runs)
    # On a GPU how long a thread has a core says nothing.
    names = [each.name for each in fields(Timing) if loaded.device.type == "cpu" or not each.name.startswith("cpu_")]
    columns = {name: [getattr(timing, name) for timing in timings] for name in names}
    columns |= {"joules_per_token": joules} if joules else {}
    pq.write_table(pa.table({"repeat": list(range(settings.repeats)), **columns}), context.draft / "samples.parquet")
    return {
        **{name: statistics.mean(values) for name, values in columns.items()},
        **{f"{name}_median": statistics.median(values) for name, values in columns.items()},
        "prefill_tokens_per_second": 1e3 * ids.numel() / statistics.median(columns["first_token_ms"]),
        "new_tokens_per_second": 1e3 * len(ids) / statistics.median(columns["ms_per_token"]),
        "threads": torch.get_num_threads(),
    }


def time_generation(loaded: LoadedModel, ids: torch.Tensor, new_tokens: int) -> Timing:
    """Time `new_tokens` (2 or more) greedy tokens after each of `ids`, shape [sequences, tokens], whatever tokens they are."""
    keep_last = {"logits_to_keep": 1} if loaded.model._supports_logits_to_keep() else {}  # as `generate` asks it
    with torch.no_grad():
        if loaded.device.type == "cuda":
            torch.cuda.synchronize(loaded.device)
        started = _clocks()
        output = loaded.model(input_ids=ids, use_cache=True, **keep_last)
        token = output.logits[:, -1:].argmax(-1)
        token.tolist()
        first = _clocks()
        for _ in range(new_tokens - 1):
            output = loaded.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
            token.tolist()
        ended = _clocks()
    return _timing(started, first, ended, new_tokens)


def time_sequences(model: LlamaCpp, ids: Sequence[Sequence[int]], new_tokens: int) -> Timing:
    """The same in llama.cpp; its context is made before the clock starts, as a server has it."""
    sequences, length = range(len(ids)), len(ids[0])
    with model.session(len(ids) * (length + new_tokens), num_sequences=len(ids)) as session:
        started = _clocks()
        tokens = [int(session.read(sequence, ids[sequence], 0, last=1).argmax()) for sequence in sequences]
        first = _clocks()
        for position in range(length, length + new_tokens - 1):
            tokens = session.step(sequences, [position] * len(ids), tokens).argmax(-1).tolist()
        ended = _clocks()
    return _timing(started, first, ended, new_tokens)


def _clocks() -> np.ndarray:
    """Seconds by the wall and of this thread's processor time."""
    return np.array([time.perf_counter(), time.thread_time()])


def _timing(started: np.ndarray, first: np.ndarray, ended: np.ndarray, new_tokens: int) -> Timing:
    (first_wall, first_cpu), (wall, cpu) = (first - started) * 1e3, (ended - first) * 1e3 / (new_tokens - 1)
    return Timing(first_token_ms=first_wall, ms_per_token=wall, cpu_first_token_ms=first_cpu, cpu_ms_per_token=cpu)


def evaluate_size(context: StageContext) -> dict[str, Any]:
    """Stage body: `parameters` (as trained, adapter included), `model_bytes` (the merged weights in the form that
    ships, tied ones once) and `adapter_bytes` (0 without an adapter). Bytes of the tensors, without file headers. What
    runs less of its parent's depth has the bytes of the parent, and the parameters that run.
    """
    model, artifact = load_model(context).model, context.inputs.get("model")
    if artifact is not None and (artifact.path / DEPTH).is_file():
        return evaluate_size(replace(context, inputs=artifact.inputs)) | {"parameters": count_parameters(model)[0]}
    if artifact is not None and (written := artifact.record.metrics.get("written_bytes")):
        return {"parameters": artifact.record.metrics["parameters"], "model_bytes": written, "adapter_bytes": 0}
    if isinstance(model, LlamaCpp):
        assert artifact is not None, "a base is no file of llama.cpp"
        return {"parameters": artifact.record.metrics["parameters"], "model_bytes": model.num_bytes, "adapter_bytes": 0}
    cast(model, getattr(torch, context.config.get("ships") or context.config["precision"]))
    if artifact is None or not (artifact.path / ADAPTER).is_dir():
        return {"parameters": count_parameters(model)[0], "model_bytes": weight_bytes(model), "adapter_bytes": 0}
    return {
        "parameters": artifact.record.metrics["parameters"],
        "model_bytes": weight_bytes(model),
        "adapter_bytes": adapter_bytes(artifact.path / ADAPTER),
    }


def weight_bytes(model: torch.nn.Module) -> int:
    """Of parameters and saved buffers as `model` holds them; tied weights count once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def adapter_bytes(directory: Path) -> int:
    """Of the tensors of a PEFT adapter, in the precision that they are stored in."""
    tensors = load_file(directory / "adapter_model.safetensors").values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
