"""Talk to one or two variants: in a terminal, side by side where it is wide enough, or through a pipe, a prompt a line.

They write one after the other, so that neither slows what is timed of the other. What models write is untrusted: control
characters are made visible, and nothing of it is markup.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paretune.app.conversation import Asking, Conversation, Models, Reply, conversation
from paretune.errors import DataError, SpecError, UserError
from paretune.pipeline.plan import Wanted
from paretune.pipeline.results import OpenStudy
from paretune.report.render import visible

_COMMANDS_TOLD = "`/new` begins anew, `/system TEXT` too with another system prompt, `/quit` ends"
SIDE_BY_SIDE = 100
"""Columns of a terminal in which two answers stand beside each other."""
_GAP = 3


def chat(
    opened: OpenStudy, variants: Sequence[str], asking: Asking, chosen: tuple[str | None, str | None, int | None], again: str
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

    models = Models(None, say)
    talks = [conversation(opened, Wanted(variant, *chosen), again, models) for variant in variants]
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
