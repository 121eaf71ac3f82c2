"""The dashboard's page on which variants answer side by side. Models are everybody's, conversations a browser's own."""

import json
import re
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import streamlit as st

from paretune.app.conversation import Answers, Asking, Conversation, Shipped
from paretune.app.dashboard import markdown, models, opened, served, show_text, trained
from paretune.data.documents import document_rows
from paretune.report.render import visible

_DRAWN = 0.1
"""Seconds between two looks at an answer."""
_HEIGHT = 480
"""Pixels of a conversation."""
_PROMPTS = 200
"""Of the test split that can be picked."""
_OPENING = 30
"""Words of a plain text that are asked to be continued."""
_TURNS, _PLAIN = "Conversation", "Continue the text"


def side_by_side() -> None:
    study, again, state = opened(), served().command("run"), st.session_state
    shipped = {name: Shipped(cell, study.store, again) for name, cell in trained(study).items()}
    if not shipped:
        st.info(markdown(f"No variant is trained yet. `{again}` trains them."))
        return
    before = state.get("picked", list(shipped)[:2])
    state.picked = [name for name in before if name in shipped]
    for gone in (name for name in before if name not in shipped):
        st.error(markdown(f"`{gone}` was removed from the store; `{again}` trains it again"))
    picked = st.multiselect("Variants", list(shipped), key="picked", placeholder="Pick two or more", persist_state="session")
    left, right = st.columns([3, 2], gap="medium")
    with right:
        state.setdefault("mode", _TURNS)
        mode = st.segmented_control("How they are asked", (_TURNS, _PLAIN), required=True, key="mode", persist_state="session")
        asking, at_once = _controls()
    with left:
        data = study.plan.data[shipped[picked[0]].cell.dataset] if picked else None
        if data is not None and study.store.find(data):
            _test_prompts(study.store.artifact(data).path)
        with st.form("ask", border=False):
            st.text_area("Prompt", key="prompt", height=120, persist_state="session")
            wanted = st.form_submit_button("Ask", type="primary", disabled=not picked, width="stretch")
        anew, stop = st.columns(2)
        if anew.button("Begin anew", width="stretch"):
            state.pop("talks", None)
        stopping = stop.empty()
    if not picked:
        return
    key = (tuple(picked), mode, asking.system)
    if state.get("talks", (None,))[0] != key:
        talks = [_talk(shipped[name], plain=mode == _PLAIN) for name in picked]
        state.talks = (key, talks, list[Answers]())
    _, talks, turns = state.talks
    # Of a conversation its end is seen.
    with st.container(height=_HEIGHT if turns else "content", border=False, autoscroll=True):
        for answers in turns:
            for index, place in enumerate(_places(answers)):
                with place.container():
                    _show_answer(answers, index)
        if wanted and state.prompt.strip():
            stopping.button("Stop", width="stretch")
            fit = models().fit_together([shipped[name] for name in picked])
            if at_once and not fit:
                st.caption("One after the other: together they do not fit into `--memory`.")
            seed = asking.seed + len(turns)  # the same prompt again draws another answer
            answers = Answers(talks, state.prompt, asking, seed, begins=not turns, at_once=at_once and fit)
            _follow(answers)
            turns.append(answers)
            stopping.empty()


def _talk(shipped: Shipped, *, plain: bool) -> Conversation:
    of_chats = opened().study.data[shipped.cell.dataset].chats
    return Conversation(shipped.name, partial(models().use, shipped), of_chats, plain)


def _controls() -> tuple[Asking, bool]:
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


def _follow(answers: Answers) -> None:
    """Show the answers as they are written; whatever is clicked meanwhile ends them, and they are taken back."""
    try:
        texts, drawn = _places(answers), [""] * len(answers.talks)
        while not answers.done:
            for index, text in enumerate(texts):
                if answers.texts[index] != drawn[index]:
                    drawn[index] = answers.texts[index]
                    text.text(visible(drawn[index]), width="stretch")
            time.sleep(_DRAWN)
        for index, text in enumerate(texts):
            with text.container():
                _show_answer(answers, index)
    finally:
        answers.stop()
    answers.keep()


def _places(answers: Answers) -> list[Any]:
    """Show what was said, and make a place for each answer to it."""
    with st.container(border=True):
        show_text(answers.said)
    places = []
    for talk, column in zip(answers.talks, st.columns(len(answers.talks), border=True), strict=True):
        column.markdown(f"**{markdown(talk.name)}**")
        places.append(column.empty())
    return places


def _show_answer(answers: Answers, index: int) -> None:
    if answers.failures[index]:
        st.error(markdown(answers.failures[index]))
    elif reply := answers.replies[index]:
        show_text(reply.text)
        st.caption(markdown(str(reply)))


def _test_prompts(data: Path) -> None:
    """A record that nothing was learned from, and what is read against the answer."""
    prompts = _prompts_of(data)
    with st.expander("Take a prompt from the test set"):
        labels = [f"{index + 1}. {visible(said)[-90:].strip()}" for index, (said, _, _) in enumerate(prompts)]
        index = st.selectbox("Record", range(len(prompts)), format_func=labels.__getitem__)
        if index is None:
            st.caption("The test split has no record.")
            return
        said, references, is_chat = prompts[index]

        def take() -> None:
            st.session_state.prompt, st.session_state.mode = said, _TURNS if is_chat else _PLAIN

        st.button("Take it", on_click=take)
        for reference in references:
            show_text(reference, "Reference")


@st.cache_resource(max_entries=4, show_spinner=False)
def _prompts_of(data: Path) -> list[tuple[str, list[str], bool]]:
    """Of test records: what is asked (of a plain text its beginning), what is right, and whether it is said in a chat."""
    return [
        prompt
        for row in islice((row for row in document_rows(data / "documents.parquet") if row["split"] == "test"), _PROMPTS)
        for prompt in _prompt_of(row)
    ]


def _prompt_of(row: Mapping[str, Any]) -> list[tuple[str, list[str], bool]]:
    if row.get("messages"):
        users = [message["content"] for message in json.loads(row["messages"]) if message["role"] == "user"]
        return [(users[-1], [row["completion"]], True)] if users else []
    if row.get("completion") is not None:
        return [((row["context"] or "") + row["prompt"], list(row["references"] or [row["completion"]]), False)]
    opening = re.match(rf"\s*(?:\S+\s+){{0,{_OPENING - 1}}}\S+", row["text"])
    return [(opening[0], [row["text"][opening.end() :]], False)] if opening else []
