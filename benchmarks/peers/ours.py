"""Paretune's side: the stages of a study as `paretune run` runs them, in one process that waits for its turn.

    python ours.py KIND STUDY FILE

KIND is train-lora, train-full, choices or generate. Into FILE goes what the peer must be given to do the same work.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from turns import Turns

from paretune.api import OpenStudy, open_study
from paretune.data.examples import examples_of
from paretune.data.requests import request_of
from paretune.data.questions import read_questions
from paretune.data.templates import parse_template
from paretune.data.tokenizer import load_tokenizer, read_tokens
from paretune.data.trees import unshared
from paretune.evaluate.branches import answer
from paretune.evaluate.qa import answer_likelihoods, choices_of
from paretune.evaluate.tasks import asks_of
from paretune.model.load import load_model
from paretune.model.precision import matmul_gflops
from paretune.pipeline.stage import RunOptions, Stage, StageContext
from paretune.pipeline.worker import RunContext, run_stage
from paretune.spec.evaluations import Qa
from paretune.spec.registry import load_function
from paretune.train.loop import step_examples

OPTIONS = RunOptions(device="cpu", checkpoint_seconds=1e9)
NUM_ARTICLES = 8
"""Whose tasks are answered in one turn."""


class Operations(TorchDispatchMode):
    """Counts the operations of matrix products while it is entered; two for each multiplication with its addition."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        if name is torch.ops.aten.addmm_:  # in place, which torch's table does not know
            name = torch.ops.aten.addmm
        if name in flop_registry:
            self.total += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        return out


def main(kind: str, study: Path, shared: Path) -> None:
    turns = Turns()
    opened = open_study(study, device="cpu")
    opened.store.prepare()
    run = RunContext(opened.store.root.resolve(), "bench", OPTIONS, tuple(sys.argv), None)
    for stage in (*opened.plan.data.values(), *opened.plan.tokens.values()):
        if opened.store.find(stage) is None:
            run_stage(stage, opened.store, run)
    {"choices": serve_choices, "generate": serve_generation}.get(kind, serve_training)(opened, turns, shared, kind)


def serve_training(opened: OpenStudy, turns: Turns, shared: Path, kind: str) -> None:
    """One optimizer step a turn. The loop reports each step; the report waits there for the next turn."""
    variant = kind.removeprefix("train-")
    (stage,) = next(cell.methods for cell in opened.plan.cells if cell.variant == variant)
    steps = _steps(opened, stage)
    shared.write_text(json.dumps({"steps": steps, "train": stage.config["train"], "method": stage.config["method"]}))
    turns.tell(ready=True, precision=stage.config["precision"], threads=torch.get_num_threads())
    clock = {"start": 0.0}
    counter: list[Operations] = []

    def wait() -> None:
        while (command := turns.take()) != "step":
            if command == "count":
                counter.append(Operations())
                counter[0].__enter__()
                break
            turns.tell(gflops=matmul_gflops(getattr(torch, stage.config["precision"]), torch.device("cpu")))
        clock["start"] = time.perf_counter()

    def emit(*, done: int, loss: float, **_: Any) -> None:
        said = {"seconds": time.perf_counter() - clock["start"], "loss": loss, "tokens": _num_tokens(steps[done - 1])}
        if counter:
            counter[0].__exit__(None, None, None)
            said["flop"] = counter.pop().total
        turns.tell(**said)
        wait()

    context = _context(opened, stage, emit)
    wait()
    load_function(stage.body)(context)


def serve_choices(opened: OpenStudy, turns: Turns, shared: Path, _: str) -> None:
    """All questions a turn, from their texts to log-likelihoods."""
    stage = next(cell for cell in opened.plan.cells if cell.variant == "base").evaluations["qa"]
    settings = Qa.model_validate(stage.config["evaluation"], strict=False)
    questions = read_questions(stage.resources["items"])
    prompt, option = parse_template(settings.prompt), parse_template(settings.answer)
    requests = [request_of(question, prompt, option) for question in questions]
    loaded = load_model(_context(opened, stage, lambda **_: None))
    tokens = sum(len(loaded.tokenizer.encode(r.prompt + text)) + 1 for r in requests for text in r.answers)
    turns.tell(ready=True, precision=stage.config["precision"], threads=torch.get_num_threads())
    while turns.take():
        start = time.perf_counter()
        found = answer_likelihoods(loaded, requests, OPTIONS.forward_tokens)
        seconds = time.perf_counter() - start
        taken = [choices_of(q, each)[0] for q, each in zip(questions, found, strict=True)]
        right = {
            metric: sum(choice[metric] == q.answer_index for q, choice in zip(questions, taken, strict=True)) / len(questions)
            for metric in ("accuracy", "accuracy_unnormalised")
        }
        shared.write_text(json.dumps({"sums": [each.sums for each in found], **right}))
        turns.tell(seconds=seconds, tokens=tokens)


def serve_generation(opened: OpenStudy, turns: Turns, shared: Path, _: str) -> None:
    """The four tasks of some articles a turn."""
    stage = next(cell for cell in opened.plan.cells if cell.variant == "base").evaluations["tasks"]
    loaded = load_model(_context(opened, stage, lambda **_: None))
    (tokens,) = opened.plan.tokens.values()
    rows = read_tokens(opened.store.artifact(tokens).path, "train")[: 4 * NUM_ARTICLES]
    tasks = next(iter(opened.study.data.values())).scored
    asks = asks_of(rows, tasks, loaded)
    given = [[*ask.trunk.tolist(), *ask.prompt.tolist()] for ask in asks]
    turns.tell(ready=True, precision=stage.config["precision"], threads=torch.get_num_threads())
    while turns.take():
        start = time.perf_counter()
        answers = answer(loaded, asks)
        seconds = time.perf_counter() - start
        shared.write_text(json.dumps({"prompts": given, "limit": asks[0].limit, "answers": [a.ids for a in answers]}))
        turns.tell(seconds=seconds, tokens=sum(len(a.ids) for a in answers))


def _steps(opened: OpenStudy, stage: Stage) -> list[list[dict[str, Any]]]:
    """What each step holds, as whole sequences: the loop's own order."""
    settings, (tokens,) = stage.config["train"], opened.plan.tokens.values()
    base = stage.config["base"], stage.resources["base"]
    rows = read_tokens(opened.store.artifact(tokens).path, "train")
    examples = examples_of(rows, load_tokenizer(*base), settings["max_length"])
    chosen = [
        step_examples(examples, step, settings["batch_size"], stage.config["seed"]) for step in range(1, settings["max_steps"] + 1)
    ]
    whole = [[unshared(example) for example in step] for step in chosen]
    return [[{"ids": each.ids.tolist(), "first_target": each.first_target} for each in step] for step in whole]


def _num_tokens(step: list[dict[str, Any]]) -> int:
    return sum(len(example["ids"]) for example in step)


def _context(opened: OpenStudy, stage: Stage, emit: Any) -> StageContext:
    inputs = {role: opened.store.artifact(parent) for role, parent in stage.inputs.items()}
    return StageContext(stage.config, inputs, stage.resources, OPTIONS, opened.store.open_draft(stage), emit)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
