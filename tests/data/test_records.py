"""Records as contexts with branches: tasks by templates, and the formats that people have."""

import json
from typing import Any

import pytest

from paretune.data.records import parse_form, read_record
from paretune.data.sources import Row
from paretune.errors import DataError, SpecError
from paretune.study.data import Dataset
from paretune.study.validate import validate

TASKS = {
    "title": {"prompt": "Title: ", "completion": "{{ title }}\n"},
    "tags": {"prompt": "Tags: ", "completion": "{{ tags | join(', ') }}"},
}


def rendered(values: dict[str, Any], **fields: Any) -> Any:
    dataset = validate(Dataset, {"source": {"path": "a.jsonl"}} | fields, "data.a")
    return read_record(parse_form(dataset, "data.a"), Row("a.jsonl: line 1", values))


def branches(values: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    return [(branch.prompt, branch.completion) for branch in rendered(values, **fields).branches]


def test_a_record_is_a_context_with_a_branch_for_each_task_taken_literally() -> None:
    found = rendered({"content": " one\n", "title": "T ", "tags": ["a", "b"]}, context="{{ content }}\n", tasks=TASKS)
    assert found.context == " one\n\n"
    assert [(b.task, b.prompt, b.completion) for b in found.branches] == [
        ("tags", "Tags: ", "a, b"),
        ("title", "Title: ", "T \n"),
    ]
    assert found.text == " one\n\nTags: a, bTitle: T \n"


def test_an_empty_completion_is_left_out_by_name_or_learned_where_the_study_says_so() -> None:
    record = {"content": "x", "title": "T", "tags": []}
    found = rendered(record, context="{{ content }}", tasks=TASKS)
    assert ([b.task for b in found.branches], found.empty) == (["title"], ("tags",))
    kept = TASKS | {"tags": TASKS["tags"] | {"empty": "keep"}}
    assert [(b.task, b.completion) for b in rendered(record, tasks=kept).branches] == [("tags", ""), ("title", "T\n")]


def test_a_missing_field_is_an_error_as_in_a_text() -> None:
    with pytest.raises(DataError, match=r"a.jsonl: line 1: field `tags` is missing"):
        rendered({"title": "T"}, tasks=TASKS)
    with pytest.raises(SpecError, match=r"data.a.tasks.title.prompt: template"):
        rendered({}, tasks={"title": {"prompt": "{{ title", "completion": "{{ title }}"}})


def test_alpaca_reads_with_and_without_an_input() -> None:
    (prompt, completion), *_ = branches({"instruction": "Add.", "input": "1 2", "output": "3"}, records="alpaca")
    assert prompt.endswith("request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert completion == "3"
    for without in ({"input": ""}, {"input": None}, {}):
        (prompt, _), *_ = branches({"instruction": "Add.", "output": "3", **without}, records="alpaca")
        assert prompt == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd.\n\n### Response:\n"
        )


def test_prompt_and_completion_are_taken_as_they_are() -> None:
    assert branches({"prompt": "Q:", "completion": " A\n"}, records="prompt_completion") == [("Q:", " A\n")]


def test_several_right_completions_are_examples_of_their_own() -> None:
    found = rendered({"prompt": "Q:", "completion": [" A", " B"]}, records="prompt_completion").branches
    assert [(b.prompt, b.completion, b.part) for b in found] == [("Q:", " A", ".1"), ("Q:", " B", ".2")]
    assert rendered({"prompt": "Q:", "completion": [" A"]}, records="prompt_completion").branches[0].part == ""
    with pytest.raises(DataError, match="field `completion` is a list"):
        rendered({"prompt": "Q:", "completion": [1]}, records="prompt_completion")


SAID = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Me"), ("user", "Bye")]
MESSAGES = [{"role": role, "content": content} for role, content in SAID]


def test_every_turn_of_the_assistant_is_an_example_with_all_before_it_as_its_prompt() -> None:
    expected = [
        ("Be kind.\n\nUser: Hi\n\nAssistant:", " Hello"),
        ("Be kind.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Who?\n\nAssistant:", " Me"),
    ]
    assert branches({"messages": MESSAGES}, records="messages") == expected
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[role], "value": content} for role, content in SAID]
    assert branches({"conversations": shared}, records="sharegpt") == expected
    found = rendered({"messages": MESSAGES}, records="messages")
    assert [b.part for b in found.branches] == [".1", ".2"]
    assert json.loads(found.branches[0].messages) == {"messages": MESSAGES[:3], "tools": []}
    assert found.text == "".join(expected[1])  # what was said once stands there once


def test_turns_of_weight_0_and_the_messages_of_a_prompt_are_not_learned() -> None:
    weighted = [dict(message) for message in MESSAGES]
    weighted[2]["weight"] = 0  # type: ignore[assignment]
    assert [c for _, c in branches({"messages": weighted}, records="messages")] == [" Me"]
    pair = {"prompt": MESSAGES[:4], "completion": MESSAGES[4:5]}
    assert [c for _, c in branches(pair, records="prompt_completion")] == [" Me"]


def test_a_conversation_without_an_answer_teaches_nothing() -> None:
    assert rendered({"messages": MESSAGES[:2]}, records="messages").branches == ()
    silent = [*MESSAGES[:2], {"role": "assistant", "content": " "}]
    assert rendered({"messages": silent}, records="messages").empty == ("response",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"turns": []}, "no field `messages`, which `records: messages` reads; the record has `turns`"),
        ({"messages": "Hi"}, '`messages` is `"Hi"`; expected a list of messages'),
        ({"messages": [{"content": "x"}]}, "message 1 is"),
        ({"messages": [{"role": "robot", "content": "x"}]}, '`role` is `"robot"`; known: `system`'),
        ({"messages": [{"role": "user", "content": None}]}, "message 1: `content` is `null`; expected a text"),
    ],
)
def test_what_is_no_conversation_is_told(value: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as told:
        rendered(value, records="messages")
    assert message in str(told.value)
