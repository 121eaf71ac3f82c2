"""`paretune dashboard`: the comparison in a browser, with models to talk to and texts to rate. Served to this machine alone.

Pages read facts and records, and compute no number. What stands in data and what models write is untrusted: it is shown as
text, or escaped where Markdown is. Streamlit runs `show` for each browser and click, in a thread of its own; what is dear is
kept for all of them, by what the store holds: the findings until a stage ends, a model until its memory is needed.
"""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from paretune.analysis import charts
from paretune.analysis.cards import cards
from paretune.analysis.facts import find
from paretune.analysis.findings import Findings
from paretune.analysis.page import page_data
from paretune.analysis.render import TEMPLATES, Bullets, Paragraph, Section, Table, Words, escaped, visible
from paretune.analysis.sections import build_report
from paretune.analysis.training import running_mean
from paretune.api import OpenStudy, open_study
from paretune.app.rating import RatingSheet, sheet_file
from paretune.app.track import curve_rows, followed
from paretune.data.documents import document_rows
from paretune.errors import ParetuneError, SpecError, StoreError, command_line
from paretune.evaluate.ratings import comparable_texts
from paretune.pipeline.plan import PlannedCell, cell_name
from paretune.pipeline.results import read_results
from paretune.pipeline.runs import clock, live_runs
from paretune.study.evaluations import SIZE
from paretune.study.ratings import HIGHEST, LOWEST, RUBRIC

if TYPE_CHECKING:
    from paretune.app.conversation import Answers, Conversation, Models, Shipped

HOST, PORT = "127.0.0.1", 8501
_SCRIPT = Path(__file__).with_name("dashboard_script.py")
_PORTS = 20
"""That are tried where none is named."""
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
}
_SECONDS = 2.0
"""Between two looks at a run."""
_DRAWN = 0.1
"""Seconds between two looks at an answer."""
_PROMPTS = 200
"""Of the test split that can be picked."""
_OPENING = 30
"""Words of a plain text that are asked to be continued."""
_EVENTS = 200_000
"""Bytes at the end of the events, in which what is at work has told its progress."""
_WIDE = 20
"""Ratio of the largest figure to the smallest from which an axis is logarithmic."""
_VARIABLE = re.compile(r"--(\w+): light-dark\((#\w+), (#\w+)\)")
_LABELS = {
    "bytes": "replace(format(datum.value, '~s'), /([kMGT]?)$/, ' $1B')",
    "share": "format(datum.value, '.0%')",
    "count": "format(datum.value, '~s')",
}
"""Of axes, by unit."""


@dataclass(frozen=True)
class Served:
    """What the command was given."""

    file: Path
    store: Path | None
    device: str
    memory: int | None

    def command(self, name: str, *arguments: str, **options: str) -> str:
        return command_line(name, self.file, *arguments, store=self.store, **options)


_served: Served


