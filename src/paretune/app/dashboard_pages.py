"""What Streamlit runs for every browser, and again whenever something is clicked: the page that is asked for.

The pages read facts and records, and compute no number; one keeps blind ratings.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import streamlit as st

from paretune.analysis.findings import Findings
from paretune.analysis.training import running_mean
from paretune.app.dashboard import findings, markdown, opened, page, seen, served, show_blocks, show_chart, show_text, trained
from paretune.app.rating import RatingSheet, sheet_file
from paretune.app.track import curve_rows, followed
from paretune.data.sheets import Text
from paretune.errors import ParetuneError, StoreError
from paretune.evaluate.ratings import comparable_texts
from paretune.pipeline.forecast import duration_words, forecast
from paretune.pipeline.progress import Part, note_progress
from paretune.pipeline.rates import kept_rates, rough_rates
from paretune.pipeline.results import OpenStudy
from paretune.pipeline.runs import clock, live_runs
from paretune.report import charts
from paretune.report.blocks import Table
from paretune.report.cards import cards
from paretune.report.render import visible
from paretune.report.sections import build_report
from paretune.study.evaluations import SIZE
from paretune.study.ratings import HIGHEST, LOWEST, RUBRIC

_SECONDS = 2.0
"""Between two looks at a run."""
_EVENTS = 200_000
"""Bytes at the end of the events, in which what is at work has told its progress."""
_STATES = ("at work", "failed", "to do", "done")
_WIDE = 20
"""Ratio of the largest figure to the smallest from which an axis is logarithmic."""
_LABELS = {
    "bytes": "replace(format(datum.value, '~s'), /([kMGT]?)$/, ' $1B')",
    "share": "format(datum.value, '.0%')",
    "count": "format(datum.value, '~s')",
}
"""Of axes, by unit."""
Json = Mapping[str, Any]


def measured() -> Findings | None:
    """The findings; None, with what to do, where nothing is measured yet."""
    found = findings()
    if any(set(cell.evaluations) - {SIZE.name} for cell in found.results.cells):
        return found
    again = served().command("run")
    st.info(markdown(f"Nothing is trained and measured yet. `{again}` does it; the page Run shows how far it is."))
    return None


def overview() -> None:
    """The decision, its caveats, and quality against costs."""
    found = measured()
    if found is None:
        return
    report = build_report(found, frozenset())
    answer, *others = report.sections
    st.subheader(report.title, anchor=False)
    words, plot = st.columns([5, 6], gap="large")
    with words:
        show_blocks([block for block in answer.blocks if not isinstance(block, Table)])
    with plot:
        views = page()["views"]
        view = st.selectbox("Of", views, format_func=lambda view: view["label"]) if len(views) > 1 else views[0]
        _scatter(page(), view)
    show_blocks([block for block in answer.blocks if isinstance(block, Table)])
    for section in others:
        if section.title.startswith("Bases on "):
            st.markdown(f"**{markdown(section.title)}**")
            show_blocks(section.blocks)
        elif section.title == "Caveats":
            with st.expander("Caveats"):
                show_blocks(section.blocks)


def _scatter(page: Json, view: Json) -> None:
    """Quality against a cost, both picked among all that was measured."""
    measures, picked = page["measures"], []
    wanted = (("Quality", False, view["y"]), ("Cost", True, view["x"]))
    for place, (what, is_cost, first) in zip(st.columns(2), wanted, strict=True):
        names = sorted((name for name in view["ids"] if measures[name]["is_cost"] is is_cost), key=lambda name: name != first)
        picked.append(place.selectbox(what, names, format_func=lambda name: visible(measures[name]["label"])))
    y, x = picked
    frontier = view["frontier"].get(x, []) if y in view["headlines"] else []
    rows = []
    for index in view["entrants"]:
        found, entrant = page["values"][index], page["entrants"][index]
        if any(found.get(name, {}).get("value") is None for name in picked):
            continue
        label = f"{entrant['base']} {entrant['label']}" if view["is_across"] else entrant["label"]
        shape = {
            f"{channel}{end}": found[name][key]
            for channel, name in (("x", x), ("y", y))
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        tip = ", ".join([label, *(f"{measures[name]['label']}: {found[name]['full']}" for name in picked)])
        on_frontier = index in frontier
        named = {"entrant": index, "label": label, "tip": tip, "on_frontier": on_frontier}
        rows.append({**entrant, **shape, **named, "is_hollow": bool(frontier) and not on_frontier})
    if not rows:
        return
    _place_labels(rows)
    axes = {channel: _axis(measures[name], [row[channel] for row in rows]) for channel, name in (("x", x), ("y", y))}
    show_chart("scatter", rows, axes, f"{measures[y]['label']} against {measures[x]['label']}")
    if frontier:
        st.caption("Filled and joined: the Pareto frontier, by whole intervals.")


def _axis(measure: Json, values: Sequence[float]) -> dict[str, Any]:
    is_wide = min(values) > 0 and max(values) > _WIDE * min(values)
    scale = {"padding": 18, "nice": False} | ({"type": "log"} if is_wide else {"zero": False})
    axis = {"labelExpr": _LABELS[measure["unit"]]} if measure["unit"] in _LABELS else {}
    better = f", {measure['better']} is better" if measure["better"] else ""
    return {"scale": scale, "axis": axis, "title": measure["label"] + better}


def _place_labels(rows: list[dict[str, Any]]) -> None:
    """Beside their points on the side that has room, one above the other where they would meet."""
    left = min(row["x"] for row in rows)
    wide = max(row["x"] for row in rows) - left or 1.0
    ends = [row[end] for row in rows for end in ("y", "y_low", "y_high") if row[end] is not None]
    line = (max(ends) - min(ends) or 1.0) / 18
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row["y"]):
        label = row["y"]
        while any(abs(row["x"] - x) < wide / 2 and abs(label - y) < line for x, y in placed):
            label += line / 4
        placed.append((row["x"], label))
        row |= {"y_label": label, "to_left": row["x"] > left + wide / 2}


def run() -> None:
    """What is done, at work and to do, and the curves as far as they are written; looked at again and again."""
    st.fragment(_run_now, run_every=_SECONDS)()


def _run_now() -> None:
    study = opened()
    mine = {stage.name for stage in study.plan.stages}
    runs = [run for run in live_runs(study.store) if mine.intersection(run.stages)]
    since = {name: moment for run in runs for name, moment in run.at_work}
    failed, told = {name for run in runs for name in run.failed}, _progress(study, {run.run for run in runs})
    expected, rests, rows = _expected_at(seen()), list[float | None](), list[Json]()
    whole_study, at_work = st.container(), st.container()
    for stage in study.plan.stages:
        name, is_done, of = stage.name, study.store.find(stage) is not None, ", ".join(study.plan.uses(stage))
        state = "done" if is_done else "at work" if name in since else "failed" if name in failed else "to do"
        rows.append({"state": state, "of": of, "since": clock(since[name]) if name in since else "", "stage": name})
        if state == "to do":
            rests.append(expected.get(name))
        elif state == "at work":
            parts, seconds = told.get(name, {}), expected.get(name)
            now, steps = next(reversed(parts.values()), None), parts[""].seconds_left if "" in parts else None
            text = ", ".join(filter(None, (now.text, now.left))) if now else f"since {clock(since[name])}"
            done = now.seen[-1][1] / now.total if now and now.total else 0.0
            at_work.progress(min(1.0, done), markdown(f"`{name}` of {of}: {text}"))
            rests.append(steps[1] if steps else seconds and max(0.0, seconds + since[name] - time.time()))
    counts = {state: sum(row["state"] == state for row in rows) for state in _STATES}
    said = [f"{count} {state}" for state, count in counts.items() if count]
    known = [rest for rest in rests if rest is not None]
    if sum(known):
        unknown = f" without {len(rests) - len(known)} whose time is not known" if len(known) < len(rests) else ""
        said.append(f"about {duration_words(sum(known))} left, one stage at a time{unknown}")
    whole_study.progress(counts["done"] / max(1, len(rows)), ", ".join(said))
    if runs:
        st.caption(markdown(f"A run is on: {'; '.join(run.name for run in runs)}."))
    elif counts["done"] < len(rows):
        st.info(markdown(f"No run is on; `{served().command('run')}` goes on."))
    rows.sort(key=lambda row: _STATES.index(row["state"]))
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=min(36 * (len(rows) + 1), 330))
    _live_curves(study)


@st.cache_resource(max_entries=2, show_spinner=False)
def _expected_at(seen: tuple[Any, ...]) -> Mapping[str, float | None]:
    """Seconds by the name of a stage, as a plan says them, by what finished ones took; None where that is not known."""
    study = opened()
    asked = study.study, study.lock, study.plan, study.store
    with suppress(ParetuneError, OSError):  # data that are not to be read: a run says it
        costs = forecast(*asked, rates=kept_rates(*asked) or rough_rates(study.lock))
        return {stage.name: 0.0 if not stage.runs else cost.seconds for stage, cost in costs.items()}
    return {}


def _progress(study: OpenStudy, runs: Collection[str]) -> dict[str, dict[str, Part]]:
    """What each stage has told of its progress in one of `runs`, as far as it stands at the end of the events."""
    try:
        with study.store.events_file.open("rb") as events:
            events.seek(max(0, study.store.events_file.stat().st_size - _EVENTS))
            lines = events.read().split(b"\n")[:-1]
    except OSError:
        return {}
    told: dict[str, dict[str, Part]] = {}
    for event in (json.loads(line) for line in lines if line.startswith(b"{") and b'"progress"' in line):
        if event["run"] in runs:
            note_progress(told.setdefault(event["stage"], {}), event, event["time"])
    return told


def _live_curves(study: OpenStudy) -> None:
    variants, bases = list(study.study.variants), list(study.study.bases)
    curves = [(one, curve_rows(one.curves)) for one in followed(study.study, study.store, study.plan)]
    for place, side in zip(st.columns(2), ("validation_loss", "train_loss"), strict=True):
        rows: list[Json] = []
        for one, curve in curves:
            look = charts.look(variants.index(one.config["variant"]), bases.index(one.config["base"]))
            named = {**look, "run": one.name, "entrant": one.name}
            points = pd.DataFrame([(row["step"], row[side]) for row in curve if side in row], columns=["x", "y"])
            if side == "train_loss" and len(points):
                points["y"] = running_mean(points["y"].to_numpy())
            rows += [{**named, "x": x, "y": y, "tip": f"{one.name}: {y:.4g}"} for x, y in points.itertuples(index=False)]
        if rows:
            title = f"{side.replace('_', ' ').capitalize()}, nats per token"
            with place:
                show_chart("curves", rows, {"x": {"title": "step"}, "y": {"title": title}}, title)
                names = ", ".join(dict.fromkeys(row["run"] for row in rows))
                st.caption(markdown(f"Of {names}; point at a line for its name."))


def examples() -> None:
    """Every record and question that was scored, with what each variant wrote."""
    if measured() is None:
        return
    of_dataset = {name: found for name, found in page()["examples"].items() if found}
    if not of_dataset:
        st.info("Nothing was scored example by example.")
        return
    places = st.columns(4, vertical_alignment="bottom")
    found = of_dataset[places[0].selectbox("Dataset", list(of_dataset))]
    task = places[1].selectbox("Task", list(dict.fromkeys(example["task"] for example in found)))
    found = [example for example in found if example["task"] == task]
    slices = {f"{name}: {value}" for example in found for name, value in example["fields"].items()}
    field, _, value = places[2].selectbox("Slice", ["all", *sorted(slices)]).partition(": ")
    found = [example for example in found if field == "all" or example["fields"].get(field) == value]
    if places[3].toggle("Variants disagree"):
        found = [example for example in found if _disagree(example)]
    if not found:
        st.info("No example is so.")
        return
    example = found[int(st.number_input(f"Example, of {len(found):,}", 1, len(found), 1)) - 1]
    if example["record"]:
        with st.expander("Record"):
            show_text(example["record"])
    if example["prompt"] is not None:
        show_text(example["prompt"], "Prompt")
    for reference in example["references"]:
        show_text(reference, "Reference")
    by = list(example["by"].items())
    for first in range(0, len(by), 3):
        for column, (index, by_seed) in zip(st.columns(3, border=True), by[first : first + 3], strict=False):
            entrant = page()["entrants"][index]
            column.markdown(f"**{markdown(entrant['base'])} {markdown(entrant['variant'])}**")
            with column:
                for seed, made in by_seed.items():
                    _show_made(seed, made)


def _show_made(seed: str, made: Json) -> None:
    if "text" in made:
        show_text(made["text"])
    known = {name: value for name, value in made["scores"].items() if value is not None}
    labels = {name: page()["metrics"].get(name, {"label": name})["label"] for name in known}
    scores = ", ".join(f"{labels[name]} {value:.4g}" for name, value in known.items())
    st.caption(markdown(f"seed {seed}: {scores}" if seed else scores))


def _disagree(example: Json) -> bool:
    """In what is right where that is scored, else in what they wrote."""
    made = [one for by_seed in example["by"].values() for one in by_seed.values()]
    right = {one["scores"][name] for one in made for name in ("exact_match", "accuracy") if name in one["scores"]}
    return len(right or {one.get("text") for one in made}) > 1


@st.cache_resource(max_entries=2, show_spinner="Reading what was written")
def _texts_at(seen: tuple[Any, ...]) -> list[Text]:
    study = opened()
    return [text for name in study.study.data for text in comparable_texts(study.study, study.plan, study.store, name)]


def blind_rating() -> None:
    """Texts one by one, and two after the same prompt, of nobody knows whom; each click is on the disk."""
    again = served().command("run")
    try:
        texts = _texts_at(seen())
    except StoreError:
        st.info(markdown(f"Not all variants have written their texts yet. `{again}` goes on."))
        return
    if not texts:
        st.info("The study writes no text that could be rated; add `generate: {prompts: [...]}` to `evaluate`.")
        return
    person = st.text_input("Your name", key="person", help="The sheet goes by it.", persist_state="session").strip()
    if not person:
        st.markdown("Texts come in random order, and nobody is told who wrote what. Each click is saved at once.")
        return
    sheet = RatingSheet(sheet_file(served().file, person), texts)
    one, two = st.tabs(["One text", "Two texts"])
    with one:
        _rate_one(sheet)
    with two:
        _rate_two(sheet)
    named = f"{sheet.file.parent.name}/{sheet.file.name}"
    if any(named in getattr(use.config, "files", ()) for use in opened().study.evaluate.values()):
        st.caption(markdown(f"Saved in `{named}`, which the study names: `{again}` counts it."))
    else:
        line = f"ratings: {{files: [{named}]}}"
        st.info(markdown(f"Saved in `{named}`. To count it, write `{line}` below `evaluate` of the study, then `{again}`."))


def _position(key: str, is_rated: Sequence[bool], what: str) -> int:
    """Which of several is shown: the first that is not rated, then as the buttons say."""
    state = st.session_state
    index = state.setdefault(key, is_rated.index(False) if False in is_rated else 0) % len(is_rated)
    st.caption(f"{what} {index + 1} of {len(is_rated)}, {sum(is_rated)} rated")
    return int(index)


def _steps(key: str, index: int) -> None:
    for place, label, step in zip(st.columns(2, wrap=False), ("Back", "Next"), (-1, 1), strict=True):
        move = {key: index + step}
        place.button(label, on_click=st.session_state.update, args=(move,), key=f"{label} {key}", width="stretch")


def _show_asked(text: Text) -> None:
    if text.context:
        with st.expander("Context"):
            show_text(text.context)
    with st.container(border=True):
        show_text(text.prompt)


def _rate_one(sheet: RatingSheet) -> None:
    rows, items, key = sheet.rows, sheet.items, f"one {sheet.file.stem}"
    index = _position(key, [all(rows[item].get(criterion) for criterion in RUBRIC) for item in items], "Text")
    item = items[index]
    _show_asked(sheet.texts[item])
    show_text(sheet.texts[item].text)
    state, changed = st.session_state, False
    for criterion, meaning in RUBRIC.items():
        given, field = rows[item].get(criterion), f"{criterion} {item} {sheet.file.stem}"
        state.setdefault(field, int(given) if given else None)
        known = state.setdefault(f"{field} saved", state[field])
        options = range(LOWEST, HIGHEST + 1)
        value = st.segmented_control(criterion.capitalize(), options, key=field, help=markdown(meaning))
        if value != known:  # no callback: that of a widget which was clicked before its first run has ended is never called
            sheet.rate(item, criterion, value)
            state[f"{field} saved"], changed = value, True
    if changed:
        st.rerun()
    _steps(key, index)


def _rate_two(sheet: RatingSheet) -> None:
    pairs, said, key = sheet.pairs, sheet.preferences(), f"two {sheet.file.stem}"
    if not pairs:
        st.caption("All variants wrote the same.")
        return
    names = [frozenset(text.item() for text in pair) for pair in pairs]
    index = _position(key, [name in said for name in names], "Pair")
    pair, known = pairs[index], said.get(names[index])
    _show_asked(pair[0])
    for column, label, text in zip(st.columns(2, border=True), "AB", pair, strict=True):
        with column:
            show_text(text.text, label)

    def prefer(choice: Text | None) -> None:
        sheet.prefer(pair, choice)
        st.session_state[key] = index + 1

    for column, label, choice in zip(st.columns(3, wrap=False), ("A", "Neither", "B"), (pair[0], None, pair[1]), strict=True):
        kind = "primary" if known == (choice.item() if choice else "") else "secondary"
        column.button(label, on_click=prefer, args=(choice,), key=f"{label} {key}", width="stretch", type=kind)
    _steps(key, index)


def model_cards() -> None:
    """What `cards/` holds."""
    found = measured()
    if found is None:
        return
    texts = {path.removeprefix("cards/").removesuffix("/README.md"): text for path, text in cards(found).items()}
    name = st.selectbox("Card", list(texts))
    st.download_button("Download", texts[name], "README.md", "text/markdown")
    _, _, body = texts[name].removeprefix("---\n").partition("\n---\n")
    with st.container(border=True):
        st.markdown(body)  # escaped where it was written, as report.md is


def export() -> None:
    """The command that writes a variant as a directory, and a button that runs it, in a process whose memory is given back."""
    cells = trained(opened())
    if not cells:
        st.info(markdown(f"No variant is trained yet. `{served().command('run')}` trains them."))
        return
    cell = cells[st.selectbox("Variant", list(cells))]
    form = st.selectbox("Form", ["as it was measured", "hf", "adapter"])
    to = st.text_input("Directory", str(served().file.with_name(f"{cell.variant}-exported").resolve()))
    options = {"to": to, "base": cell.base, "data": cell.dataset}
    options |= {"seed": str(cell.seed)} if cell.seed is not None else {}
    options |= {"format": form} if " " not in form else {}
    st.code(served().command("export", cell.variant, **options), language="bash", wrap_lines=True)
    if st.button("Export now", type="primary", disabled=not to.strip()):
        words = [str(served().file), cell.variant, *(word for name, value in options.items() for word in (f"--{name}", value))]
        words += ["--store", str(served().store)] if served().store else []
        with st.spinner("Writing, and reading it back"):
            command = [sys.executable, "-m", "paretune.cli", "export", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        show: Callable[[str], Any] = st.error if done.returncode else st.success
        show(markdown((done.stderr if done.returncode else done.stdout).strip()))


def side_by_side() -> None:
    """Two variants, or more, that answer the same."""
    from paretune.app import dashboard_talk  # with torch, which no other page takes

    dashboard_talk.side_by_side()


def show() -> None:
    """The page that is asked for."""
    pages = {
        "Overview": overview,
        "Run": run,
        "Side by side": side_by_side,
        "Blind rating": blind_rating,
        "Examples": examples,
        "Cards": model_cards,
        "Export": export,
    }
    st.set_page_config(page_title="Paretune", layout="wide")
    st.html("<style>.stMainBlockContainer { padding-top: 4.5rem; }</style>")
    made = [st.Page(page, title=title, url_path=title.lower().replace(" ", "-")) for title, page in pages.items()]
    try:
        st.navigation(made, position="top").run()
    except ParetuneError as error:
        st.error(markdown(str(error)))
    except OSError as error:
        st.error(markdown(f"the store changed while it was read ({error}); load the page again"))


if __name__ == "__main__":  # as Streamlit runs it
    show()
