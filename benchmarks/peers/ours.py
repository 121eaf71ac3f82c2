"""Paretune's side: the stages of a study as `paretune run` runs them, in one process that waits for its turn.

    python ours.py KIND STUDY FILE COUNT [--recompute]

KIND is train-lora, train-full, choices or generate. Into FILE goes what the peer must be given to do the same work; COUNT is
the number of questions, or of articles whose tasks are answered, in a turn.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from turns import Turns, now

from paretune.api import OpenStudy, open_study
from paretune.data.examples import examples_of
from paretune.data.questions import read_questions, request_of
from paretune.data.templates import parse_template
from paretune.data.tokenizer import load_tokenizer, read_tokens
from paretune.data.trees import unshared
from paretune.evaluate.answers import write_answers
from paretune.evaluate.qa import answer_likelihoods, choices_of
from paretune.evaluate.tasks import prompts_of, questions_of
from paretune.model.load import load_model
from paretune.pipeline.stage import RunOptions, Stage, StageContext
from paretune.pipeline.worker import RunContext, run_stage
from paretune.study.evaluations import Qa
from paretune.study.registry import load_function
from paretune.train.loop import step_examples

OPTIONS = RunOptions(device="cpu", checkpoint_seconds=1e9, recompute="--recompute" in sys.argv)


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


def main(kind: str, study: Path, shared: Path, per_turn: int) -> None:
    turns = Turns()
    opened = open_study(study, device="cpu")
    opened.store.prepare()
    run = RunContext(opened.store.root.resolve(), "bench", OPTIONS, tuple(sys.argv), None)
    for stage in (*opened.plan.data.values(), *opened.plan.tokens.values()):
        if opened.store.find(stage) is None:
            run_stage(stage, opened.store, run)
    {"choices": serve_choices, "generate": serve_generation}.get(kind, serve_training)(opened, turns, shared, kind, per_turn)


def serve_training(opened: OpenStudy, turns: Turns, shared: Path, kind: str, _: int) -> None:
    """One optimizer step a turn. The loop reports each step; the report waits there for the next turn."""
    variant = kind.removeprefix("train-")
    (stage,) = next(cell.methods for cell in opened.plan.cells if cell.variant == variant)
    steps = _steps(opened, stage)
    shared.write_text(json.dumps({"steps": steps, "train": stage.config["train"], "method": stage.config["method"]}))
    turns.tell(ready=True, precision=stage.config["precision"], threads=torch.get_num_threads())
    clock = {"start": 0.0}
    counter: list[Operations] = []

    def wait() -> None:
        if turns.take() == "count":
            counter.append(Operations())
            counter[0].__enter__()
        clock["start"] = now()

    def emit(*, done: int, loss: float | None = None, **_: Any) -> None:
        if loss is None:  # no step, but loading or validation
            return
        said = {"seconds": now() - clock["start"], "loss": loss, "tokens": _num_tokens(steps[done - 1])}
        if counter:
            counter[0].__exit__(None, None, None)
            said["flop"] = counter.pop().total
        turns.tell(**said)
        wait()

    context = _context(opened, stage, emit)
    wait()
    load_function(stage.body)(context)


def serve_choices(opened: OpenStudy, turns: Turns, shared: Path, _: str, per_turn: int) -> None:
    """The next questions a turn, from their texts to log-likelihoods."""
    stage = next(cell for cell in opened.plan.cells if cell.variant == "base").evaluations["qa"]
    settings = Qa.model_validate(stage.config["evaluation"], strict=False)
    questions = read_questions(str(stage.resources["items"]))
    prompt, option = parse_template(settings.prompt), parse_template(settings.answer)
    requests = [request_of(question, prompt, option) for question in questions]
    loaded = load_model(_context(opened, stage, lambda **_: None), fused=True)
    shared.write_text(json.dumps({"per_turn": per_turn}))
    turns.tell(ready=True, precision=stage.config["precision"], threads=torch.get_num_threads())
    for first in _places(turns, len(questions), per_turn):
        asked = requests[first : first + per_turn]
        start = now()
        found = answer_likelihoods(loaded, asked, OPTIONS.forward_tokens)
        seconds = now() - start
        taken = [choices_of(each.question, one)[0] for each, one in zip(asked, found, strict=True)]
        right = {
            metric: sum(choice[metric] == each.question.answer_index for each, choice in zip(asked, taken, strict=True))
            for metric in ("accuracy", "accuracy_unnormalised")
        }
        tokens = sum(len(loaded.tokenizer.encode(each.prompt + text)) + 1 for each in asked for text in each.answers)
        turns.tell(seconds=seconds, tokens=tokens, sums=[one.sums for one in found], **right)


def serve_generation(opened: OpenStudy, turns: Turns, shared: Path, _: str, per_turn: int) -> None:
    """The four tasks of the next articles a turn."""
    stage = next(cell for cell in opened.plan.cells if cell.variant == "base").evaluations["tasks"]
    loaded = load_model(_context(opened, stage, lambda **_: None), fused=True)
    (tokens,) = opened.plan.tokens.values()
    rows = read_tokens(opened.store.artifact(tokens).path, "train")
    tasks = next(iter(opened.study.data.values())).scored
    asked = prompts_of(questions_of(rows), tasks, loaded)
    given = [[*prompt.context.tolist(), *prompt.ids.tolist()] for prompt in asked]
    shared.write_text(json.dumps({"per_turn": per_turn * len(tasks), "prompts": given, "limit": asked[0].max_new_tokens}))
    turns.tell(ready=True, precision=stage.config["precision"], threads=torch.get_num_threads())
    for first in _places(turns, len(asked), per_turn * len(tasks)):
        start = now()
        answers = write_answers(loaded, asked[first : first + per_turn * len(tasks)])
        seconds = now() - start
        turns.tell(seconds=seconds, tokens=sum(len(a.ids) for a in answers), answers=[a.ids for a in answers])


def _places(turns: Turns, count: int, per_turn: int) -> Iterator[int]:
    """Where each turn begins; from the beginning again at the end."""
    for first in itertools.cycle(range(0, count - per_turn + 1, per_turn)):
        turns.take()
        yield first


def _steps(opened: OpenStudy, stage: Stage) -> list[list[dict[str, Any]]]:
    """What each step holds, as whole sequences: the loop's own order."""
    settings, (tokens,) = stage.config["train"], opened.plan.tokens.values()
    base = stage.config["base"], stage.resources["base"]
    rows = read_tokens(opened.store.artifact(tokens).path, "train")
    examples = examples_of(rows, load_tokenizer(*base), settings["max_length"])
    chosen = [
        step_examples(examples, step, settings["batch_size"], stage.config["seed"])
        for step in range(1, settings["max_steps"] + 1)
    ]
    whole = [[unshared(example) for example in step] for step in chosen]
    return [[{"ids": each.ids.tolist(), "first_target": each.first_target} for each in step] for step in whole]


def _num_tokens(step: list[dict[str, Any]]) -> int:
    return sum(len(example["ids"]) for example in step)


def _context(opened: OpenStudy, stage: Stage, emit: Any) -> StageContext:
    inputs = {role: opened.store.artifact(parent) for role, parent in stage.inputs.items()}
    return StageContext(stage.config, inputs, stage.resources, OPTIONS, opened.store.open_draft(stage), emit)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
