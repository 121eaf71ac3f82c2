"""A whole study against the same work done by hand: four variants trained, written with, and scored.

python benchmarks/by_hand.py --data DIR --base DIR [--articles 24] [--held-out 8] [--epochs 2] [--threads 1] [--keep DIR]

DIR is a folder with `bmw/articles.jsonl` and `bmw/qa.json`, the base one of Llama's kind in Hugging Face format. The study:
four tasks an article, the base as it is and without its last block, each untrained and with LoRA; perplexity of the
completions, answers to the tasks, likelihood of the answers to the questions. By hand (`peers/hand.py`, in the environment of
the peers) it is Hugging Face Trainer with PEFT, `generate`, and the likelihoods of lm-evaluation-harness, each at a setting
that was fast in `against_peers.py`, on the same tokens in the same steps: reading the data and making tokens is not counted
of the hand. Both run by themselves, one after the other, from start to end.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from against_peers import OFFLINE, install_peers, print_machine

from paretune.api import OpenStudy, open_study
from paretune.data.examples import examples_of
from paretune.data.questions import read_questions, request_of
from paretune.data.templates import parse_template
from paretune.data.tokenizer import read_tokens
from paretune.data.trees import unshared
from paretune.evaluate.tasks import prompts_of, questions_of
from paretune.model.load import load_model
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.study.evaluations import Qa
from paretune.train.loop import step_examples

HERE = Path(__file__).parent
ASKED = {
    "summary": ("Summarise this press release.", "{{ summary }}", 64),
    "title": ("Write its title.", "{{ title }}", 32),
    "tags": ("List its tags.", "{{ tags | join(', ') }}", 32),
    "type": ("Name its type.", "{{ type }}", 8),
}
LORA = {"train.lora": {"r": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear", "learning_rate": 1e-3}}
SHORTER = {"prune.blocks": {"count": 1, "choose": "last"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--articles", type=int, default=24, help="that are trained on")
    parser.add_argument("--held-out", type=int, default=8, help="that are tested on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-environment", default=".venv-peers")
    parser.add_argument("--keep", help="folder that is left behind")
    arguments = parser.parse_args()
    python = install_peers(arguments.peers_environment)
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="by-hand-"))
    folder.mkdir(parents=True, exist_ok=True)
    study = write_study(folder, arguments)
    environment = {**OFFLINE, "OMP_NUM_THREADS": str(arguments.threads)}
    run = [
        sys.executable,
        "-m",
        "paretune.cli",
        "run",
        str(study),
        "--store",
        str(folder / "store"),
        "--out",
        str(folder / "out"),
    ]
    ours = cost(run, environment, folder / "ours.log")
    opened = open_study(study, store=str(folder / "store"))
    given = folder / "hand.json"
    given.write_text(json.dumps(work_of(opened, arguments.threads)))
    theirs = cost([str(python), str(HERE / "peers/hand.py"), str(given)], environment, folder / "hand.log")
    arguments.clock = "both"
    print_machine(arguments, opened.lock.compute)
    told = json.loads(given.with_suffix(".out.json").read_text())
    print("| | wall s | CPU s |\n|---|---|---|")
    for name, (wall, cpu) in (("paretune run", ours), ("by hand", theirs)):
        print(f"| {name} | {wall:,.0f} | {cpu:,.0f} |")
    print(f"| times as fast | {theirs[0] / ours[0]:.2f} | {theirs[1] / ours[1]:.2f} |\n")
    print("by hand, wall s: " + ", ".join(f"{name} {seconds:,.0f}" for name, seconds in told["seconds"].items()))
    print(agreement(opened, told))


def write_study(folder: Path, arguments: argparse.Namespace) -> Path:
    """Data and study file; JSON, which is YAML."""
    lines = (Path(arguments.data) / "bmw/articles.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [
        each for each in map(json.loads, lines) if all(each.get(n) for n in ("title", "summary", "tags", "type", "content"))
    ]
    count = arguments.articles + 2 * arguments.held_out
    (folder / "articles.jsonl").write_text("".join(json.dumps(each) + "\n" for each in whole[:count]), encoding="utf-8")
    head = "system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\n{{ content }}\n\n"
    tasks: dict[str, Any] = {
        name: {"prompt": f"{ask}<|im_end|>\n<|im_start|>assistant\n", "completion": text, "max_new_tokens": most}
        for name, (ask, text, most) in ASKED.items()
    }
    for name, task in tasks.items():
        task["score"] = ["set_f1"] if name == "tags" else ["exact_match"] if name == "type" else ["rouge_l"]
    share = arguments.held_out / count
    study = {
        "study": "by-hand",
        "bases": {"base": {"path": str(Path(arguments.base).resolve())}},
        "data": {
            "news": {
                "source": {"path": "articles.jsonl"},
                "document": "title",
                "split": {"train": 1 - 2 * share, "validation": share, "test": share},
                "leakage": "allow",
                "too_long": "cut",
                "context": head,
                "tasks": tasks,
            }
        },
        "train": {
            "max_steps": len(ASKED) * arguments.articles * arguments.epochs // 8,
            "batch_size": 8,
            "max_length": 768,
            "schedule": "constant",
            "warmup": 0.0,
            "keep": "last",
            "evaluate_every": 10**6,  # the hand does not validate
        },
        "variants": {"base": [], "base-shorter": [SHORTER], "tuned": [LORA], "tuned-shorter": [SHORTER, LORA]},
        "evaluate": {"perplexity": {"splits": ["test"]}, "qa": {"path": str((Path(arguments.data) / "bmw/qa.json").resolve())}},
    }
    file = folder / "study.yaml"
    file.write_text(json.dumps(study, indent=1))
    return file


def cost(command: list[str], environment: dict[str, str], log: Path) -> tuple[float, float]:
    """Wall and processor seconds of a command and all that it starts, whoever waits for it."""
    adopt = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): the server that forks the workers outlives the run by a moment
    ctypes.CDLL(None).prctl(adopt, 1, 0, 0, 0)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as out:
        done = subprocess.run(command, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT, check=False)
    wall = time.perf_counter() - start
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ... ended with {done.returncode}; see {log}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def work_of(opened: OpenStudy, threads: int) -> dict[str, Any]:
    """What the hand does the same work from: token ids of the steps, prompts, completions and questions."""
    (tokens,) = opened.plan.tokens.values()
    stage = next(cell.methods[0] for cell in opened.plan.cells if cell.variant == "tuned")
    size = next(cell for cell in opened.plan.cells if cell.variant == "base").evaluations["perplexity"]
    loaded = load_model(StageContext(size.config, {}, size.resources, RunOptions(), Path(), lambda **_: None))
    train, seed = stage.config["train"], stage.config["seed"]
    learned = examples_of(read_tokens(opened.store.artifact(tokens).path, "train"), loaded.tokenizer, train["max_length"])
    numbers = range(1, train["max_steps"] + 1)
    steps = [[unshared(each) for each in step_examples(learned, n, train["batch_size"], seed)] for n in numbers]
    rows = read_tokens(opened.store.artifact(tokens).path, "test")
    completions = [unshared(each) for each in examples_of(rows, loaded.tokenizer, 768, end=False)]
    prompts = prompts_of(questions_of(rows), next(iter(opened.study.data.values())).scored, loaded)
    settings = Qa.model_validate({"path": str(opened.study.evaluate["qa"].config.path)}, strict=False)
    prompt, answer = parse_template(settings.prompt), parse_template(settings.answer)
    requests = [request_of(question, prompt, answer) for question in read_questions(str(settings.path))]
    encode = loaded.tokenizer.encode
    asked = [([loaded.tokenizer.prefix_id, *encode(one.prompt)], encode(text)) for one in requests for text in one.answers]
    return {
        "base": str(stage.resources["base"]),
        "variants": {
            "base": [False, False],
            "base-shorter": [True, False],
            "tuned": [False, True],
            "tuned-shorter": [True, True],
        },
        "steps": [[{"ids": each.ids.tolist(), "first_target": each.first_target} for each in step] for step in steps],
        "train": train,
        "method": stage.config["method"],
        "prompts": [[*prompt.context.tolist(), *prompt.ids.tolist()] for prompt in prompts],
        "limits": [prompt.max_new_tokens for prompt in prompts],
        "pairs": [(each.ids[: each.first_target].tolist(), each.ids[each.first_target :].tolist()) for each in completions],
        "asked": asked,
        "precision": stage.config["precision"],
        "threads": threads,
    }


def agreement(opened: OpenStudy, told: dict[str, Any]) -> str:
    """How near the two come: mean loss of the completions of each variant."""
    results = pd.read_csv(opened.file.parent / "out" / "results.csv")
    of_all = (results["metric"] == "loss") & (results["split"] == "test") & results["slice"].isna()
    ours = results[of_all].set_index("variant")["value"]
    lines = ["| variant | loss, ours | by hand |", "|---|---|---|"]
    for name, hand in told["loss"].items():
        lines.append(f"| {name} | {ours[name]:.4f} | {hand:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
