"""Mistakes on the command line, and a world without network, permission, disk, memory or mercy."""

import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from tests.bad_input.harness import ONE_STAGE_EACH, STORE, Case, edit

_NOBODY = 65534
_TRAINED = "variants:\n  base: []\n  full: [{train.full: {learning_rate: 1.0e-3}}]\n"


def command(name: str, line: str, *words: str, finished: bool = False) -> Case:
    """A wrong command line; `@` stands for `study.yaml`."""
    return Case(name, lambda _: None, words, tuple(line.replace("@", "study.yaml").split()), finished=finished)


def at_run_time(name: str, spoil: Callable[[Path], object], *words: str) -> Case:
    """A stage fails while the study runs again with something to train; the rest is done and stays."""

    def more(folder: Path) -> object:
        edit("variants:\n  base: []\n", _TRAINED)(folder)
        edit("epochs: 2", "epochs: 1")(folder)
        return spoil(folder)

    return Case(name, more, words, exit_code=1, finished=True)


_COMMANDS = (
    command("study file without a command", "@", "`study.yaml` is no command", "`paretune run study.yaml`"),
    command("unknown command", "rnu @", "No such command 'rnu'", "Did you mean 'run'?"),
    command(
        "field of the study as a flag", "run @ --epochs 3", "No such option: --epochs; `epochs` belongs in `train` of the study"
    ),
    command("unknown flag", "run @ --outt 3", "No such option: --outt; did you mean `--out`?"),
    command(
        "flag of another tool", "run @ --output_dir 3", "No such option: --output_dir; it is called `paretune run --out` here"
    ),
    command("command of another tool", "finetune @", "No such command 'finetune'; "),
    command("memory that is no amount", "plan @ --memory lots", "--memory: `lots` is no amount of memory; write `6GB`, `6GiB`"),
    command("memory of nothing", "plan @ --memory 6", "--memory: `6` is 6 bytes, in which nothing runs"),
    command(
        "export as another tool names it",
        "export @ base --to x --format peft",
        "--format: no `peft`; it is called `paretune export --format` here",
        "`adapter`",
    ),
    Case(
        "study is a pipe",
        lambda folder: os.mkfifo(folder / "pipe.yaml"),
        ("pipe.yaml: is no regular file (a device or pipe)",),
        ("plan", "pipe.yaml"),
    ),
    Case(
        "study is a link to itself",
        lambda folder: (folder / "loop.yaml").symlink_to("loop.yaml"),
        ("loop.yaml: cannot be read (Too many levels", "correct the link"),
        ("plan", "loop.yaml"),
    ),
    Case(
        "without docstrings",
        lambda _: mock.patch("paretune.cli.sys.flags", mock.Mock(optimize=2)),
        ("`python -OO` takes docstrings out",),
        ("plan", "study.yaml"),
    ),
    Case(
        "in a folder that is gone",
        lambda _: mock.patch(
            "paretune.cli.os", mock.Mock(getcwd=mock.Mock(side_effect=FileNotFoundError(2, "No such file or directory")))
        ),
        ("the folder that you are in is gone", "`cd`"),
        ("plan", "study.yaml"),
    ),
    command("missing argument", "run", "Missing argument 'STUDY'"),
    command("missing option", "export @ base", "Missing option '--to'"),
    command("no workers", "run @ --workers 0", "'--workers'", "greater than or equal to 1"),
    command("unknown device", "run @ --device gpu", "--device: `gpu` is no device; known: `auto`, `cpu`, `cuda`"),
    Case(
        "a GPU that is not there",
        lambda _: mock.patch("paretune.pipeline.machine._nvidia_model", return_value=None),
        ("--device names the device `cuda`, and this machine has no NVIDIA GPU; pass `--device cpu`",),
        ("run", "study.yaml", "--device", "cuda"),
    ),
    command("report before a run", "report @ --out out", "holds no result of this study; first: `paretune run study.yaml`"),
    command("rate before a run", "rate @ --to sheet.csv", "not there; run the study first"),
    command("rate without a text", "rate @ --to sheet.csv", "there is no text to rate", finished=True),
    command("rate into another kind of file", "rate @ --to sheet.xlsx", "--to: a sheet is a .csv file, got `sheet.xlsx`"),
    command("rate over a file", "rate @ --to notes.jsonl", "--to: `notes.jsonl` exists, and may be filled in"),
    command("export before a run", "export @ full --seed 0 --to x", "not there; run the study first"),
    command("export of an unknown variant", "export @ ful --to x", "no variant `ful`; did you mean `full`?"),
    command("export without a seed", "export @ full --to x", "--seed: `full` has `0`, `1`; name one"),
    command(
        "export in an unknown format", "export @ base --to x --format onnx", "--format: no `onnx`; write `hf`, and convert it"
    ),
    command("export of no adapter", "export @ base --to x --format adapter", "does not end in an adapter; use", finished=True),
    command("export over other files", "export @ base --to model", "--to: `model` exists and is not empty; name another"),
    command("export into a file", "export @ base --to qa.json/x", "--to: `qa.json/x` cannot be written", finished=True),
    command("first study of no file", "init nothing.csv --to new.yaml", "nothing.csv: no such file"),
    command(
        "first study of a directory", "init model --to new.yaml", "model: is the directory of a model, which goes with `--base`"
    ),
    command(
        "first study into nowhere", "init notes.jsonl --to a/new.yaml", "--to: `a/new.yaml` cannot be written", "that is there"
    ),
    command(
        "first study in no time",
        "init notes.jsonl --to new.yaml --minutes 0.1",
        "--minutes: is 0.1, and the shortest study takes",
    ),
    command(
        "first study in minutes on a base that is not here",
        "init notes.jsonl --to new.yaml --base owner/model --minutes 10",
        "--minutes: `owner/model` is of the hub",
        "name its directory",
    ),
    command("first study over another", "init notes.jsonl --to study.yaml", "--to: `study.yaml` exists; name another file"),
    command("dashboard at no port", "dashboard @ --port 99999", "'--port'", "less than or equal to 65535"),
    command("dashboard in no memory", "dashboard @ --memory much", "--memory: `much` is no amount of memory"),
    command("why of no stage", "why @ trian.full", "`trian.full` is no stage of this study"),
)


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    """Without the rights of root, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _forbidden(name: str, mode: int = 0) -> Callable[[Path], object]:
    def spoil(folder: Path) -> object:
        folder.chmod(0o777)
        (folder / name).chmod(mode)
        return _as_nobody()

    return spoil


_PERMISSIONS = (
    Case("study not readable", _forbidden("study.yaml"), ("study.yaml: cannot be read (Permission denied)",)),
    Case(
        "data not readable",
        _forbidden("notes.jsonl"),
        ("data.notes.source.path: `notes.jsonl` cannot be read (Permission denied)",),
    ),
    Case(
        "questions not readable",
        _forbidden("qa.json"),
        ("evaluate.qa.path: `qa.json` cannot be read (Permission denied)", "check"),
    ),
    Case(
        "base not readable",
        _forbidden("model"),
        ("bases.tiny.path: `model/config.json` cannot be read (Permission denied)", "check"),
    ),
    Case(
        "folder not writable", _forbidden(".", 0o555), ("study.lock: cannot be written (Permission denied)", "must be writable")
    ),
    Case(
        "store not writable",
        _forbidden(STORE, 0o555),
        ("the store cannot be written (Permission denied)", "--store"),
        finished=True,
    ),
    Case(
        "output not writable",
        _forbidden("out", 0o555),
        ("--out: `out` cannot be written (Permission denied); name another",),
        ("report", "study.yaml", "--out", "out"),
        finished=True,
    ),
    Case(
        "output is a file",
        lambda _: None,
        ("--out: `qa.json` cannot be written",),
        ("report", "study.yaml", "--out", "qa.json"),
        finished=True,
    ),
)


def _hub(**constants: object) -> Callable[[Path], object]:
    """The hub's client with other settings, and an empty cache."""

    @contextlib.contextmanager
    def held(folder: Path) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, value in {"HF_HUB_CACHE": str(folder / "cache"), **constants}.items():
                stack.enter_context(mock.patch(f"huggingface_hub.constants.{name}", value))
            yield

    return held


