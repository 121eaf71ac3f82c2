"""Python lines that somebody may copy, run in a process of their own that has torch loaded, which takes seconds otherwise."""

import io
import multiprocessing
import os
import traceback
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path

from paretune.pipeline.worker import PRELOAD


def run_lines(code: str, folder: Path) -> str:
    """What `code` prints when it is run in `folder`; fails with its traceback where it does not end well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(code, str(folder), sender))
    process.start()
    sender.close()
    ended_well, printed = receiver.recv()
    process.join()
    assert ended_well, printed
    return printed


def _run(code: str, folder: str, sender: Connection) -> None:
    os.chdir(folder)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            exec(compile(code, "lines", "exec"), {"__name__": "__main__"})
        sender.send((True, printed.getvalue()))
    except SystemExit as end:
        sender.send((not end.code, f"{printed.getvalue()}{end.code or ''}"))
    except BaseException:  # noqa: BLE001  (whatever ends the lines is told)
        sender.send((False, traceback.format_exc()))
