"""Kill studies at random moments, run them again until they are done, and compare with runs that nobody disturbed.

    python benchmarks/kills.py [--kills 80] [--pairs 20] [--commands 6]

Three ways: one study alone, two studies with common stages side by side on one store, and the command itself. A kill takes the
whole process group: half of them with -9, the others by SIGTERM or SIGHUP, after which a training leaves a checkpoint. The
processes of the first two ways are forked from this one, which has imported torch already, so that a kill costs about a second;
those of the command start from nothing. Model and data are made here; nothing is fetched.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from paretune.api import open_results, open_study, run
from paretune.pipeline import executors
from paretune.pipeline.stage import RunOptions
from paretune.pipeline.worker import PRELOAD
from paretune.report.outputs import write_outputs
from tests.conftest import write_notes, write_questions
from tests.tiny import make_model

CHECKPOINT_SECONDS = 0.1
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
STARTUP, COMMAND_STARTUP, OVERHEAD = 0.4, 8.0, 0.2
"""Seconds before the first stage, of the two ways to start, and of each stage beside its body."""
WAITING = "waiting for the other"
IS_TIME = re.compile("seconds|_ms|ms_per|per_second|peak_memory")
HEAD = """
study: {name}
bases: {{tiny: {{path: model}}}}
data:
  notes: {{source: {{path: notes.jsonl}}, document: title, text: "{{{{ title }}}}\\n\\n{{{{ content }}}}", leakage: allow}}
train: {{epochs: 2, batch_size: 4, max_length: 96, evaluate_every: 15}}
precision: {{compute: float32}}
variants:
  base: []
  full: [{{train.full: {{learning_rate: 1.0e-3}}}}]
"""
VARIANTS = {
    "alone": """
  lora: [{train.lora: {r: 4, dropout: 0.1, targets: all-linear, learning_rate: 5.0e-3}}]
  shorter: [{prune.blocks: {count: 1}}, {train.lora: {r: 4, dropout: 0.1, targets: all-linear, learning_rate: 5.0e-3}}]
""",
    "other": """
  shortest: [{prune.blocks: {blocks: [0, 2]}}, {train.lora: {r: 8, dropout: 0.2, learning_rate: 5.0e-3}}]
""",
}
TAIL = """
evaluate:
  perplexity: {}
  qa: {path: qa.json, slice_by: [difficulty]}
  generate: {prompts: ["The train", "A lamp"], max_new_tokens: 24}
  latency: {prompt_tokens: 8, new_tokens: 8, repeats: 3, warmup: 1}
"""


@dataclass
class Tally:
    """What the kills of one way have hit, and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    """By kind of the stage that was worked on."""
    signals: Counter[str] = field(default_factory=Counter)
    """Kills by signal."""
    studies: int = 0
    """That were killed again and again until they were done."""
    rounds: int = 0
    """Times that a store was begun."""
    differences: list[str] = field(default_factory=list)
    lost_steps: int = 0
    """As seen at each kill: steps of the journal beyond the newest checkpoint."""
    most_steps: int = 0
    most_seconds: float = 0.0
    repeated: dict[str, int] = field(default_factory=dict)
    """Steps that the records call repeated, by round and stage."""
    journal_lines: dict[str, int] = field(default_factory=dict)
    """Length of each journal of this round at the last kill."""

    def begin(self) -> None:
        self.rounds += 1
        self.journal_lines.clear()


