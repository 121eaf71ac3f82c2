"""Ratings by a judge model behind an OpenAI-compatible address: one text a request, and nothing that says who wrote it.

A reply is a rating or it is none: JSON with the criteria and whole numbers from 1 to 5, else it is asked for again, and counted
as missing after a few tries. Replies are kept in a journal as they come, so a run that was stopped asks only for the rest, and
in the artifact. The key is read from the environment and stands in no file and no message.
"""

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from paretune.data.sheets import Text, choose
from paretune.errors import NeedsError, StageError
from paretune.evaluate.ratings import Rating, texts_of, write_ratings
from paretune.pipeline.stage import ENVIRONMENT, StageContext
from paretune.study.ratings import HIGHEST, LOWEST, Judge

JOURNAL = "replies.jsonl"
TRIES = 3
"""Replies that are no rating, after which a text counts as not rated."""
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 0.0)
"""Seconds after each call of a request that failed, unless the address says how long; after the last one none."""
_LONGEST_WAIT = 120.0
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""States of an address that may be gone a moment later."""


@dataclass(frozen=True)
class Address:
    """Where a judge is asked, and how."""

    client: httpx2.Client
    settings: Judge
    rubric: str


def evaluate_judge(context: StageContext) -> dict[str, Any]:
    """Stage body: the judge's ratings in `scores.parquet` and `ratings.jsonl`, its replies in `replies.jsonl`.

    Raises NeedsError for an environment variable that is not set, StageError for an address that refuses or does not answer.
    """
    settings = Judge.model_validate(context.config["evaluation"], strict=False)
    texts = choose(texts_of(context.inputs), settings.of, settings.items)
    variable, headers = context.settings.get(ENVIRONMENT), {}
    if variable:
        if not (key := os.environ.get(variable, "").strip()):
            raise NeedsError(f"judge: the environment variable `{variable}` of `key` is not set; set it and run again")
        headers["Authorization"] = f"Bearer {key}"
    journal = context.resume / JOURNAL
    replies = _read_journal(journal)
    ratings: list[tuple[Text, Rating]] = []
    client = httpx2.Client(timeout=context.settings["timeout"], headers=headers)
    with client, journal.open("a", encoding="utf-8") as file:
        address = Address(client, settings, context.config["rubric"])
        for done, (text, repeat) in enumerate(itertools.product(texts, range(settings.repeats)), start=1):
            question = (text.item(), repeat)
            if question not in replies:
                replies[question] = ask(address, text, repeat)
                file.write(json.dumps({"item": question[0], "repeat": repeat, "replies": replies[question]}) + "\n")
                file.flush()
            given = parse(replies[question][-1], settings.criteria) or {}
            for name in settings.criteria:
                ratings.append((text, Rating(text.item(), settings.model, repeat, name, given.get(name))))
            context.emit(done=done, total=len(texts) * settings.repeats)
    (context.draft / JOURNAL).write_bytes(journal.read_bytes())
    counts = {"asked": len(texts) * settings.repeats, "replies": sum(map(len, replies.values()))}
    return write_ratings(ratings, context.draft) | counts


def ask(address: Address, text: Text, repeat: int) -> list[str]:
    """The replies about a text: the last one is a rating, or there are `TRIES` that are none."""
    request, replies = _request(address, text), list[str]()
    while len(replies) < TRIES:
        replies.append(_reply(address, {**request, "seed": repeat * TRIES + len(replies)}))
        if parse(replies[-1], address.settings.criteria) is not None:
            break
    return replies


def parse(reply: str, criteria: Sequence[str]) -> dict[str, int] | None:
    """The ratings in a reply, which is JSON with nothing but them; None for anything else."""
    try:
        ratings = json.loads(reply)
    except ValueError:
        return None
    whole = isinstance(ratings, dict) and all(isinstance(v, int) and not isinstance(v, bool) for v in ratings.values())
    if not whole or set(ratings) != set(criteria) or not all(LOWEST <= value <= HIGHEST for value in ratings.values()):
        return None
    return dict(ratings)


def _request(address: Address, text: Text) -> dict[str, Any]:
    settings = address.settings
    numbers = {name: {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST} for name in settings.criteria}
    form = "{" + ", ".join(f'"{name}": NUMBER' for name in settings.criteria) + "}"
    parts = {"context": text.context, "prompt": text.prompt, "text": text.text}
    shown = json.dumps({name: part for name, part in parts.items() if part or name == "text"}, ensure_ascii=False, indent=1)
    request: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "messages": [
            {"role": "system", "content": f"{address.rubric}\nReply with JSON alone: {form}"},
            # As data, so that a text which gives orders stays a text.
            {"role": "user", "content": f"Rate `text`, which was written after `prompt`:\n{shown}"},
        ],
    }
    if settings.temperature is not None:
        request["temperature"] = settings.temperature
    if settings.structured:
        schema = {"type": "object", "properties": numbers, "required": list(numbers), "additionalProperties": False}
        request["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "rating", "strict": True, "schema": schema},
        }
    return request


def _reply(address: Address, request: Mapping[str, Any]) -> str:
    """What the judge says, empty where it says nothing; StageError if it cannot be asked."""
    url = f"{address.settings.url.rstrip('/')}/chat/completions"
    failure = ""
    for wait in _WAITS:
        try:
            response = address.client.post(url, json=request)
        except httpx2.TransportError as error:
            failure, seconds = f"{type(error).__name__}: {error}", wait
        else:
            if response.status_code not in _PASSING:
                return _content(address, response, url)
            failure, after = f"{response.status_code} {response.reason_phrase}", response.headers.get("retry-after", "")
            seconds = min(float(after), _LONGEST_WAIT) if after.isdecimal() else wait
        if wait:
            time.sleep(seconds)
    raise StageError(
        f"judge: {url} did not answer, {len(_WAITS)} times ({failure}); run again, and it goes on where it stopped"
    )


def _content(address: Address, response: httpx2.Response, url: str) -> str:
    if response.status_code != httpx2.codes.OK:
        key = address.client.headers.get("authorization", "").removeprefix("Bearer ")
        reason = " ".join((response.text.replace(key, "***") if key else response.text).split())[:300]
        hint = {
            401: "; is the variable that `key` names set to a valid key?",
            403: "; is the variable that `key` names set to a key that may use the model?",
            404: "; does `url` end where `/chat/completions` follows (often `/v1`), and is `model` known there?",
            400: "; if it does not know `response_format`, write `structured: false`",
        }.get(response.status_code, "")
        raise StageError(f"judge: {url} refused ({response.status_code}: {reason}){hint}")
    try:
        return str(response.json()["choices"][0]["message"]["content"] or "").strip()
    except (ValueError, LookupError, TypeError):
        raise StageError(
            f"judge: {url} answers, but not as an OpenAI-compatible address ({response.text[:80]!r}); check `url`"
        ) from None


def _read_journal(journal: Path) -> dict[tuple[str, int], list[str]]:
    """The replies that an attempt which was stopped has left; a line that it was writing is dropped, and asked for again."""
    if not journal.exists():
        return {}
    whole = [line for line in journal.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    journal.write_text("".join(whole), encoding="utf-8")
    return {(row["item"], row["repeat"]): row["replies"] for row in map(json.loads, whole)}
