"""A turn of the assistant in what a chat template writes: found whatever it says, whole, or refused."""

from typing import Any

import pytest

from paretune.data.chat import RenderedTurn, parse_messages, render_turn, turns
from paretune.errors import DataError
from tests.data.chat_templates import CHATML, LLAMA3, QWEN3, TEMPLATES
from tests.tiny import make_tokenizer

AWKWARD = [
    "in",
    "A",
    "a",
    "hi",
    "think",
    "Assistant",
    "assistant",
    "user",
    "Who?",
    " leading",
    "trailing ",
    "\n",
    "two\n\nparagraphs\n",
    "<|im_start|>assistant\n",
    "</s>",
    "\n\n",
    '"',
    "n",
    ":",
    ">",
    "<",
    "x" * 300,
]
BEFORE = [{"role": "user", "content": "Who?"}]
LONGER = [*BEFORE, {"role": "assistant", "content": "in"}, {"role": "user", "content": "in"}]


def turn(template: str, answer: str | dict[str, Any], before: Any = BEFORE, tools: Any = ()) -> RenderedTurn:
    last = {"role": "assistant"} | ({"content": answer} if isinstance(answer, str) else answer)
    return render_turn(tokenizer(template), [*before, last], tools, "record 1")


def tokenizer(template: str) -> Any:
    made = make_tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize("before", [BEFORE, LONGER], ids=["one", "several"])
@pytest.mark.parametrize("answer", AWKWARD)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_is_found_whatever_it_says(name: str, answer: str, before: Any) -> None:
    template = TEMPLATES[name]
    plain, found = turn(template, "\u2603", before), turn(template, answer, before)
    assert (found.prompt, found.end) == (plain.prompt, plain.end)
    assert found.completion in answer
    assert found.completion.strip() == answer.strip()
    whole = tokenizer(template).apply_chat_template([*before, {"role": "assistant", "content": answer}], tokenize=False)
    assert whole.removeprefix("<bos>") == found.prompt + found.completion + found.end


@pytest.mark.parametrize("answer", AWKWARD)
def test_it_is_what_the_template_itself_marks(answer: str) -> None:
    made = tokenizer(CHATML)
    chat = [*LONGER, {"role": "assistant", "content": answer}]
    marked = made.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    last = [n for n, flag in enumerate(marked["assistant_masks"]) if flag]
    while last and last[0] < last[-1] - len(last) + 1:
        last.pop(0)  # of earlier turns
    found = turn(CHATML, answer, LONGER)
    assert made.decode([marked["input_ids"][n] for n in last]) == found.completion + "<|im_end|>"


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"gemma"}))
def test_a_chat_that_begins_with_the_assistant(name: str) -> None:
    found = turn(TEMPLATES[name], "in", [])
    assert found.completion == "in"
    assert found.prompt + "in" + found.end == turn(TEMPLATES[name], "\u2603", []).prompt + "in" + found.end


def test_a_template_that_refuses_such_a_chat_is_told() -> None:
    with pytest.raises(DataError, match=r"record 1: the chat template of the base refuses the messages .Roles must alternate"):
        turn(TEMPLATES["gemma"], "in", [])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{{ m.content | length }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('n', 'm') }}{% endfor %}",
        "{% for m in messages %}{{ m.content | truncate(1, true, '', 0) }}{% endfor %}",
        "{% for m in messages %}{% if m.content != 'in' %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_changes_what_is_said_is_refused(template: str) -> None:
    with pytest.raises(DataError, match='does not write the assistant\'s turn `"in"` as it is after the messages before it'):
        turn(template, "in")


def test_thoughts_in_a_field_of_their_own_are_learned_with_the_answer() -> None:
    found = turn(QWEN3, {"content": "in", "reasoning_content": "It arrives."})
    assert found.prompt == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert (found.completion, found.end) == ("<think>\nIt arrives.\n</think>\n\nin", "<|im_end|>\n")
    found = turn(TEMPLATES["harmony"], {"content": "in", "thinking": "in"})
    assert found.completion == "<|channel|>analysis<|message|>in<|end|><|start|>assistant<|channel|>final<|message|>in"
    assert found.end == "<|return|>"
    found = turn(TEMPLATES["glm"], {"content": "in", "reasoning_content": "think"})
    assert found.completion == "\n<think>think</think>\nin"


