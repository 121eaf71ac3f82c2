"""`paretune dashboard`: the comparison in a browser, with models to talk to and texts to rate. Served to this machine alone.

Streamlit runs `dashboard_pages.py` for each browser and click, in a thread of its own. What is dear is kept here for all of
them, by what the store holds: the findings until a stage ends, a model until its memory is needed. What stands in data and what
models write is untrusted: it is shown as text, or escaped where Markdown is.
"""

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from paretune.analysis.facts import find
from paretune.analysis.findings import Findings
from paretune.errors import SpecError, command_line
from paretune.pipeline.machine import memory_limit
from paretune.pipeline.plan import PlannedCell, cell_name
from paretune.pipeline.results import OpenStudy, open_study, read_results
from paretune.report import charts
from paretune.report.blocks import Block, Bullets, Paragraph, Table, Words
from paretune.report.page import page_data
from paretune.report.render import TEMPLATES, escaped, visible

if TYPE_CHECKING:
    from paretune.app.conversation import Models

HOST, PORT, _PORTS = "127.0.0.1", 8501, 20
"""The first port that is tried where none is named, and how many are."""
_SCRIPT = Path(__file__).with_name("dashboard_pages.py")
_OPTIONS = {
    "server.address": HOST,
    "server.headless": True,
    "server.enableCORS": True,  # a page of another origin opens no connection
    "server.enableXsrfProtection": True,
    "server.allowedHosts": [HOST, "localhost"],  # nor one whose name somebody lets point here
    "server.enableStaticServing": False,
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "logger.hideWelcomeMessage": True,
    "logger.level": "error",
    "theme.light.primaryColor": "#0060a0",
    "theme.dark.primaryColor": "#6cb8ee",
    "theme.headingFontSizes": ["1.6rem", "1.3rem", "1.1rem", "1rem", "1rem", "1rem"],
}
_VARIABLE = re.compile(r"--(\w+): light-dark\((#\w+), (#\w+)\)")
_INK = ("#1c2024", "#e6e9ec")


@dataclass(frozen=True)
class Served:
    """What the command was given."""

    file: Path
    store: Path | None
    device: str
    memory: str | None

    def command(self, name: str, *arguments: str, **options: str) -> str:
        """A command about the study, to be typed."""
        return command_line(name, self.file, *arguments, store=self.store, **options)


_served: Served


def serve(asked: Served, port: int | None, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `say` is told the address.

    SpecError for a port that is taken; before anything is served, whatever `open_study` raises.
    """
    global _served
    memory_limit(asked.memory, open_study(asked.file, asked.store, asked.device).lock.device)
    _served, port = asked, _free_port(port)
    # To let in the addresses that this machine has, Streamlit would ask the network for them.
    from streamlit import net_util

    net_util.get_internal_ip = net_util.get_external_ip = lambda: None
    say(f"http://{HOST}:{port}  ({asked.file}; Ctrl-C ends it)")
    st.App(_SCRIPT).run(config=_OPTIONS | {"server.port": port})


def _free_port(port: int | None) -> int:
    for tried in [port] if port else range(PORT, PORT + _PORTS):
        try:
            socket.create_server((HOST, tried)).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
        else:
            return tried
    raise SpecError(f"--port: {tried} cannot be had ({reason}); name another")


def served() -> Served:
    return _served


# What is kept for all browsers --------------------------------------------------------------------------------------------


def seen() -> tuple[Any, ...]:
    """Changes with the study file, with what the store holds, and with runs that begin or end."""
    root = _served.store or _served.file.parent / ".paretune"
    names = sorted(str(path) for place in (root, root / "runs") if place.is_dir() for path in place.iterdir())
    return (_served.file.stat().st_mtime_ns, *names)


def opened() -> OpenStudy:
    return _opened_at(seen())


def findings() -> Findings:
    return _findings_at(seen())


def page() -> dict[str, Any]:
    """What report.html shows."""
    return _page_at(seen())


def trained(study: OpenStudy) -> dict[str, PlannedCell]:
    """The variants that are trained, by name; of each its first training seed."""
    first: dict[tuple[str, ...], PlannedCell] = {}
    for cell in study.plan.cells:
        first.setdefault((cell.base, cell.dataset, cell.variant), cell)
    return {cell_name(cell): cell for cell in first.values() if all(map(study.store.find, cell.methods))}


@st.cache_resource(show_spinner=False)
def models() -> "Models":
    import torch

    from paretune.app.conversation import Models
    from paretune.model.memory import available_bytes

    device = opened().lock.device
    return Models(memory_limit(_served.memory, device) or available_bytes(torch.device(device), workers=1))


@st.cache_resource(max_entries=2, show_spinner="Reading the study")
def _opened_at(seen: tuple[Any, ...]) -> OpenStudy:
    return open_study(_served.file, _served.store, _served.device)


@st.cache_resource(max_entries=2, show_spinner="Reading what was measured")
def _findings_at(seen: tuple[Any, ...]) -> Findings:
    opened = _opened_at(seen)
    return find(read_results(opened))


@st.cache_resource(max_entries=2, show_spinner="Reading what was written")
def _page_at(seen: tuple[Any, ...]) -> dict[str, Any]:
    return page_data(_findings_at(seen))


# How it is shown ----------------------------------------------------------------------------------------------------------


def markdown(words: Words) -> str:
    """Words for Streamlit, whose Markdown has a syntax of colons besides; literals as code, all else taken literally."""
    parts = escaped(words).split("`")
    text = "`".join(part if index % 2 else part.replace(":", "\\:") for index, part in enumerate(parts))
    return f"\\{text}" if text.startswith(("-", "+")) else text  # a lone one begins a list


def show_text(text: str, label: str = "") -> None:
    """What a model wrote, or what stands in data."""
    if label:
        st.caption(label)
    st.text(visible(text) or "(nothing)", width="stretch")


def show_blocks(blocks: Sequence[Block]) -> None:
    """Of a report; pictures are left out."""
    for block in blocks:
        match block:
            case Paragraph(text):
                st.markdown(markdown(text))
            case Bullets(items):
                st.markdown("\n".join(f"- {markdown(item)}" for item in items))
            case Table():
                rows = [[markdown(cell) for cell in row] for row in block.folded]
                st.table(pd.DataFrame(rows, columns=[markdown(name) for name in block.header]), hide_index=True)


def show_chart(name: str, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Mapping[str, Any]], alt: str) -> None:
    """A chart of the report, in the colours of the theme."""
    spec = deepcopy(charts.SPECS[name])
    for channel, axis in axes.items():
        spec["encoding"][channel] |= axis
    spec["data"] = {"values": list(rows)}
    for layer in spec.get("layer", ()):
        if layer["mark"]["type"] == "text":  # whose outline the style of the report's page paints behind it
            layer["mark"]["strokeWidth"] = 0
    text, is_dark = json.dumps(spec), st.context.theme.type == "dark"
    for variable, *colours in _VARIABLE.findall((TEMPLATES / "report.css").read_text(encoding="utf-8")):
        text = text.replace(f"var(--{variable})", colours[is_dark])
    # The last colour of the palette is that of the text.
    st.vega_lite_chart(json.loads(re.sub(r"var\(--\w+\)", _INK[is_dark], text)), theme=None, width="stretch", alt=alt)
