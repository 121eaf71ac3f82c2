"""A mistake, the command that meets it, and what must be true afterwards.

Every case starts from a small study that runs, breaks one thing, and calls `paretune.cli.main` in the study's folder. Standard
error is caught at the file descriptor, so that a word from a worker process counts too.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from paretune.cli import main
from tests.conftest import STUDY, write_study

STORE = ".paretune"
RUN = ("run", "study.yaml", "--out", "out")
ONE_STAGE_EACH = STUDY[: STUDY.index("variants:")] + "variants:\n  base: []\nevaluate:\n  perplexity: {}\n"
"""The study of cases that reach a worker: nothing is trained."""
_STAGE = r"[a-z.]+-[0-9a-f]{8}: "
_LOG = re.compile(
    rf"{_STAGE}(started|done|failed: |(.* )?\d+ of \d+\b|at work for |loading |merging )|\d+ stages( did not run|:)|failed: "
    r"|written to |the whole report: |Usage: |Try |`\w+`: \d+ records|bases\.\w+\.path: dequantizing "
)
_OWN = ("drafts", "locks", "diverged", "runs", "studies", "events.jsonl")
"""What a store keeps for itself beside the artifacts."""


@dataclass(frozen=True)
class Case:
    """One mistake. `spoil` is called with the folder; a context manager that it returns is held during the command."""

    name: str
    spoil: Callable[[Path], object]
    words: tuple[str, ...]
    """That the message must hold: where, what, and the way out."""
    command: tuple[str, ...] = RUN
    exit_code: int = 2
    study: str = STUDY
    finished: bool = False
    """Whether the study has run before it is spoilt."""


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    told: str
    """Standard error."""
    messages: tuple[str, ...]


def edit(old: str, new: str, file: str = "study.yaml") -> Callable[[Path], None]:
    """Replace the one occurrence of `old` in the study."""

    def spoil(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(old) >= 1, f"{old!r} does not stand in {file}"
        (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def write(content: str | bytes, file: str = "study.yaml") -> Callable[[Path], None]:
    """Give a file other content."""

    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def make_template(folder: Path, *, finished: bool) -> Path:
    """The study that cases start from a copy of; the finished one has run."""
    folder.mkdir()
    write_study(folder, ONE_STAGE_EACH if finished else STUDY)
    (folder / "model" / "model.safetensors").chmod(0o644)  # safetensors writes for its user alone
    if finished:
        outcome = run_command(folder, RUN)
        assert outcome.exit_code == 0, outcome.told
    return folder


def run_case(case: Case, template: Path, folder: Path) -> Outcome:
    """Copy the template, spoil it, run the command; AssertionError where it does not end as it must."""
    shutil.copytree(template, folder)
    if not case.finished:
        (folder / "study.yaml").write_text(case.study, encoding="utf-8")
    held = case.spoil(folder)
    before = _files(folder)
    with held if isinstance(held, contextlib.AbstractContextManager) else contextlib.nullcontext():
        outcome = run_command(folder, case.command)
    _check_message(case, outcome)
    _check_files(outcome, before, _files(folder), folder)
    return outcome


def run_command(folder: Path, command: tuple[str, ...]) -> Outcome:
    with contextlib.chdir(folder), _caught() as read:
        exit_code = main(command)
    told = re.sub(r"(?m)^bases\.\w+\.path: dequantizing .*\n", "", read())  # said before a base is read, for it takes its time
    return Outcome(exit_code, told, messages_in(told))


def messages_in(told: str) -> tuple[str, ...]:
    """The distinct messages in standard error: of the command, of its parser, or of stages that failed."""
    if told.startswith("error: "):
        return (told.removeprefix("error: ").strip(),)
    if told.startswith("Usage: "):
        return (told.partition("Error: ")[2].strip(),)
    found: list[str] = []
    inside = False
    for line in told.splitlines():
        failure = re.match(rf"{_STAGE}failed: (.*)", line)
        if failure:
            found.append(failure[1])
        elif inside and not _LOG.match(line):
            found[-1] += f"\n{line}"
            continue
        inside = failure is not None
    return tuple(dict.fromkeys(found))


def _check_message(case: Case, outcome: Outcome) -> None:
    assert "Traceback" not in outcome.told, outcome.told
    assert outcome.exit_code == case.exit_code, outcome.told
    assert len(outcome.messages) == 1, outcome.told
    (message,) = outcome.messages
    for word in case.words:
        assert word in message, f"`{word}` is missing in: {message}"
    assert "error:" not in message, message  # one message, not a message about a message
    strange = [line for line in outcome.told.splitlines() if line.strip() and not _belongs(line, message)]
    assert not strange, f"told besides the message: {strange}"


def _belongs(line: str, message: str) -> bool:
    return line.removeprefix("error: ").removeprefix("Error: ").strip() in message or _LOG.match(line) is not None


def _check_files(outcome: Outcome, before: dict[str, bytes], after: dict[str, bytes], folder: Path) -> None:
    """Nothing that was there is changed or gone, and what is new is whole."""
    kept = {name: content for name, content in before.items() if name != "study.lock" and not name.startswith("out/")}
    assert kept.items() <= after.items(), sorted(name for name in kept if after.get(name) != kept[name])
    new = {name for name in after.keys() - before.keys() if name != "study.lock"}
    assert not [name for name in new if re.search(r"(^|/)\.(?!paretune/)", name)], f"left: {new}"
    if outcome.told.startswith(("error: ", "Usage: ")):
        assert all(name.startswith(".paretune/") for name in new), f"left: {new}"
    for name in new:
        if name.startswith("out/"):
            assert "out/report.md" in after, new
        elif name.startswith(".paretune/") and name.count("/") > 1:
            assert f"{'/'.join(name.split('/')[:2])}/record.json" in after, name
    drafts = folder / ".paretune" / "drafts"
    if drafts.is_dir() and "the process was killed" not in outcome.told:  # the next attempt goes on from what that one left
        assert not [draft for draft in drafts.iterdir() if draft.suffix != ".resume"], "a draft is left"


def _files(folder: Path) -> dict[str, bytes]:
    """The files of a folder by relative path, but for what a store keeps for itself."""
    found = {}
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        if parts[0] == ".paretune" and len(parts) > 1 and parts[1] in _OWN:
            continue
        if file.is_file() and file.stat().st_size < 2**24:
            found["/".join(parts)] = file.read_bytes()
    return found


_told_file: list[int] = []
"""Descriptor that standard error goes to during a case: the same one always, for the server that workers are forked from
keeps the one that it began with."""


@contextlib.contextmanager
def _caught() -> Iterator[Callable[[], str]]:
    if not _told_file:
        descriptor, name = tempfile.mkstemp()
        os.unlink(name)
        _told_file.append(descriptor)
    descriptor = _told_file[0]
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        with (
            open(os.dup(descriptor), "w", encoding="utf-8", buffering=1) as stream,
            contextlib.redirect_stderr(stream),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield lambda: _read(descriptor)
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _read(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