def test_thoughts_in_the_content_are_learned_or_refused_where_the_template_drops_them() -> None:
    found = turn(QWEN3, "<think>\nIt arrives.\n</think>\n\nin")
    assert found.completion == "<think>\nIt arrives.\n</think>\n\nin"
    assert found.prompt.endswith("<|im_start|>assistant\n")
    with pytest.raises(DataError, match="does not write the assistant's turn"):
        turn(TEMPLATES["deepseek-r1"], "<think>\nIt arrives.\n</think>\n\nin")


CALLS = [{"type": "function", "function": {"name": "gate", "arguments": {"number": 1}}}]


def test_calls_of_tools_are_learned_as_the_template_writes_them() -> None:
    found = turn(QWEN3, {"content": "", "tool_calls": CALLS}, tools=[{"name": "gate"}])
    assert found.prompt.startswith('<|im_start|>system\n<tools>[{"name": "gate"}]</tools><|im_end|>\n<|im_start|>user')
    assert found.completion.endswith('<tool_call>\n{"name": "gate", "arguments": {"number": 1}}\n</tool_call>')
    assert (found.end, found.unwritten) == ("<|im_end|>\n", ())
    beside = turn(QWEN3, {"content": "Look.", "tool_calls": CALLS})
    assert beside.completion.endswith('Look.\n<tool_call>\n{"name": "gate", "arguments": {"number": 1}}\n</tool_call>')
    mistral = turn(TEMPLATES["mistral"], {"content": "", "tool_calls": CALLS})
    assert (mistral.prompt, mistral.end) == ("[INST] Who? [/INST]", "<|endoftext|>")
    assert mistral.completion.startswith('[TOOL_CALLS] [{"type": "function"')


def test_what_a_template_does_not_write_is_named() -> None:
    found = turn(LLAMA3, {"content": "in", "reasoning_content": "It arrives.", "tool_calls": CALLS}, tools=[{"name": "gate"}])
    assert (found.completion, found.unwritten) == ("in", ("reasoning_content", "tool_calls", "tools"))
    with pytest.raises(DataError, match="the turn has only `tool_calls`, which the chat template of the base does not write"):
        turn(LLAMA3, {"content": "", "tool_calls": CALLS})


def test_fields_of_messages_are_kept_and_nulls_of_tables_are_not() -> None:
    call = {"type": "function", "id": None, "function": {"name": "gate", "arguments": {"number": 1, "yard": None}}}
    said = [
        {"role": "user", "content": "Who?", "name": "Ann", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "thinking": ""},
        {"role": "tool", "content": "out", "tool_call_id": "1"},
        {"role": "assistant", "content": "Out.", "tool_calls": []},
    ]
    assert parse_messages(said, "role", "content", "a") == [
        {"role": "user", "content": "Who?", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "content": "out", "tool_call_id": "1"},
        {"role": "assistant", "content": "Out."},
    ]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"loss": 0.0}])
def test_turns_that_are_not_to_be_learned(flag: dict[str, Any]) -> None:
    said = [
        *BEFORE,
        {"role": "assistant", "content": "No", **flag},
        *BEFORE,
        {"role": "assistant", "content": "Yes", "loss": True},
    ]
    assert [chat[-1]["content"] for chat in turns(parse_messages(said, "role", "content", "a"))] == ["Yes"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "assistant", "content": "x", "weight": 0.5}, "`weight` is `0.5`; a turn is learned whole"),
        ({"role": "assistant", "content": "x", "train": "no"}, '`train` is `"no"`; a turn is learned whole'),
        ({"role": "user", "content": "x", "train": True}, "`train` is `true` for `user`, and only turns of the assistant are"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "`content` is `null`; expected a text"),
        ({"role": "user", "content": [{"type": "image"}]}, "expected a text (images and sounds are not read)"),
    ],
)
def test_what_cannot_be_done_with_a_message_is_told(message: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError) as error:
        parse_messages([message], "role", "content", "a: `messages`")
    assert told in str(error.value)
