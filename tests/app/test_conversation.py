"""Models within some memory, and several answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paretune.api import open_study, run
from paretune.app.conversation import Answers, Asking, Conversation, Models, Shipped, weight_bytes
from paretune.errors import NeedsError, StoreError
from tests.app.test_chat import CHATML, make_study


@dataclass(frozen=True)
class Box:
    """Stands for a variant whose weights take `num_bytes`."""

    name: str
    num_bytes: int
    loads: list[str] = field(default_factory=list, compare=False)
    gone: list[bool] = field(default_factory=list, compare=False)

    @property
    def key(self) -> tuple[str, ...]:
        return (self.name,)

    def check(self) -> None:
        if self.gone:
            raise StoreError(f"`{self.name}` was removed")

    def load(self) -> Any:
        self.loads.append(self.name)
        return SimpleNamespace(model=torch.nn.Linear(self.num_bytes // 4, 1, bias=False))


def test_the_least_recently_used_model_goes_before_another_is_loaded() -> None:
    loads: list[str] = []
    a, b, c = (Box(name, 400, loads) for name in "abc")
    models: Any = Models(memory=1000)
    for box in (a, b, a, c, a, b):
        with models.use(box) as loaded:
            assert weight_bytes(loaded) == 400
    assert loads == ["a", "b", "c", "b"]
    assert models.names == ["a", "b"]
    assert models.fit_together([a, b])
    assert not models.fit_together([a, b, c])


def test_a_model_that_does_not_fit_alone_is_refused_with_figures_and_before_it_is_loaded() -> None:
    loads: list[str] = []
    models: Any = Models(memory=1000)
    with pytest.raises(NeedsError, match=r"`big` takes 4.00 kB, and 1.00 kB are allowed"), models.use(Box("big", 4000, loads)):
        pass
    assert loads == []
    # What was taken for smaller is found out, and what was there stays.
    liar = Box("liar", 800, loads)
    with models.use(Box("a", 400)):
        pass
    object.__setattr__(liar, "load", lambda: SimpleNamespace(model=torch.nn.Linear(1000, 1, bias=False)))
    with pytest.raises(NeedsError, match=r"4\.00 kB"), models.use(liar):
        pass


def test_a_model_is_used_by_one_at_a_time_and_none_is_loaded_meanwhile() -> None:
    a, b = Box("a", 4), Box("b", 4)
    models: Any = Models(memory=None)
    entered, leave, order = Event(), Event(), list[str]()

    def hold() -> None:
        with models.use(a):
            entered.set()
            leave.wait(10)
            order.append("left")

    def other() -> None:
        with models.use(b):
            order.append("loaded b")

    first, second = Thread(target=hold), Thread(target=other)
    first.start()
    assert entered.wait(10)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    leave.set()
    first.join()
    second.join()
    assert order == ["left", "loaded b"]


def test_what_was_removed_is_not_used_though_it_is_loaded() -> None:
    a = Box("a", 4)
    models: Any = Models(memory=None)
    with models.use(a):
        pass
    a.gone.append(True)
    with pytest.raises(StoreError, match="was removed"), models.use(a):
        pass
    assert models.names == []


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shipped]:
    file = make_study(tmp_path_factory.mktemp("talk"), CHATML)
    assert run(file).exit_code == 0
    opened = open_study(file)
    return {cell.variant: Shipped(cell, opened.store, "paretune run study.yaml") for cell in opened.plan.cells}


def talk(models: Models, shipped: Shipped) -> Conversation:
    return Conversation(shipped.name, lambda: models.use(shipped), of_chats=True)


def test_several_answer_at_once_as_each_does_alone(shipped: dict[str, Shipped]) -> None:
    models, asking = Models(None), Asking(max_new_tokens=16)
    alone = [talk(models, each).answer("Where to?", asking, 0, lambda _: None).text for each in shipped.values()]
    for at_once in (True, False):
        talks = [talk(models, each) for each in shipped.values()]
        answers = Answers(talks, "Where to?", asking, 0, begins=True, at_once=at_once)
        while not answers.done:
            pass
        assert answers.failures == [""] * 3
        assert answers.texts == alone
        answers.keep()
        assert [len(each.messages) for each in talks] == [2, 2, 2]


def test_what_is_said_to_be_needed_is_what_the_weights_take(shipped: dict[str, Shipped]) -> None:
    models = Models(None)
    with models.use(shipped["lora"]) as loaded:
        assert shipped["lora"].num_bytes == pytest.approx(weight_bytes(loaded), rel=0.1)
    with models.use(shipped["eight"]) as loaded:
        assert weight_bytes(loaded) < shipped["lora"].num_bytes


def test_stopped_answers_are_no_turns(shipped: dict[str, Shipped]) -> None:
    models = Models(None)
    talks = [talk(models, shipped["base"])]
    answers = Answers(talks, "Where to?", Asking(max_new_tokens=150), 0, begins=True, at_once=True)
    answers.stop()
    while not answers.done:
        pass
    answers.keep()
    assert (answers.replies, answers.failures, talks[0].messages) == ([None], [""], [])


def test_a_failure_is_told_in_the_place_of_its_answer_and_the_others_go_on(shipped: dict[str, Shipped], tmp_path: Path) -> None:
    def broken() -> Any:
        raise OSError("no such file")

    models = Models(None)
    talks = [Conversation("broken", broken, of_chats=True), talk(models, shipped["base"])]
    for at_once in (True, False):
        answers = Answers(talks, "Where to?", Asking(max_new_tokens=4), 0, begins=True, at_once=at_once)
        while not answers.done:
            pass
        assert answers.failures == ["OSError: no such file", ""]
        assert answers.replies[1] is not None


def test_a_plain_conversation_continues_the_text_though_there_is_a_template(shipped: dict[str, Shipped]) -> None:
    models = Models(None)
    plain = Conversation("base", lambda: models.use(shipped["base"]), of_chats=True, plain=True)
    assert not plain.has_turns
    assert plain.manner == "`base` continues each prompt by itself"
    reply = plain.answer("The train", Asking(max_new_tokens=4), 0, lambda _: None)
    plain.keep("The train", reply)
    assert plain.messages == []
    assert isinstance(reply.new_tokens, int)