def _from_hub(field: str, **constants: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> object:
        edit(*{"base": ("{path: model}", "{hub: owner/tiny}"), "data": ("{path: notes.jsonl}", "{hub: owner/notes}")}[field])(
            folder
        )
        return _hub(**constants)(folder)

    return spoil


_UNREACHABLE = {"ENDPOINT": "http://127.0.0.1:9"}

_NETWORK = (
    Case(
        "base of the hub, offline",
        _from_hub("base", HF_HUB_OFFLINE=True),
        ("study.yaml:3: bases.tiny.hub: hub model `owner/tiny` cannot be reached", "cache", "`path:`"),
    ),
    Case(
        "base of the hub, no network",
        _from_hub("base", **_UNREACHABLE),
        ("bases.tiny.hub: hub model `owner/tiny` cannot be reached", "cache", "`path:`"),
    ),
    Case(
        "data of the hub, no network",
        _from_hub("data", **_UNREACHABLE),
        ("data.notes.source.hub: hub dataset `owner/notes` cannot be reached", "cache", "`path:`"),
    ),
    Case(
        "directory as a hub name",
        edit("{path: model}", "{hub: ./model}"),
        ("bases.tiny.hub: `./model` cannot be a repository", "`path:`"),
    ),
)


def _change_weights(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "embed" in name)
    save_file(weights | {name: change(weights[name])}, file, metadata={"format": "pt"})


def _server() -> psutil.Process:
    """The process that workers are forked from."""
    return next(child for child in psutil.Process().children() if any("forkserver" in word for word in child.cmdline()))


@contextlib.contextmanager
def _limited(kind: int, bytes_: int) -> Iterator[None]:
    """Workers that start meanwhile may not have files, or memory, larger than that."""
    if sys.platform != "linux":
        pytest.skip("the limits of another process can be set on Linux only")
    server = _server()
    before = resource.prlimit(server.pid, kind)
    resource.prlimit(server.pid, kind, (bytes_ + (server.memory_info().vms if kind == resource.RLIMIT_AS else 0), before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, kind, before)


@contextlib.contextmanager
def _full_disk_here(bytes_: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _killer(folder: Path) -> Iterator[None]:
    """Kills the worker that trains, with a signal that it cannot catch."""
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            time.sleep(0.05)
            if list((folder / STORE / "drafts").glob("train.full-*")):
                for worker in _server().children():
                    worker.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _kill_in_training(folder: Path) -> object:
    edit("epochs: 1", "epochs: 300")(folder)
    return _killer(folder)


def _lora(**fields: object) -> Callable[[Path], None]:
    return edit("train.full: {learning_rate: 1.0e-3}", f"train.lora: {json.dumps(fields)}")


@contextlib.contextmanager
def _unchecked(held: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """As if a mistake were one that only the stage finds out."""
    with mock.patch("paretune.pipeline.checks._check_rank"), mock.patch("paretune.study.study._check_learning_rates"), held:
        yield


def _past_the_checks(change: Callable[[Path], None]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> object:
        change(folder)
        return _unchecked(contextlib.nullcontext())

    return spoil


def _train_in_little_memory(folder: Path) -> object:
    _lora(r=1_000_000)(folder)  # 128 MB a matrix, of which there are 56
    return _unchecked(_limited(resource.RLIMIT_AS, 800_000_000))


_RUN_TIME = (
    Case(
        "NaN in the weights",
        lambda folder: _change_weights(folder, lambda weights: np.full_like(weights, np.nan)),
        ("/model` give logits that are no numbers; are they NaN or infinite?", "Copy the base again"),
        exit_code=1,
        study=ONE_STAGE_EACH,
    ),
    Case(
        "weights of another shape",
        lambda folder: _change_weights(folder, lambda weights: weights[:100]),
        ("weights are missing or of another shape", "embed_tokens", "copy the model again"),
        exit_code=1,
        study=ONE_STAGE_EACH,
    ),
    at_run_time(
        "loss that is no number", _past_the_checks(edit("1.0e-3", "1.0e+30")), ": the loss is nan", "lower the learning rate"
    ),
    at_run_time("more memory than there is", _past_the_checks(_lora(r=2_000_000_000)), "out of memory"),
    at_run_time(
        "worker killed", _kill_in_training, "the process was killed, most likely for using too much memory", "run again"
    ),
    at_run_time("disk full", lambda _: _limited(resource.RLIMIT_FSIZE, 50_000), "File too large", "run again"),
    at_run_time("memory full", _train_in_little_memory, "out of memory", "`--accumulate 2`"),
    Case(
        "disk full for the outputs",
        lambda _: _full_disk_here(5_000),
        ("--out: `out` cannot be written (File too large)",),
        ("report", "study.yaml", "--out", "out"),
        finished=True,
    ),
)

CASES = (*_COMMANDS, *_PERMISSIONS, *_NETWORK, *_RUN_TIME)
