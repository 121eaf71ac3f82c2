"""The judge against a server of this machine: what is asked, what counts as a rating, and what happens without an answer."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import NeedsError, StageError
from paretune.evaluate import judge
from paretune.evaluate.judge import evaluate_judge, parse
from paretune.pipeline.stage import ENVIRONMENT, RunOptions, StageContext
from paretune.study.ratings import Judge
from tests.evaluate.stages import read_scores
from tests.evaluate.test_ratings import CRITERIA, TEXTS, make_inputs

KEY = "sk-very-secret"
GOOD = json.dumps({"coherence": 4, "relevance": 2})
Answer = tuple[int, str, dict[str, str]]
"""State, what the judge says (the whole body where the state is not 200, or is negative), headers."""


class Server:
    """Answers with what `answer` makes of the number of the request, and keeps the requests."""

    def __init__(self, answer: Callable[[int], Answer]) -> None:
        self.requests: list[tuple[dict[str, Any], str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append((body, self.headers.get("authorization", "")))
                state, said, headers = answer(len(server.requests) - 1)
                content = (json.dumps({"choices": [{"message": {"content": said}}]}) if state == 200 else said).encode()
                self.send_response(abs(state))
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextmanager
def serving(answer: Callable[[int], Answer]) -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits in a test; the seconds are kept. No proxy stands before this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    found: list[float] = []
    monkeypatch.setattr(judge.time, "sleep", found.append)
    return found


def make_context(folder: Path, url: str, *, key: str = "", **fields: Any) -> StageContext:
    config = Judge(url=url, model="a-judge", **fields)
    (folder / "draft").mkdir(parents=True)
    context = StageContext(
        config={"evaluation": config.identity, "rubric": config.rubric},
        inputs=make_inputs(folder),
        resources={},
        settings={"timeout": 5.0} | ({ENVIRONMENT: key} if key else {}),
        options=RunOptions(),
        draft=folder / "draft",
        emit=lambda **_: None,
    )
    context.resume.mkdir()
    return context


def test_each_text_is_judged_alone_by_the_rubric_and_nobody_is_named(tmp_path: Path) -> None:
    with serving(lambda _: (200, GOOD, {})) as server:
        metrics = evaluate_judge(make_context(tmp_path, server.url))
    assert metrics == {"rated": 3, "missing": 0, "asked": 3, "replies": 3}
    bodies = [body for body, _ in server.requests]
    assert all(body["model"] == "a-judge" and body["temperature"] == 0 for body in bodies)
    assert all(body["response_format"]["json_schema"]["schema"]["required"] == CRITERIA for body in bodies)
    system, user = (sorted(body["messages"][n]["content"] for body in bodies) for n in (0, 1))
    assert len(set(system)) == 1
    assert system[0].startswith(Judge(url=server.url, model="x").rubric)
    for text in TEXTS:
        assert sum(json.dumps(text) in one for one in user) == 1
    assert sum("Ships wait in the harbour." in one for one in user) == 1
    scores = read_scores(tmp_path / "draft")
    assert scores.groupby("metric")["value"].unique().str[0].to_dict() == {"coherence": 4, "relevance": 2}
    assert set(scores["example"]) == {"story 0 by a-judge", "story 1 by a-judge", "title 7 by a-judge"}
    assert not any(authorization for _, authorization in server.requests)


def test_items_and_of_say_what_is_judged(tmp_path: Path) -> None:
    with serving(lambda _: (200, GOOD, {})) as server:
        evaluate_judge(make_context(tmp_path / "a", server.url, of=("title",)))
        evaluate_judge(make_context(tmp_path / "b", server.url, of=("story",), items=1, repeats=3, temperature=None))
    assert len(server.requests) == 1 + 3
    assert len({body["messages"][1]["content"] for body, _ in server.requests[1:]}) == 1
    assert [body["seed"] for body, _ in server.requests[1:]] == [0, 3, 6]
    assert "temperature" not in server.requests[-1][0]


@pytest.mark.parametrize(
    "said",
    [
        "",
        "4",
        "coherence: 4, relevance: 2",
        f"```json\n{GOOD}\n```",
        '{"coherence": 4}',
        '{"coherence": 4, "relevance": 6}',
        '{"coherence": 4, "relevance": 2.5}',
        '{"coherence": 4, "relevance": "2"}',
        '{"coherence": 4, "relevance": true}',
        '{"coherence": 4, "relevance": null}',
        '{"coherence": 4, "relevance": 2, "overall": 3}',
        f"[{GOOD}]",
    ],
)
def test_what_is_no_rating_is_never_taken_for_one(said: str) -> None:
    assert parse(said, CRITERIA) is None
    assert parse(GOOD, CRITERIA) == {"coherence": 4, "relevance": 2}


def test_a_reply_that_is_no_rating_is_asked_for_again_and_then_missing(tmp_path: Path) -> None:
    def answer(number: int) -> Answer:
        return 200, "I would say 4" if number in (0, 2, 3, 4) else GOOD, {}

    with serving(answer) as server:
        metrics = evaluate_judge(make_context(tmp_path, server.url))
    assert len(server.requests) == 2 + 3 + 1
    assert metrics == {"rated": 2, "missing": 2, "asked": 3, "replies": 6}
    kept = [json.loads(line) for line in (tmp_path / "draft" / "replies.jsonl").read_text().splitlines()]
    assert [len(row["replies"]) for row in kept] == [2, 3, 1]


def test_a_busy_address_is_asked_again_after_as_long_as_it_says(tmp_path: Path, waits: list[float]) -> None:
    busy: dict[int, Answer] = {
        0: (429, "slow down", {"retry-after": "7"}),
        1: (503, "", {}),
        2: (500, "", {"retry-after": "x"}),
    }
    with serving(lambda number: busy.get(number, (200, GOOD, {}))) as server:
        metrics = evaluate_judge(make_context(tmp_path, server.url))
    assert metrics["missing"] == 0
    assert waits == [7, 2, 4]


def test_an_address_that_stays_away_ends_the_stage_which_goes_on_later(tmp_path: Path, waits: list[float]) -> None:
    with serving(lambda number: (200, GOOD, {}) if number < 2 else (503, "", {})) as server:
        context = make_context(tmp_path, server.url)
        with pytest.raises(StageError, match=r"did not answer, 6 times \(503 Service Unavailable\); run again"):
            evaluate_judge(context)
    assert waits == [1, 2, 4, 8, 16]
    with (context.resume / "replies.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('{"item": "abc')  # the line that a kill cut
    with serving(lambda _: (200, GOOD, {})) as again:
        context.config["evaluation"]["url"] = again.url  # type: ignore[index]
        assert evaluate_judge(context)["rated"] == 3
    assert len(again.requests) == 1


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving(lambda _: (200, GOOD, {})) as server:
        url = server.url
    with pytest.raises(StageError, match="did not answer, 6 times"):
        evaluate_judge(make_context(tmp_path, url))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, f"wrong key {KEY}", {}), "refused (401: wrong key ***); is the variable that `key` names set to a valid key?"),
        ((404, "no model", {}), "refused (404: no model); does `url` end where `/chat/completions` follows"),
        ((400, "what is response_format", {}), "write `structured: false`"),
        ((418, "a teapot", {}), "refused (418: a teapot)"),
    ],
)
def test_an_address_that_refuses_says_why_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda _: answer) as server, pytest.raises(StageError) as caught:
        evaluate_judge(make_context(tmp_path, server.url, key="JUDGE_KEY", structured=False))
    assert words in str(caught.value)
    assert KEY not in str(caught.value)
    assert server.requests[0][1] == f"Bearer {KEY}"
    assert "response_format" not in server.requests[0][0]
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("body", ["<html>", "[]", '{"choices": []}', '{"choices": [{"message": "hi"}]}'])
def test_an_address_of_something_else(tmp_path: Path, body: str) -> None:
    with serving(lambda _: (-200, body, {})) as server, pytest.raises(StageError, match="not as an OpenAI-compatible address"):
        evaluate_judge(make_context(tmp_path, server.url))


def test_a_key_that_is_not_set_is_told_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with serving(lambda _: (200, GOOD, {})) as server:
        with pytest.raises(NeedsError, match="the environment variable `JUDGE_KEY` of `key` is not set"):
            evaluate_judge(make_context(tmp_path, server.url, key="JUDGE_KEY"))
        assert not server.requests