def serve(served: Served, port: int | None, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `say` is told the address.

    SpecError for a port that is taken; before it is served, whatever `open_study` raises.
    """
    global _served
    open_study(served.file, served.store, served.device)
    _served, port = served, _free_port(port)
    # Streamlit would ask the network which addresses it has, to let them in.
    from streamlit import net_util

    net_util.get_internal_ip = net_util.get_external_ip = lambda: None
    say(f"http://{HOST}:{port}  ({served.file}; Ctrl-C ends it)")
    st.App(_SCRIPT).run(config=_OPTIONS | {"server.port": port})


def _free_port(port: int | None) -> int:
    for tried in [port] if port else range(PORT, PORT + _PORTS):
        try:
            socket.create_server((HOST, tried)).close()
        except OSError as error:
            reason = error.strerror
        else:
            return tried
    raise SpecError(f"--port: {tried} cannot be had ({reason}); name another")


def show() -> None:
    """Everything that a browser is shown."""
    st.set_page_config(page_title="Paretune", layout="wide")
    pages = (_overview, _run, _side_by_side, _rating, _examples, _cards, _export)
    titles = ("Overview", "Run", "Side by side", "Blind rating", "Examples", "Cards", "Export")
    named = zip(pages, titles, strict=True)
    made = [st.Page(page, title=title, url_path=title.lower().replace(" ", "-")) for page, title in named]
    chosen = st.navigation(made, position="top")
    try:
        chosen.run()
    except ParetuneError as error:
        st.error(_markdown(str(error)))
    except OSError as error:
        st.error(_markdown(f"the store changed while it was read ({error}); load the page again"))


# What is kept for all browsers ------------------------------------------------------------------------------------------------


def _seen() -> tuple[Any, ...]:
    """Changes with the study file, with what the store holds, and with runs that begin or end."""
    opened_root = _served.store or _served.file.parent / ".paretune"
    names = sorted(path.name for path in opened_root.iterdir()) if opened_root.is_dir() else []
    runs = sorted(path.name for path in (opened_root / "runs").glob("*.json"))
    return (_served.file.stat().st_mtime_ns, *names, *runs)


@st.cache_resource(max_entries=2, show_spinner="Reading the study")
def _opened_at(seen: tuple[Any, ...]) -> OpenStudy:
    return open_study(_served.file, _served.store, _served.device)


@st.cache_resource(max_entries=2, show_spinner="Reading what was measured")
def _findings_at(seen: tuple[Any, ...]) -> Findings:
    opened = _opened_at(seen)
    return find(read_results(opened.study, opened.file, opened.lock, opened.plan, opened.store))


@st.cache_resource(max_entries=2, show_spinner="Reading what was written")
def _page_at(seen: tuple[Any, ...]) -> dict[str, Any]:
    return page_data(_findings_at(seen))


@st.cache_resource(show_spinner=False)
def _models() -> "Models":
    from paretune.app.conversation import Models

    return Models(_served.memory)


def _opened() -> OpenStudy:
    return _opened_at(_seen())


def _measured() -> Findings | None:
    """The findings; None, with what to do, where nothing is measured yet."""
    findings = _findings_at(_seen())
    if any(set(cell.evaluations) - {SIZE.name} for cell in findings.results.cells):
        return findings
    st.info(f"Nothing is trained and measured yet. `{_served.command('run')}` does it; the page **Run** shows how far it is.")
    return None


# Words, tables and charts -----------------------------------------------------------------------------------------------------


def _markdown(words: Words) -> str:
    """Words for Streamlit, whose Markdown has a syntax of colons besides; literals as code, all else taken literally."""
    parts = escaped(words).split("`")
    return "`".join(part if index % 2 else part.replace(":", "\\:") for index, part in enumerate(parts))


def _text(text: str) -> None:
    """What a model wrote, or what stands in data."""
    st.text(visible(text) or "(nothing)", width="stretch")


def _show_section(section: Section) -> None:
    for block in section.blocks:
        match block:
            case Paragraph(text):
                st.markdown(_markdown(text))
            case Bullets(items):
                st.markdown("\n".join(f"- {_markdown(item)}" for item in items))
            case Table():
                rows = [[_markdown(cell) for cell in row] for row in block.folded]
                st.table(pd.DataFrame(rows, columns=[_markdown(name) for name in block.header]), hide_index=True)


def _chart(name: str, rows: Sequence[Mapping[str, Any]], encoding: Mapping[str, Mapping[str, Any]], alt: str) -> None:
    """A chart of the report, in the colours of the theme."""
    spec = deepcopy(charts.SPECS[name])
    for channel, more in encoding.items():
        spec["encoding"][channel] |= more
    spec["data"], spec["width"] = {"values": list(rows)}, "container"
    dark = st.context.theme.type == "dark"
    text = json.dumps(spec)
    for variable, *colours in _VARIABLE.findall((TEMPLATES / "report.css").read_text(encoding="utf-8")):
        text = text.replace(f"var(--{variable})", colours[dark])
    # The last colour of the palette is that of the text.
    ink = "#e6e9ec" if dark else "#1c2024"
    st.vega_lite_chart(json.loads(re.sub(r"var\(--\w+\)", ink, text)), theme=None, width="stretch", alt=alt)


def _axis(label: str, better: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    is_wide = min(values) > 0 and max(values) > _WIDE * min(values)
    scale = {"padding": 18, "nice": False} | ({"type": "log"} if is_wide else {"zero": False})
    axis = {"labelExpr": _LABELS[unit]} if unit in _LABELS else {}
    return {"scale": scale, "axis": axis, "title": f"{label}, {better} is better" if better else label}


def _scatter(page: Mapping[str, Any], view: Mapping[str, Any]) -> None:
    """Quality against a cost, both picked among all that was measured."""
    measures = page["measures"]
    by_kind = {kind: [name for name in view["ids"] if measures[name]["is_cost"] is kind] for kind in (False, True)}
    if not all(by_kind.values()):
        return
    left, right = st.columns(2)
    picked = []
    for place, kind, what, default in ((left, False, "Quality", view["y"]), (right, True, "Cost", view["x"])):
        names = by_kind[kind]
        index = names.index(default) if default in names else 0
        picked.append(place.selectbox(what, names, index, format_func=lambda name: visible(measures[name]["label"])))
    y, x = picked
    frontier = view["frontier"].get(x, []) if y in view["headlines"] else []
    shown = [index for index in view["entrants"] if {x, y} <= set(page["values"][index])]
    shown = [index for index in shown if None not in (page["values"][index][x]["value"], page["values"][index][y]["value"])]
    if not shown:
        return
    ends = [page["values"][index][x]["value"] for index in shown]
    rows = []
    for index in shown:
        across, up = page["values"][index][x], page["values"][index][y]
        entrant = page["entrants"][index]
        label = f"{entrant['base']} {entrant['label']}" if view["is_across"] else entrant["label"]
        tips = (f"{measures[name]['label']}: {value['full']}" for name, value in ((y, up), (x, across)))
        rows.append(
            {
                **entrant,
                "entrant": index,
                "label": label,
                "x": across["value"],
                "x_low": across["low"],
                "x_high": across["high"],
                "y": up["value"],
                "y_low": up["low"],
                "y_high": up["high"],
                "y_label": up["value"],
                "to_left": across["value"] > (min(ends) + max(ends)) / 2,
                "tip": ", ".join((label, *tips)),
                "on_frontier": index in frontier,
                "is_hollow": bool(frontier) and index not in frontier,
            }
        )
    axes = {
        channel: _axis(*(measures[name][key] for key in ("label", "better", "unit")), [row[channel] for row in rows])
        for channel, name in (("x", x), ("y", y))
    }
    _chart("scatter", rows, axes, f"{measures[y]['label']} against {measures[x]['label']}")
    if frontier:
        st.caption("Filled and joined: the Pareto frontier, by whole intervals.")


# Pages ------------------------------------------------------------------------------------------------------------------------


def _overview() -> None:
    findings = _measured()
    if findings is None:
        return
    report, page = build_report(findings, frozenset()), _page_at(_seen())
    st.subheader(report.title, anchor=False)
    answer, *others = report.sections
    is_table = [isinstance(block, Table) for block in answer.blocks]
    words, plot = st.columns([5, 6], gap="large")
    with words:
        _show_section(Section("", [block for block, table in zip(answer.blocks, is_table, strict=True) if not table]))
    with plot:
        views = page["views"]
        view = st.selectbox("Of", views, format_func=lambda view: view["label"]) if len(views) > 1 else views[0]
        _scatter(page, view)
    _show_section(Section("", [block for block, table in zip(answer.blocks, is_table, strict=True) if table]))
    for section in others:
        if section.title.startswith("Bases on "):
            st.markdown(f"**{_markdown(section.title)}**")
            _show_section(section)
        elif section.title == "Caveats":
            with st.expander(f"Caveats ({len(findings.facts.incomplete) + len(findings.facts.remarks)})"):
                _show_section(section)


def _run() -> None:
    st.fragment(_run_now, run_every=_SECONDS)()


def _run_now() -> None:
    """What is done, at work and to do; and the curves as far as they are written."""
    opened = _opened()
    plan, store = opened.plan, opened.store
    mine = {stage.name for stage in plan.stages}
    runs = [run for run in live_runs(store) if mine.intersection(run.stages)]
    since = {name: moment for run in runs for name, moment in run.at_work}
    failed, told = {name for run in runs for name in run.failed}, _progress(opened)
    states = {"done": 0, "at work": 0, "failed": 0, "to do": 0}
    rows = []
    for stage in plan.stages:
        is_done = store.find(stage) is not None
        state = "done" if is_done else "at work" if stage.name in since else "failed" if stage.name in failed else "to do"
        states[state] += 1
        event = told.get(stage.name, {}) if state == "at work" else {}
        part, total = event.get("part", ""), event.get("total") or 0
        known = f"{part} {event['done']:,} of {total:,}".strip() if total > 1 else part
        begun = f"since {clock(since[stage.name])}" if stage.name in since else ""
        rows.append({"stage": stage.name, "of": ", ".join(plan.uses(stage)), "state": state, "progress": known, "begun": begun})
    st.progress(states["done"] / max(1, len(rows)), ", ".join(f"{num} {state}" for state, num in states.items() if num))
    if runs:
        st.markdown(f"A run is on: {_markdown('; '.join(run.name for run in runs))}.")
    elif states["done"] < len(rows):
        st.info(f"No run is on; `{_served.command('run')}` goes on.")
    order = ("at work", "failed", "to do", "done")
    table = pd.DataFrame(sorted(rows, key=lambda row: order.index(row["state"])))
    st.dataframe(table, hide_index=True, height=min(36 * (len(rows) + 1), 330))
    _live_curves(opened)


def _progress(opened: OpenStudy) -> dict[str, Mapping[str, Any]]:
    """The last that each stage has told of its progress, as far as it stands at the end of the events."""
    try:
        with opened.store.events_file.open("rb") as events:
            events.seek(max(0, opened.store.events_file.stat().st_size - _EVENTS))
            lines = events.read().split(b"\n")[1:-1]
    except OSError:
        return {}
    found = {}
    for line in lines:
        if b'"progress"' in line:
            event = json.loads(line)
            found[event["stage"]] = event
    return found


def _live_curves(opened: OpenStudy) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"validation_loss": [], "train_loss": []}
    names = list(opened.study.variants)
    bases = list(opened.study.bases)
    for one in followed(opened.study, opened.store, opened.plan):
        look = charts.look(names.index(one.config["variant"]), bases.index(one.config["base"]))
        for side, told in rows.items():
            of_side = [row for row in curve_rows(one.curves) if side in row]
            values = [row[side] for row in of_side]
            if side == "train_loss" and values:
                values = list(running_mean(pd.Series(values).to_numpy()))
            told += [
                {**look, "x": row["step"], "y": value, "run": one.name, "entrant": one.name, "tip": f"{one.name}: {value:.4g}"}
                for row, value in zip(of_side, values, strict=True)
            ]
    places = st.columns(2)
    for place, (side, told) in zip(places, rows.items(), strict=True):
        if told:
            title = f"{side.replace('_', ' ').capitalize()}, nats per token"
            with place:
                axes = {"x": {"title": "step"}, "y": {"title": title}}
                _chart("curves", told, axes, title)
    if any(rows.values()):
        seen = dict.fromkeys(row["run"] for told in rows.values() for row in told)
        st.caption(_markdown(f"Of {', '.join(seen)}; point at a line for its name."))


def _shipped(opened: OpenStudy) -> dict[str, "Shipped"]:
    """The variants that are trained, by name; the first training seed of each."""
    from paretune.app.conversation import Shipped

    first: dict[tuple[str, ...], PlannedCell] = {}
    for cell in opened.plan.cells:
        first.setdefault((cell.base, cell.dataset, cell.variant), cell)
    trained = [cell for cell in first.values() if all(map(opened.store.find, cell.methods))]
    return {cell_name(cell): Shipped(cell, opened.store, _served.command("run")) for cell in trained}


def _talk(shipped: "Shipped", *, plain: bool) -> "Conversation":
    from paretune.app.conversation import Conversation

    of_chats = _opened().study.data[shipped.cell.dataset].chats
    return Conversation(shipped.name, partial(_models().use, shipped), of_chats, plain)


_TURNS, _PLAIN = "Conversation", "Continue the text"


def _side_by_side() -> None:
    opened = _opened()
    shipped, state = _shipped(opened), st.session_state
    if not shipped:
        st.info(f"No variant is trained yet. `{_served.command('run')}` trains them.")
        return
    kept = [name for name in state.get("picked", list(shipped)[:2]) if name in shipped]
    if gone := [name for name in state.get("picked", []) if name not in shipped]:
        st.error(_markdown(f"`{gone[0]}` was removed from the store; `{_served.command('run')}` trains it again"))
    picked = st.multiselect("Variants", list(shipped), default=kept, placeholder="Pick two or more")
    state.picked = picked
    left, right = st.columns([3, 2], gap="medium")
    with right:
        mode = st.segmented_control("How they are asked", (_TURNS, _PLAIN), required=True, default=_TURNS, key="mode")
        asking, at_once = _controls()
    with left:
        _test_prompts(opened, picked, shipped)
        st.text_area("Prompt", key="prompt", height=120)
        ask, anew, stop = st.columns(3)
        wanted = ask.button("Ask", type="primary", disabled=not picked, width="stretch")
        if anew.button("Begin anew", width="stretch"):
            state.pop("talks", None)
        stopping = stop.empty()
    key = (tuple(picked), mode, asking.system)
    if state.get("talks", (None,))[0] != key:
        state.talks = (key, [_talk(shipped[name], plain=mode == _PLAIN) for name in picked], [])
        state.begun = False
    _, talks, turns = state.talks
    if not picked:
        return
    columns = st.columns(len(talks), border=True)
    for column, talk in zip(columns, talks, strict=True):
        column.markdown(f"**{_markdown(talk.name)}**")
    for said, answers in turns:
        _show_turn(columns, said, answers)
    if wanted and (said := state.prompt).strip():
        fit = _models().fit_together([shipped[name] for name in picked])
        _ask(talks, turns, said, asking, columns, stopping, at_once=at_once and fit)
        if at_once and not fit:
            st.caption("They answered one after the other: together they do not fit into `--memory`.")


def _controls() -> tuple[Any, bool]:
    from paretune.app.conversation import Asking

    with st.expander("Sampling"):
        temperature = st.slider("Temperature", 0.0, 2.0, 0.0, 0.05, help="0 takes the likeliest token.")
        top_p = st.slider("Top p", 0.05, 1.0, 1.0, 0.05, disabled=not temperature)
        top_k = st.number_input("Top k", 0, 1000, 0, help="0 keeps all.", disabled=not temperature)
        penalty = st.slider("Repetition penalty", 1.0, 2.0, 1.0, 0.05)
        most = st.number_input("New tokens at most", 1, 4096, 128)
        seed = st.number_input("Seed", 0, 2**31, 0, disabled=not temperature)
        system = st.text_input("System prompt")
        at_once = st.toggle("All at once", True, help="They then share the cores; turn it off to compare their speed.")
    return Asking(float(temperature), int(most), int(seed), system, top_p, int(top_k), penalty), at_once


def _ask(
    talks: Sequence["Conversation"],
    turns: list[tuple[str, "Answers"]],
    said: str,
    asking: Any,
    columns: Sequence[Any],
    stopping: Any,
    *,
    at_once: bool,
) -> None:
    """Show the answers as they are written; whatever is clicked meanwhile ends them."""
    from paretune.app.conversation import Answers

    if not turns:
        for talk in talks:
            talk.begin(asking.system)
    stopping.button("Stop", width="stretch")
    answers = Answers(talks, said, asking, asking.seed + len(turns), at_once=at_once)
    try:
        places = []
        for column in columns:
            with column:
                _show_said(said)
                places.append(st.empty())
        drawn: list[str | None] = [None] * len(talks)
        while not answers.done:
            for index, place in enumerate(places):
                if answers.texts[index] != drawn[index]:
                    drawn[index] = answers.texts[index]
                    place.text(visible(answers.texts[index]) or "…", width="stretch")
            time.sleep(_DRAWN)
        for index, place in enumerate(places):
            with place.container():
                _show_answer(answers, index)
    finally:
        answers.stop()
    for talk, reply in zip(talks, answers.replies, strict=True):
        if reply is not None:
            talk.keep(said, reply)
    turns.append((said, answers))
    stopping.empty()


def _show_turn(columns: Sequence[Any], said: str, answers: "Answers") -> None:
    for index, column in enumerate(columns):
        with column:
            _show_said(said)
            _show_answer(answers, index)


def _show_said(said: str) -> None:
    with st.container(border=True):
        _text(said)


def _show_answer(answers: "Answers", index: int) -> None:
    if answers.failures[index]:
        st.error(_markdown(answers.failures[index]))
    elif reply := answers.replies[index]:
        _text(reply.text)
        st.caption(_markdown(str(reply)))


def _test_prompts(opened: OpenStudy, picked: Sequence[str], shipped: Mapping[str, "Shipped"]) -> None:
    """A record that nothing was learned from, and what is read against the answer."""
    if not picked:
        return
    prompts = _prompts_of(opened.store.artifact(opened.plan.data[shipped[picked[0]].cell.dataset]).path)
    with st.expander("Take a prompt from the test set"):
        labels = [f"{index + 1}. {visible(said)[-90:].strip()}" for index, (said, _, _) in enumerate(prompts)]
        index = st.selectbox("Record", range(len(prompts)), format_func=lambda index: labels[index])
        if index is None:
            st.caption("The test split has no record.")
            return
        said, references, is_chat = prompts[index]

        def take() -> None:
            st.session_state.prompt = said
            st.session_state.mode = _TURNS if is_chat else _PLAIN

        st.button("Take it", on_click=take)
        for reference in references:
            st.caption("Reference")
            _text(reference)


@st.cache_data(max_entries=4, show_spinner=False)
def _prompts_of(data: Path) -> list[tuple[str, list[str], bool]]:
    """Of test records: what is asked (of a plain text its beginning), what is right, and whether it is said in a chat."""
    found = []
    rows = (row for row in document_rows(data / "documents.parquet") if row["split"] == "test")
    for row in islice(rows, _PROMPTS):
        if row.get("messages"):
            users = [message["content"] for message in json.loads(row["messages"]) if message["role"] == "user"]
            found += [(users[-1], [row["completion"]], True)] if users else []
        elif row.get("completion") is not None:
            asked = (row["context"] or "") + row["prompt"]
            found.append((asked, list(row["references"] or [row["completion"]]), False))
        else:
            opening = re.match(rf"\s*(?:\S+\s+){{0,{_OPENING - 1}}}\S+", row["text"])
            cut = opening.end() if opening else 0
            found.append((row["text"][:cut], [row["text"][cut:]], False))
    return found


@st.cache_resource(max_entries=2, show_spinner="Reading what was written")
def _texts_at(seen: tuple[Any, ...]) -> list[Any]:
    opened = _opened_at(seen)
    return [text for name in opened.study.data for text in comparable_texts(opened.study, opened.plan, opened.store, name)]


def _rating() -> None:
    texts = _texts_at(_seen())
    if not texts:
        raise StoreError("the study writes no text that could be rated; add `generate: {prompts: [...]}` to `evaluate`")
    person = st.text_input("Your name", key="person", help="The sheet goes by it.").strip()
    if not person:
        st.markdown("Texts come in random order, and nobody is told who wrote what. Each click is saved at once.")
        return
    sheet = RatingSheet(sheet_file(_served.file, person), texts)
    named = f"{sheet.file.parent.name}/{sheet.file.name}"
    one, two = st.tabs(["One text", "Two texts"])
    with one:
        _rate_one(sheet)
    with two:
        _rate_two(sheet)
    if named not in [file for use in _opened().study.evaluate.values() for file in getattr(use.config, "files", ())]:
        st.info(f"Saved in `{named}`. To count it, name it in the study, and run that again: `ratings: {{files: [{named}]}}`")
    else:
        st.caption(f"Saved in `{named}`, which the study names: `{_served.command('run')}` counts it.")


def _move(key: str, position: int) -> None:
    st.session_state[key] = position


def _rate_one(sheet: RatingSheet) -> None:
    rows, items = sheet.rows, sheet.items
    rated = [all(rows[item].get(criterion) for criterion in RUBRIC) for item in items]
    key = f"one {sheet.file.stem}"
    position = st.session_state.setdefault(key, rated.index(False) if False in rated else 0) % len(items)
    item = items[position]
    text = sheet.texts[item]
    st.caption(f"Text {position + 1} of {len(items)}, {sum(rated)} rated")
    if text.context:
        with st.expander("Context"):
            _text(text.context)
    with st.container(border=True):
        _text(text.prompt)
    _text(text.text)
    for criterion, meaning in RUBRIC.items():
        given, field = rows[item].get(criterion), f"{criterion} {item} {sheet.file.stem}"

        def save(criterion: str = criterion, field: str = field) -> None:
            sheet.rate(item, criterion, st.session_state[field])

        st.session_state.setdefault(field, int(given) if given else None)
        options = range(LOWEST, HIGHEST + 1)
        st.segmented_control(criterion.capitalize(), options, key=field, on_change=save, help=_markdown(meaning))
    back, on = st.columns(2)
    back.button("Back", on_click=_move, args=(key, position - 1), key=f"back {key}", width="stretch")
    on.button("Next", on_click=_move, args=(key, position + 1), key=f"on {key}", width="stretch", type="primary")


def _rate_two(sheet: RatingSheet) -> None:
    pairs, said = sheet.pairs, sheet.preferences()
    if not pairs:
        st.caption("All variants wrote the same.")
        return
    names = [frozenset(text.item() for text in pair) for pair in pairs]
    key = f"two {sheet.file.stem}"
    first = next((index for index, name in enumerate(names) if name not in said), 0)
    position = st.session_state.setdefault(key, first) % len(pairs)
    pair, known = pairs[position], said.get(names[position])
    st.caption(f"Pair {position + 1} of {len(pairs)}, {len(said)} rated")
    if pair[0].context:
        with st.expander("Context"):
            _text(pair[0].context)
    with st.container(border=True):
        _text(pair[0].prompt)
    for column, text in zip(st.columns(2, border=True), pair, strict=True):
        with column:
            _text(text.text)

    def choose(choice: Any) -> None:
        sheet.prefer(pair, choice)
        st.session_state[key] = position + 1

    left, neither, right = st.columns(3)
    for column, label, choice in ((left, "Left", pair[0]), (neither, "Neither", None), (right, "Right", pair[1])):
        is_known = known is not None and known == ("" if choice is None else choice.item())
        kind = "primary" if is_known else "secondary"
        column.button(label, on_click=choose, args=(choice,), key=f"{label} {key}", width="stretch", type=kind)
    back, on = st.columns(2)
    back.button("Back", on_click=_move, args=(key, position - 1), key=f"back {key}", width="stretch")
    on.button("Next", on_click=_move, args=(key, position + 1), key=f"on {key}", width="stretch")


def _examples() -> None:
    if _measured() is None:
        return
    page = _page_at(_seen())
    datasets = [name for name, examples in page["examples"].items() if examples]
    if not datasets:
        st.info("Nothing was scored example by example.")
        return
    filters = st.columns(4)
    dataset = filters[0].selectbox("Dataset", datasets)
    examples = page["examples"][dataset]
    task = filters[1].selectbox("Task", list(dict.fromkeys(example["task"] for example in examples)))
    found = [example for example in examples if example["task"] == task]
    slices = sorted({f"{name}: {value}" for example in found for name, value in example["fields"].items()})
    chosen = filters[2].selectbox("Slice", ["all", *slices])
    found = [one for one in found if chosen == "all" or chosen in [f"{name}: {value}" for name, value in one["fields"].items()]]
    if filters[3].toggle("Variants disagree"):
        found = [one for one in found if _disagree(one)]
    if not found:
        st.info("No example is so.")
        return
    number = st.number_input(f"Example, of {len(found):,}", 1, len(found), 1)
    example = found[int(number) - 1]
    for label, text in (("Record", example["record"]), ("Prompt", example["prompt"])):
        if text:
            st.caption(label)
            _text(text)
    for reference in example["references"]:
        st.caption("Reference")
        _text(reference)
    names = {int(index): page["entrants"][int(index)] for index in example["by"]}
    for row in range(0, len(names), 3):
        for column, index in zip(st.columns(3, border=True), list(names)[row : row + 3], strict=False):
            with column:
                st.markdown(f"**{_markdown(names[index]['base'])} {_markdown(names[index]['variant'])}**")
                for seed, made in example["by"][index].items():
                    if "text" in made:
                        _text(made["text"])
                    labels = {name: page["metrics"].get(name, {"label": name})["label"] for name in made["scores"]}
                    known = {labels[name]: value for name, value in made["scores"].items() if value is not None}
                    scores = ", ".join(f"{label} {value:.4g}" for label, value in known.items())
                    st.caption(_markdown(f"seed {seed}: {scores}" if seed else scores))


def _disagree(example: Mapping[str, Any]) -> bool:
    made = [one for by_seed in example["by"].values() for one in by_seed.values()]
    right = {one["scores"][name] for one in made for name in ("exact_match", "accuracy") if name in one["scores"]}
    return len(right) > 1 if right else len({one.get("text") for one in made}) > 1


def _cards() -> None:
    findings = _measured()
    if findings is None:
        return
    texts = {path.removeprefix("cards/").removesuffix("/README.md"): text for path, text in cards(findings).items()}
    name = st.selectbox("Card", list(texts))
    st.download_button("Download", texts[name], "README.md", "text/markdown")
    _, _, body = texts[name].removeprefix("---\n").partition("\n---\n")
    with st.container(border=True):
        st.markdown(body)  # escaped where it was written, as report.md is


def _export() -> None:
    opened = _opened()
    shipped = _shipped(opened)
    if not shipped:
        st.info(f"No variant is trained yet. `{_served.command('run')}` trains them.")
        return
    cell = shipped[st.selectbox("Variant", list(shipped))].cell
    form = st.selectbox("Form", ["as it was measured", "hf", "adapter"])
    to = st.text_input("Directory", str(_served.file.with_name(f"{cell.variant}-exported").resolve()))
    options = {"to": to, "base": cell.base, "data": cell.dataset}
    options |= {"seed": str(cell.seed)} if cell.seed is not None else {}
    options |= {"format": form} if " " not in form else {}
    st.code(_served.command("export", cell.variant, **options), language="bash", wrap_lines=True)
    if st.button("Export now", type="primary", disabled=not to.strip()):
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        words += ["--store", str(_served.store)] if _served.store else []
        command = [sys.executable, "-m", "paretune.cli", "export", str(_served.file), cell.variant, *words]
        with st.spinner("Writing, and reading it back"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        (st.error if done.returncode else st.success)(_markdown((done.stderr if done.returncode else done.stdout).strip()))
