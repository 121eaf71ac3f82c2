"""What busy processes beside them cost training, scoring and generation, against the fair share of the cores.

    python benchmarks/beside.py [--sizes 0.26M ...] [--work train ...] [--busy 0 1 2 3] [--settings ours ...] [--seconds S]

Each setting is a process of its own, and they work in turns on the same texts and models (weights at random): `ours` as a stage
of a study does, `one thread`, `spinning` with the threads and waiting that torch has by itself, and as a `peer` the Trainer, a
plain forward pass with its loss, and `generate`. Beside k busy processes on c cores a share is fair that is c / (k + 1) of
them, one core at most: the processor time that one thread takes, times (k + 1) / c. Prints a row of Markdown for each, in
milliseconds of wall time (processor time) a step, a pass over the texts, or answers to four prompts.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peers.turns import Turns, Worker
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from paretune.data.trees import Example
from paretune.evaluate.answers import Prompt, write_answers
from paretune.model.forward import packed_model, score
from paretune.model.fused import fuse
from paretune.model.load import LoadedModel
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.threads import Threads
from paretune.study.train import Train
from paretune.train.allocator import keep_freed_memory
from paretune.train.loop import Run, fit

SETTINGS = ("ours", "one thread", "spinning", "peer")
CORES = os.cpu_count() or 1
LENGTH, PROMPT_TOKENS, PROMPTS = 128, 64, 4
PRECISION = "bfloat16"
"""Of training; scores and texts are made in float32."""


@dataclass(frozen=True)
class Size:
    config: PretrainedConfig
    texts: int
    """Of a step, and of a pass that scores."""
    new_tokens: int


SIZES = {
    "0.26M": Size(
        LlamaConfig(
            hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4,
            vocab_size=512, tie_word_embeddings=True,
        ),
        texts=16,
        new_tokens=64,
    ),
    "3.4M": Size(
        LlamaConfig(
            hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6, vocab_size=4096,
            tie_word_embeddings=True,
        ),
        texts=16,
        new_tokens=64,
    ),
    "82M": Size(GPT2Config(n_layer=6), texts=4, new_tokens=8),
}  # fmt: skip
Unit = Callable[[], object]
"""Called after each unit of work; raises _Enough."""


class _Enough(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--work", nargs="*", choices=WORK, default=list(WORK))
    parser.add_argument("--busy", nargs="*", type=int, default=[0, 1, 2, 3], help="processes beside")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn lasts, two units at least")
    parser.add_argument("--serve", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    print(f"{fingerprint()['processor']}, {CORES} cores, Python {platform.python_version()}, torch {torch.__version__}\n")
    print(
        "| size | work | busy beside | " + " | ".join(["fair", *arguments.settings, "ours / fair", "peer / its quiet"]) + " |"
    )
    print("|" + "---|" * (5 + len(arguments.settings) + 1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for name in arguments.settings:
            command = [sys.executable, __file__, "--serve", name]
            workers[name] = Worker(command, {"TOKENIZERS_PARALLELISM": "false"}, Path(folder) / f"{name}.log")
        for worker in workers.values():
            worker.hear()
        for size in arguments.sizes:
            for work in arguments.work:
                asked = json.dumps({"size": size, "work": work, "seconds": arguments.seconds})
                table = {}
                for count in arguments.busy:
                    with busy(count):
                        table[count] = {name: worker.ask(asked) for name, worker in workers.items()}
                print_rows(size, work, table)
        for worker in workers.values():
            worker.end()


def print_rows(size: str, work: str, table: dict[int, dict[str, Any]]) -> None:
    alone = min(timed["one thread"]["cpu"] for timed in table.values() if "one thread" in timed)
    for count, timed in table.items():
        fair = alone * max(1.0, (count + 1) / CORES)
        cells = [f"{1e3 * each['wall']:,.0f} ({1e3 * each['cpu']:,.0f})" for each in timed.values()]
        share = f"{timed['ours']['wall'] / fair:.2f}" if "ours" in timed else ""
        peer = f"{timed['peer']['wall'] / table[min(table)]['peer']['wall']:.1f}" if "peer" in timed else ""
        print(f"| {size} | {work} | {count} | {1e3 * fair:,.0f} | " + " | ".join([*cells, share, peer]) + " |", flush=True)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end, by the plain scheduling of everybody."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        time.sleep(1.0 if count else 0.0)  # until whoever watches the load has seen it
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


def serve(setting: str) -> None:
    """Answer each turn with seconds of wall and processor time a unit."""
    turns = Turns()
    keep_freed_memory()
    threads = 1 if setting == "one thread" else torch.get_num_threads()
    torch.set_num_threads(threads)
    models = {}
    for name, size in SIZES.items():
        torch.manual_seed(0)
        models[name] = AutoModelForCausalLM.from_config(size.config, attn_implementation="sdpa").eval()
        models[name].generation_config.eos_token_id = None
    turns.tell(ready=True)
    while True:
        asked = json.loads(turns.take())
        work = WORK[asked["work"]][setting == "peer"]
        marks: list[np.ndarray] = []

        def unit(seconds: float = asked["seconds"], marks: list[np.ndarray] = marks, **_: Any) -> None:
            marks.append(np.array([time.perf_counter(), time.process_time()]))
            if len(marks) > 2 and marks[-1][0] - marks[0][0] > seconds:
                raise _Enough

        size, model = SIZES[asked["size"]], copy.deepcopy(models[asked["size"]])
        draw = np.random.default_rng(0)
        texts = draw.integers(3, size.config.vocab_size, (size.texts, LENGTH)).astype(np.int32)
        try:
            if setting == "ours":
                with Threads(threads):
                    work(model, texts, size, unit)
            else:
                work(model, texts, size, unit)
        except _Enough:
            # The first unit is not among them: it warms up.
            wall, cpu = (statistics.median(each) for each in np.diff(marks, axis=0).T.tolist())
            turns.tell(wall=wall, cpu=cpu)


def train(model: PreTrainedModel, texts: np.ndarray, size: Size, unit: Unit) -> None:
    given = {"epochs": None, "max_steps": 10**6, "batch_size": size.texts, "max_length": LENGTH, "evaluate_every": 10**6}
    examples = [Example(ids) for ids in texts]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            train=Train.model_validate(given | {"early_stopping": None}),
            learning_rate=1e-4,
            seed=0,
            precision=PRECISION,
            device="cpu",
            options={"forward_tokens": 4096, "accumulate": 1, "pack": True, "recompute": False},
            checkpoint_seconds=1e9,
            resume=Path(folder),
            emit=unit,
        )
        fit(packed_model(model), examples, examples[:1], run)


def train_by_peer(model: PreTrainedModel, texts: np.ndarray, size: Size, unit: Unit) -> None:
    class AfterStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            unit()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=size.texts, max_steps=10**6, learning_rate=1e-4, bf16=True,
            use_cpu=True, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        rows = [{"input_ids": ids, "labels": ids} for ids in texts.tolist()]
        Trainer(model, arguments, train_dataset=rows, callbacks=[AfterStep()]).train()  # type: ignore[arg-type]  # a list does


def score_texts(model: PreTrainedModel, texts: np.ndarray, _: Size, unit: Unit) -> None:
    fuse(model)
    packed = packed_model(model)
    while True:
        list(score(packed, [Example(ids) for ids in texts], forward_tokens=4096))
        unit()


def score_by_peer(model: PreTrainedModel, texts: np.ndarray, _: Size, unit: Unit) -> None:
    ids = torch.tensor(texts, dtype=torch.long)
    while True:
        with torch.inference_mode():
            model(input_ids=ids, labels=ids).loss.item()
        unit()


def generate(model: PreTrainedModel, texts: np.ndarray, size: Size, unit: Unit) -> None:
    tokenizer: Any = SimpleNamespace(stop_ids=set(), special_ids=set(), pad_id=0, decode=lambda ids: " ".join(map(str, ids)))
    loaded = LoadedModel(model, tokenizer, torch.device("cpu"), None)
    prompts = [Prompt(ids[:PROMPT_TOKENS], ids[:0], size.new_tokens) for ids in texts[:PROMPTS]]
    while True:
        write_answers(loaded, prompts)
        unit()


def generate_by_peer(model: PreTrainedModel, texts: np.ndarray, size: Size, unit: Unit) -> None:
    ids = torch.tensor(texts[:PROMPTS, :PROMPT_TOKENS], dtype=torch.long)
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": size.new_tokens, "pad_token_id": 0, "do_sample": False}
    while True:
        model.generate(ids, **given)
        unit()


WORK = {"train": (train, train_by_peer), "score": (score_texts, score_by_peer), "generate": (generate, generate_by_peer)}


if __name__ == "__main__":
    main()
