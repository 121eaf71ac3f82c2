"""Talk to one or two variants: in a terminal, side by side where it is wide enough, or through a pipe, a prompt a line.

Each is loaded once, when it is first asked, as it ships and was measured, and answers by the engine of the evaluations: at
temperature 0 it says what `evaluate.generate` writes for the same prompt. They write one after the other, so that neither slows
what is timed of the other. Where the base has a chat template, or the data are chats, turns are kept; else each prompt is
continued by itself. What models write is untrusted: control characters are made visible, and nothing of it is markup.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from paretune.data.chat import Message, chat_prompt, turn_of
from paretune.errors import DataError, SpecError, StoreError, UserError
from paretune.evaluate.answers import Decoding
from paretune.evaluate.generate import generate
from paretune.evaluate.outputs import StoppedBy
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.plan import cell_name
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.report.render import visible
from paretune.variants.export import Wanted, find_cell

if TYPE_CHECKING:
    from paretune.api import OpenStudy

COMMANDS = ("/new", "/system", "/quit")
_COMMANDS_TOLD = "`/new` begins anew, `/system TEXT` too with another system prompt, `/quit` ends"
SIDE_BY_SIDE = 100
"""Columns of a terminal in which two answers stand beside each other."""
_GAP = 3
_COLDEST = 1e-6
"""The least temperature above 0 by which logits can be divided."""
_STOPPED: dict[StoppedBy, str] = {
    "max_new_tokens": "; cut at --max-new-tokens",
    "context": "; cut at the last position of the model",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asking:
    """How answers are written; SpecError for a temperature that is none."""

    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0
    system: str = ""

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _COLDEST <= self.temperature < float("inf"):
            raise SpecError(f"--temperature: `{self.temperature}`; write 0, which takes the likeliest token, or up to about 2")


@dataclass(frozen=True)
class Reply:
    text: str
    new_tokens: int
    first_seconds: float
    """To the first token, the prompt read."""
    seconds: float
    stopped_by: StoppedBy

    def __str__(self) -> str:
        behind = self.seconds - self.first_seconds
        speed = f", then {(self.new_tokens - 1) / behind:,.1f} tokens/s" if self.new_tokens > 1 and behind > 0 else ""
        cut = _STOPPED.get(self.stopped_by, "")
        return f"{self.new_tokens:,} tokens, first after {self.first_seconds:.2f} s{speed}{cut}"


@dataclass
class Conversation:
    """A variant and what has been said to it; `load` is called once, when it is first asked."""

    name: str
    load: Callable[[], LoadedModel]
    of_chats: bool
    """Whether it was trained on chats, which have a form in bases without a template too."""
    messages: list[Message] = field(default_factory=list)

    @cached_property
    def loaded(self) -> LoadedModel:
        return self.load()

    @property
    def has_turns(self) -> bool:
        return self.of_chats or self.loaded.tokenizer.hf.chat_template is not None

    @property
    def manner(self) -> str:
        """How it is asked, in words."""
        if self.loaded.tokenizer.hf.chat_template is not None:
            return f"`{self.name}` is asked by the chat template of its base"
        if self.of_chats:
            return f"`{self.name}` is asked as `User: ... Assistant:`, as it was trained: its base has no chat template"
        return f"`{self.name}` continues each prompt by itself: its base has no chat template"

    def begin(self, system: str) -> None:
        """Forget all turns; DataError for a system prompt where there is none to be had."""
        if system and not self.has_turns:
            raise DataError(f"{self.manner}, so there is no system prompt; write it into the prompt")
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        if messages:  # that the template takes it
            self._prompt([*messages, {"role": "user", "content": "x"}])
        self.messages = messages

    def answer(self, said: str, asking: Asking, seed: int, on_text: Callable[[str], None]) -> Reply:
        """The answer to `said` after the turns so far, which `keep` adds it to; DataError where that is too long."""
        prompt = self._prompt([*self.messages, {"role": "user", "content": said}]) if self.has_turns else said
        started, first = time.perf_counter(), list[float]()

        def heard(text: str) -> None:
            first.append(time.perf_counter())
            on_text(text)

        decoding = Decoding(asking.temperature)
        (made,) = generate(self.loaded, [prompt], asking.max_new_tokens, decoding, seed=seed, on_text=heard)
        ended = time.perf_counter()
        return Reply(made.text, made.new_tokens, (first or [ended])[0] - started, ended - started, made.stopped_by)

    def keep(self, said: str, reply: Reply) -> None:
        if self.has_turns:
            self.messages += [{"role": "user", "content": said}, turn_of(reply.text)]

    def _prompt(self, messages: Sequence[Message]) -> str:
        return chat_prompt(self.loaded.tokenizer, messages, where=self.name)


def conversation(opened: "OpenStudy", wanted: Wanted, again: str, say: Say) -> Conversation:
    """The variant that is wanted, not loaded yet; the first of its training seeds unless one is wanted.

    SpecError for one that is not in the study or not the only one; StoreError where it is not trained yet, with `again`, the
    command that does it. `say` is told when it is loaded.
    """
    cells = [cell for cell in opened.plan.cells if cell.variant == wanted.variant]
    seeds = dict.fromkeys(cell.seed for cell in cells if cell.seed is not None)
    if wanted.seed is not None and seeds and wanted.seed not in seeds:
        raise SpecError(f"--trained-with: no `{wanted.seed}`; there is {', '.join(f'`{seed}`' for seed in seeds)}")
    seed = next(iter(seeds), None) if wanted.seed is None else wanted.seed
    cell = find_cell(opened.plan, Wanted(wanted.variant, wanted.base, wanted.data, seed))
    measured = next(iter(cell.evaluations.values()))  # any of them knows the model and how it ships
    if not all(map(opened.store.find, cell.methods)):
        raise StoreError(f"`{cell_name(cell)}` is not trained yet; first: `{again}`")
    inputs = {role: opened.store.artifact(parent) for role, parent in measured.inputs.items() if role == "model"}

    def load() -> LoadedModel:
        say(f"loading `{cell_name(cell)}`")
        disable_progress_bar()
        context = StageContext(measured.config, inputs, measured.resources, RunOptions(), Path(), lambda **_: None)
        loaded = load_model(context)
        generate(loaded, ["a"], 1)  # what is tried once of a model is no part of its first answer's time
        return loaded

    return Conversation(wanted.variant, load, of_chats=opened.study.data[cell.dataset].chats)


def chat(
    opened: "OpenStudy",
    variants: Sequence[str],
    asking: Asking,
    chosen: tuple[str | None, str | None, int | None],
    again: str,
) -> None:
    """Talk to `variants` until the prompts end; `chosen` are base, dataset and training seed where there are several.

    Between terminals a mistake is told and the talk goes on; through a pipe it ends it, as a UserError. Raises what
    `conversation` does.
    """
    if len(set(variants)) < len(variants):
        raise SpecError(f"`{variants[0]}` is named twice; name another variant beside it")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    notes = Console(stderr=not interactive, highlight=False, markup=False, emoji=False, soft_wrap=not interactive)

    def say(text: str) -> None:
        notes.print(Text(visible(text), style="dim"))

    talks = [conversation(opened, Wanted(variant, *chosen), again, say) for variant in variants]
    system, asked, begun = asking.system, 0, False
    if interactive:
        say(f"{' and '.join(f'`{talk.name}`' for talk in talks)}: {_COMMANDS_TOLD}")
    for line in _typed() if interactive else _piped():
        command, _, rest = line.strip().partition(" ")
        try:
            line.encode()  # of a byte that is no UTF-8 Python makes half a character
            if command == "/quit":
                return
            if command == "/system":
                for talk in talks:
                    talk.begin(rest.strip())
                system, begun = rest.strip(), True
            elif command == "/new":
                begun = False
            elif command.startswith("/") and command[1:].isalpha() and not rest:
                raise DataError(f"`{command}` is no command: {_COMMANDS_TOLD}")
            elif command:
                for talk in talks:
                    if not begun:
                        talk.begin(system)
                    if not asked:
                        say(talk.manner)
                begun = True
                asked += 1  # the same prompt again draws another answer
                replies = _answers(talks, line, asking, asking.seed + asked - 1, notes, interactive=interactive)
                for talk, reply in zip(talks, replies, strict=True):
                    talk.keep(line, reply)
        except UnicodeEncodeError:
            raise DataError("a prompt is no UTF-8; convert it with `iconv -t utf-8`") from None
        except UserError as error:
            if not interactive:
                raise
            say(f"error: {error}" + ("; `/new` begins anew" if "positions" in str(error) else ""))
        except KeyboardInterrupt:
            if not interactive:
                raise
            say("\nstopped, and taken back; `/quit` ends")


def _typed() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  gives `input` its keys and its history
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _piped() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise DataError("a prompt is no UTF-8; convert it with `iconv -t utf-8`") from None


def _answers(
    talks: Sequence[Conversation], said: str, asking: Asking, seed: int, notes: Console, *, interactive: bool
) -> list[Reply]:
    """What each says, shown as it is written."""
    if interactive and len(talks) > 1 and notes.width >= SIDE_BY_SIDE:
        return _in_columns(talks, said, asking, seed, notes)
    replies = []
    for talk in talks:
        if interactive and len(talks) > 1:
            notes.print(Text(talk.name, style="bold"))
        shown = ""

        def show(text: str) -> None:
            nonlocal shown
            # Half a character decodes to a mark that the next token takes away.
            text = visible(text.rstrip("\ufffd"))
            if text.startswith(shown):
                sys.stdout.write(text[len(shown) :])
                sys.stdout.flush()
                shown = text

        reply = talk.answer(said, asking, seed, show if sys.stdout.isatty() else lambda _: None)
        whole = visible(reply.text)
        sys.stdout.write((whole[len(shown) :] if whole.startswith(shown) else f"\n{whole}") + "\n")
        sys.stdout.flush()
        notes.print(Text(f"{'' if interactive else f'`{talk.name}`: '}{reply}", style="dim"))
        replies.append(reply)
    return replies


def _in_columns(talks: Sequence[Conversation], said: str, asking: Asking, seed: int, console: Console) -> list[Reply]:
    width = (console.width - _GAP * (len(talks) - 1)) // len(talks)
    texts, replies = [""] * len(talks), list[Reply]()

    def table(*, whole: bool) -> Table:
        grid = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        for _ in talks:
            grid.add_column(width=width)
        grid.add_row(*(Text(talk.name, style="bold") for talk in talks))
        folded = [Text(visible(text)).wrap(console, width, overflow="fold") for text in texts]
        # Of what is longer than the terminal its end is seen, until all of it is there.
        grid.add_row(*(Text("\n").join(lines if whole else lines[-max(1, console.height - 4) :]) for lines in folded))
        grid.add_row(*(Text(str(reply), style="dim") for reply in replies))
        return grid

    with Live(console=console, auto_refresh=False) as live:
        drawn = 0.0
        for index, talk in enumerate(talks):

            def show(text: str, index: int = index) -> None:
                nonlocal drawn
                texts[index] = text.rstrip("\ufffd")
                if time.perf_counter() - drawn > 0.1:  # drawing takes from the time of the next token
                    live.update(table(whole=False), refresh=True)
                    drawn = time.perf_counter()

            replies.append(talk.answer(said, asking, seed, show))
            texts[index] = replies[-1].text
        live.update(table(whole=True))
    return replies