@dataclass
class Attempt:
    """One run of one study in a process group of its own."""

    study: Path
    store: Path
    pid: int
    position: int
    """Of the end of the store's events when it began."""
    startup: float
    """Seconds before its first stage, about."""
    status: int | None = None

    def poll(self, *, block: bool = False) -> int | None:
        """Its exit code once it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def kill(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)
        self.poll(block=True)

    def events(self) -> list[dict[str, Any]]:
        """What the run has told, beginning with its number."""
        file = self.store / "events.jsonl"
        if not file.exists():
            return []
        with file.open("rb") as stream:
            stream.seek(self.position)
            events = [json.loads(line) for line in stream if line.endswith(b"\n")]
        run = next((event["run"] for event in events if event.get("pid") == self.pid), None)
        return [event for event in events if event["run"] == run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=80, help="of one study alone")
    parser.add_argument("--pairs", type=int, default=20, help="of one of two studies side by side")
    parser.add_argument("--commands", type=int, default=5, help="of the command")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, started = random.Random(arguments.seed), time.monotonic()
    for module in PRELOAD:
        import_module(module)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        studies = {study: folder / study / "study.yaml" for study in VARIANTS}
        for study, file in studies.items():
            in_child(make_study, file, study)
        expected = {study: undisturbed(file) for study, file in studies.items()}
        tallies = {
            "one study alone": kill_alone(studies["alone"], expected["alone"], arguments.kills, draw),
            "two side by side": kill_pairs(studies, expected, arguments.pairs, draw),
            "the command": kill_alone(studies["alone"], expected["alone"], arguments.commands, draw, command=True),
        }
    show(tallies, time.monotonic() - started)
    sys.exit(any(tally.differences for tally in tallies.values()))


def make_study(file: Path, name: str) -> None:
    folder = file.parent
    folder.mkdir()
    make_model("gpt2", folder / "model", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    write_notes(folder / "notes.jsonl", count=60)
    write_questions(folder / "qa.json")
    file.write_text(HEAD.format(name=name).rstrip() + VARIANTS[name].rstrip() + TAIL, encoding="utf-8")


def undisturbed(study: Path) -> dict[str, Any]:
    store = study.parent / "undisturbed"
    if start(study, store).poll(block=True):
        sys.exit(f"the undisturbed run failed:\n{(study.parent / 'output').read_text()}")
    return in_child(answer, study, store)


def kill_alone(study: Path, expected: dict[str, Any], kills: int, draw: random.Random, *, command: bool = False) -> Tally:
    """One study at a time, killed until it is done; as many studies as it takes."""
    tally = Tally()
    while tally.kills.total() < kills and not tally.differences:
        tally.begin()
        store = study.parent / "killed"
        shutil.rmtree(store, ignore_errors=True)
        while (attempt := start(study, store, command=command)) and is_killed(attempt, expected, kills, tally, draw):
            pass
        compare(attempt, expected, tally)
    return tally


def kill_pairs(studies: dict[str, Path], expected: dict[str, Any], kills: int, draw: random.Random) -> Tally:
    """Two studies at once; each is killed and started again by itself, until both are done."""
    tally = Tally()
    while tally.kills.total() < kills and not tally.differences:
        tally.begin()
        store = studies["alone"].parent / "shared"
        shutil.rmtree(store, ignore_errors=True)
        attempts = {name: start(study, store) for name, study in studies.items()}
        running = sorted(attempts)
        while running:
            name = draw.choice(running)
            if is_killed(attempts[name], expected[name], kills, tally, draw):
                attempts[name] = start(studies[name], store)
            else:
                running.remove(name)
        for name, attempt in attempts.items():
            compare(attempt, expected[name], tally)
    return tally


def start(study: Path, store: Path, *, command: bool = False) -> Attempt:
    """A run of `study` as the command, or forked from this process with its workers forked from it."""
    events = store / "events.jsonl"
    position = events.stat().st_size if events.exists() else 0
    with (study.parent / "output").open("w") as output:
        pid = fork(run_command if command else run_study, study, store, output)
    return Attempt(study, store, pid, position, COMMAND_STARTUP if command else STARTUP)


def run_command(study: Path, store: Path, output: TextIO) -> int:
    redirect(output)
    words = ["run", str(study), "--store", str(store), "--out", str(study.parent / "out")]
    os.execv(sys.executable, [sys.executable, "-m", "paretune.cli", *words])


def redirect(output: TextIO) -> None:
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)


def run_study(study: Path, store: Path, output: TextIO) -> int:
    redirect(output)
    context = multiprocessing.get_context("fork")
    # Instead of a server that imports torch first.
    multiprocessing.get_context = lambda method: context
    executors.start_server = lambda: None
    return run(study, store, RunOptions(checkpoint_seconds=CHECKPOINT_SECONDS)).exit_code


def fork(function: Callable[..., int], *arguments: Any) -> int:
    """The id of a process that ends with the exit code that `function` returns; it leads a process group."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            status = function(*arguments)
        finally:
            sys.stderr.flush()
            os._exit(status)
    with contextlib.suppress(OSError):  # whoever comes first
        os.setpgid(pid, pid)
    return pid


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, as JSON, from a process of its own: this one must fork, so it starts no threads and no bars.

    A bar's lock would be shared by all that is forked, and a kill would leave it held.
    """
    with tempfile.NamedTemporaryFile() as file:

        def write() -> int:
            Path(file.name).write_text(json.dumps(function(*arguments)))
            return 0

        if os.waitpid(fork(write), 0)[1]:
            sys.exit(f"{function.__name__} failed")
        return json.loads(Path(file.name).read_text())


def is_killed(attempt: Attempt, expected: Mapping[str, Any], kills: int, tally: Tally, draw: random.Random) -> bool:
    """Kill it at a random moment; False if it has ended before, or if there are enough kills: then it has run to its end."""
    stage, share = draw_stage(attempt, expected["seconds"], tally, draw), draw.uniform(0, 1.3)
    moment = None if stage else time.monotonic() + attempt.startup * share
    while attempt.poll(block=tally.kills.total() >= kills) is None:
        if moment is None and any(event["event"] == "started" and event["stage"] == stage for event in attempt.events()):
            moment = time.monotonic() + share * expected["seconds"][stage]
        if moment is not None and time.monotonic() >= moment:
            number = draw.choice(SIGNALS)
            attempt.kill(number)
            tally.signals[number.name] += 1
            note(attempt, tally)
            return True
        time.sleep(0.005)
    return False


def draw_stage(attempt: Attempt, seconds: Mapping[str, float], tally: Tally, draw: random.Random) -> str | None:
    """The stage to be hit, out of the next three: likelier a long one, and one of a kind that was not hit yet.

    None, once in ten, for the time before the first.
    """
    missing = [stage for stage in seconds if not (attempt.store / stage).exists()][:3]
    if not missing or draw.random() < 0.1:
        return None
    weights = [seconds[stage] * (1 if tally.kills[kind_of(stage)] else 10) for stage in missing]
    return draw.choices(missing, weights)[0]


def kind_of(stage: str) -> str:
    return stage.rpartition("-")[0]


def note(attempt: Attempt, tally: Tally) -> None:
    """Write down what a kill has hit, and how many steps of training it has cost."""
    at_work, stage = "nothing yet", ""
    for event in attempt.events():
        if event["event"] in ("started", "progress", "waiting"):
            stage = event["stage"]
            at_work = WAITING if event["event"] == "waiting" else kind_of(stage)
        elif event["event"] == "finished":
            at_work = "between stages"
    tally.kills[at_work] += 1
    if not at_work.startswith("train.") or (attempt.store / stage).exists():
        return
    for journal in (attempt.store / "drafts").glob(f"{stage}*.resume/curves.jsonl"):
        lines = journal.read_text().splitlines()
        if len(lines) == tally.journal_lines.get(stage, 0):
            continue  # no step since the last kill
        tally.journal_lines[stage] = len(lines)
        rows = {row["step"]: row for row in map(json.loads, lines)}
        last = json.loads(lines[-1])
        newest = max((int(path.name[-9:]) for path in journal.parent.glob("checkpoint-*")), default=0)
        lost = last["step"] - newest
        tally.lost_steps += lost
        tally.most_steps = max(tally.most_steps, lost)
        tally.most_seconds = max(tally.most_seconds, last["seconds"] - rows.get(newest, {"seconds": 0.0})["seconds"])


def compare(attempt: Attempt, expected: Mapping[str, Any], tally: Tally) -> None:
    tally.studies += 1
    if attempt.status:
        tally.differences.append(f"a run failed: {(attempt.study.parent / 'output').read_text()[-2000:]}")
        return
    found = in_child(answer, attempt.study, attempt.store)
    for name in ("results", "weights", "files"):
        keys = found[name].keys() | expected[name].keys()
        tally.differences += [f"{name}: {key}" for key in sorted(keys) if found[name].get(key) != expected[name].get(key)]
    # Two studies on one store share trainings, which count once.
    tally.repeated |= {f"{tally.rounds} {stage}": steps for stage, steps in found["repeated"].items()}


def answer(study: Path, store: Path) -> dict[str, Any]:
    """All that must not depend on what happened on the way: results.csv without times, weights, and every other file."""
    out = study.parent / "out"
    write_outputs(open_results(study, store), out)
    with (out / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not IS_TIME.search(row["metric"])]
    answers: dict[str, Any] = {"results": {}, "weights": {}, "files": {}, "seconds": {}, "repeated": {}}
    for row in rows:
        answers["results"][" ".join(value for name, value in row.items() if name != "value")] = row["value"]
    opened = open_study(study, store)
    for stage in opened.plan.stages:
        record = opened.store.artifact(stage).record
        for name, described in record.files.items():
            file = record.path / name
            if stage.kind == "evaluate.latency":
                continue
            kind = "weights" if file.suffix == ".safetensors" else "files"
            told = without_times(file) if file.suffix == ".jsonl" else described["sha256"]
            answers[kind][f"{stage.name}/{name}"] = told
        answers["seconds"][stage.name] = record.seconds + OVERHEAD
        answers["repeated"][stage.name] = record.metrics.get("repeated_steps", 0)
    return answers


def without_times(file: Path) -> str:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kept = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def show(tallies: Mapping[str, Tally], seconds: float) -> None:
    kinds = sorted({kind for tally in tallies.values() for kind in tally.kills})
    rows = [["killed while at work on", *tallies, "all"]]
    rows += [[kind, *(tally.kills[kind] for tally in tallies.values())] for kind in kinds]
    rows += [["kills", *(tally.kills.total() for tally in tallies.values())]]
    names = dict.fromkeys(number.name for number in SIGNALS)
    rows += [[f"by {name}", *(tally.signals[name] for tally in tallies.values())] for name in names]
    rows += [["studies ended and compared", *(tally.studies for tally in tallies.values())]]
    rows += [["numbers, weights and files that differ", *(len(tally.differences) for tally in tallies.values())]]
    rows += [["training steps lost, as seen at the kills", *(tally.lost_steps for tally in tallies.values())]]
    rows += [["training steps repeated, as recorded", *(sum(tally.repeated.values()) for tally in tallies.values())]]
    for row in rows:
        total = [] if isinstance(row[1], str) else [sum(row[1:])]
        print(f"{row[0]:<42}" + "".join(f"{cell:>18}" for cell in [*row[1:], *total]))
    for name, tally in tallies.items():
        print(f"{name}: a kill cost {tally.most_steps} steps at most, {tally.most_seconds:.2f} s of them")
        for difference in tally.differences:
            print(f"  differs: {difference}")
    every = f"every {CHECKPOINT_SECONDS} s, or 20 times what one takes (the command: every 60 s)"
    print(f"{seconds:.0f} s in all; checkpoints {every}")


if __name__ == "__main__":
    main()
