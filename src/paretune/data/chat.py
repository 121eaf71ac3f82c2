"""Conversations: `messages` and ShareGPT records in one form, and how a turn of the assistant is read and learned.

Each turn of the assistant is an example of its own: all messages before it are the prompt, the turn is the completion, so the
loss is taken on the assistant's words alone, and each turn is seen as it will be asked for (some templates write the last turn
otherwise than earlier ones). A base with a chat template renders with it; for one without, this is the form:

    SYSTEM\\n\\nUser: ...\\n\\nAssistant: ...\\n\\nUser: ...\\n\\nAssistant: ...<end of text>

A message keeps the fields that templates know beside `role` and `content`, such as `reasoning_content` and `tool_calls`.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from paretune.errors import DataError
from paretune.study.base import shown, ticked

if TYPE_CHECKING:
    from paretune.data.tokenizer import TextTokenizer

Message = dict[str, Any]
"""`role` (`system`, `user`, `assistant` or `tool`), `content`, a text, and what else a template may use."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_NAMES = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
_CALLS = "function_call"
"""The role of a turn whose text is the JSON of a call, or of several."""
_KEYS = {"messages": ("messages", "role", "content"), "sharegpt": ("conversations", "from", "value")}
_BATCH_JQ = (
    "`jq -cs 'INDEX(.[] | select(.response); .custom_id) as $of | .[] | select(.body) | {messages: (.body.messages + "
    "[$of[.custom_id].response.body.choices[0].message])}' REQUESTS.jsonl RESPONSES.jsonl > chats.jsonl`"
)
_OTHER_FORMS = (
    ({"conversations"}, "reads like `records: sharegpt`"),
    ({"messages"}, "reads like `records: messages`"),
    ({"custom_id", "body"}, f"is a request of OpenAI's batch API; join it with its answer: {_BATCH_JQ}"),
    ({"custom_id", "response"}, f"is an answer of OpenAI's batch API; join it with its request: {_BATCH_JQ}"),
    ({"preferred_output"}, "is a pair of OpenAI's preference tuning; write the preferred answer as the last of its `messages`"),
    ({"chosen", "rejected"}, 'is a pair of preferences; write `tasks: {answer: {prompt: ..., completion: "{{ chosen }}"}}`'),
    ({"instruction", "output"}, "reads like `records: alpaca`"),
    ({"prompt", "completion"}, "reads like `records: prompt_completion`"),
)
"""Fields by which a record of another form is known, with what is told of it."""
SPOKEN = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")
"""Fields of a turn that hold a part of it."""
_LEARNED = ("weight", "train", "training", "loss")
"""Fields of a turn that say whether it is learned."""


@dataclass(frozen=True)
class RenderedTurn:
    """A turn of the assistant as text in a base's chat template."""

    prompt: str
    completion: str
    end: str
    """What the template writes after the turn, such as `<|im_end|>`."""
    unwritten: tuple[str, ...] = ()
    """Fields of the turn or the record that the template leaves out: of SPOKEN, or `tools`."""


def conversation(form: str, values: Mapping[str, Any], where: str) -> list[Message]:
    """The messages of a record in `form` (`messages` or `sharegpt`); DataError for anything else.

    A system prompt in a field `system` of the record stands first, where no message is one.
    """
    field, role, content = _KEYS[form]
    if field not in values:
        seen = next((told for names, told in _OTHER_FORMS if names <= values.keys()), "")
        raise DataError(
            f"{where}: no field `{field}`, which `records: {form}` reads; the record has {ticked(values)}"
            f"{f', and {seen}' if seen else ''}"
        )
    said = _parsed_list(values[field])
    # The names of the one form are met under the field of the other, too.
    first = said[0] if isinstance(said, list) and said and isinstance(said[0], Mapping) else {}
    if role not in first:
        role, content = next(((r, c) for _, r, c in _KEYS.values() if r in first and c in first), (role, content))
    messages = parse_messages(said, role, content, f"{where}: `{field}`")
    system = values.get("system")
    if isinstance(system, str) and system.strip() and all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _parsed_list(value: Any) -> Any:
    """A list of messages that a table holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _calls_in(text: str, where: str) -> list[Any]:
    """The calls of tools that a turn of the role `function_call` writes as JSON: `{"name": ..., "arguments": {...}}`."""
    try:
        calls = json.loads(text)
    except ValueError:
        calls = None
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list) or not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise DataError(f"{where}: is {shown(text)}, and a `{_CALLS}` is JSON with `name` and `arguments`")
    return [{"type": "function", "function": dict(call)} for call in calls]


def tools_of(values: Mapping[str, Any], where: str) -> list[Any]:
    """The tools that a record offers in its field `tools`, a list or the JSON of one; DataError for anything else."""
    tools = values.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise DataError(f"{where}: `tools` is {shown(tools)}, which is no JSON; write a list of tools") from None
    if tools and not isinstance(tools, list):
        raise DataError(f"{where}: `tools` is {shown(tools)}; expected a list of tools, or its JSON")
    return _without_nulls(tools or [])


def messages_in(form: str, values: Mapping[str, Any]) -> list[Any] | None:
    """What the messages of a record say, whatever it is; None where it has no field of messages."""
    field = _KEYS[form][0]
    if field not in values:
        return None
    said = _parsed_list(values[field])
    names = (*(content for _, _, content in _KEYS.values()), *SPOKEN)
    return [
        next(filter(None, (message.get(name) for name in names)), "") if isinstance(message, Mapping) else message
        for message in (said if isinstance(said, list) else [])
    ]


def parse_messages(value: Any, role: str, content: str, where: str) -> list[Message]:
    """A list of messages with the keys `role` and `content`; DataError for one that is none, or of an unknown role.

    Turns that are not to be learned have `weight: 0`.
    """
    if not isinstance(value, list):
        raise DataError(f"{where} is {shown(value)}; expected a list of messages with `{role}` and `{content}`")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or role not in message:
            raise DataError(f"{where}: message {number} is {shown(message)}; expected `{role}` and `{content}`")
        if message[role] not in _ROLES:
            raise DataError(f"{where}: message {number}: `{role}` is {shown(message[role])}; known: {ticked(_ROLES)}")
        fields = {name: _without_nulls(item) for name, item in message.items() if name not in (role, content, *_LEARNED)}
        fields = {name: item for name, item in fields.items() if item not in (None, "", [], {})}
        said = message.get(content)
        parts = said if isinstance(said, list) else [said]
        if said and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
            said = "".join(part["text"] for part in parts)
        if said in (None, []) and any(name in fields for name in SPOKEN):
            said = ""
        if not isinstance(said, str):
            raise DataError(
                f"{where}: message {number}: `{content}` is {shown(said)}; expected a text (images and sounds are not read)"
            )
        if message[role] == _CALLS:
            fields["tool_calls"], said = _calls_in(said, f"{where}: message {number}: `{content}`"), ""
        flags = {name: message[name] for name in _LEARNED if message.get(name) is not None}
        for name, flag in flags.items():
            if flag not in (0, 1):
                raise DataError(
                    f"{where}: message {number}: `{name}` is {shown(flag)}; a turn is learned whole (1 or true) or not "
                    "(0 or false)"
                )
            if flag and name != "weight" and _ROLES[message[role]] != "assistant":
                raise DataError(
                    f"{where}: message {number}: `{name}` is {shown(flag)} for `{message[role]}`, and only turns of the "
                    "assistant are learned; take it out, or write `tasks:` with a completion of your own"
                )
        learned = {} if all(flags.values()) else {"weight": 0}
        messages.append({"role": _ROLES[message[role]], "content": said, **fields, **learned})
    return messages


def _without_nulls(value: Any) -> Any:
    """`value` without entries that are null, which tables write for fields that a record does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def turns(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages up to each turn of the assistant that is to be learned (not those of `weight: 0`), the turn last."""
    plain = [{name: item for name, item in message.items() if name != "weight"} for message in messages]
    learned = (n for n, message in enumerate(messages) if message["role"] == "assistant" and "weight" not in message)
    return [plain[: n + 1] for n in learned]


def plain_turn(messages: Sequence[Message]) -> tuple[str, str]:
    """Prompt and completion of the last message, a turn of the assistant, for a base without a chat template."""
    history = "".join(
        f"{message['content']}\n\n" if message["role"] == "system" else f"{_NAMES[message['role']]}: {message['content']}\n\n"
        for message in messages[:-1]
    )
    return f"{history}Assistant:", f" {messages[-1]['content']}"


def unwritten_in_plain(turn: Message, tools: Sequence[Any]) -> tuple[str, ...]:
    """What a base without a chat template is not shown of a turn."""
    return (*(name for name in SPOKEN if name in turn), *(["tools"] if tools else []))


def render_turn(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], where: str) -> RenderedTurn:
    """The last of `messages`, a turn of the assistant, after those before it, by the chat template of a transformers tokenizer.

    Where the turn stands is seen by a marker in the place of its content, which no template writes by itself; the text around
    the marker with the content in it has to be the text of the turn. A turn with reasoning or calls of tools is all that
    follows the generation prompt. DataError where the template refuses the messages, or writes the turn otherwise.
    """
    *before, turn = messages
    marker = "\U000f8001"
    while marker in json.dumps(messages, ensure_ascii=False):
        marker += "\U000f8002"

    def written(last: Sequence[Message], **arguments: Any) -> str:
        try:
            arguments = {"tools": list(tools) or None} | arguments
            return str(tokenizer.apply_chat_template([*before, *last], tokenize=False, **arguments))
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{where}: the chat template of the base refuses the messages ({error})") from None

    whole, (head, seen, end) = written([turn]), written([turn_of(marker)]).partition(marker)
    unwritten = [
        name for name in SPOKEN if name in turn and written([{key: item for key, item in turn.items() if key != name}]) == whole
    ]
    if tools and written([turn], tools=None) == whole:
        unwritten.append("tools")
    spoken = [name for name in SPOKEN if name in turn and name not in unwritten]
    content = turn["content"]
    completion = _between(whole, head, end)
    shows = seen and marker not in end and completion is not None and _is_trimmed(completion, content)
    if seen and marker not in end and (spoken or not shows):
        # The turn is more than its content, or the template takes the content apart (`<think>...</think>`).
        prompt = written([], add_generation_prompt=True) if before else ""
        head = prompt if prompt and whole.startswith(prompt) else commonprefix([head, whole])  # noqa: RUF071  of characters
        completion = _between(whole, head, end)
        around = written([turn | {"content": marker}]).partition(marker)
        inside = _between(whole, around[0], around[2]) if spoken and around[1] else None
        shows = completion is not None and (
            (not content.strip() and bool(spoken))
            or (inside is not None and _is_trimmed(inside, content))
            or "".join(completion.split()) == "".join(content.split())
        )
    if not shows or completion is None:
        raise DataError(
            f"{where}: the chat template of the base ({shown(getattr(tokenizer, 'name_or_path', ''))}) does not write the "
            f"assistant's turn {shown(content)} as it is after the messages before it, but {shown(whole[-200:])}; "
            "take another base, or write `tasks:` with prompts of your own"
        )
    if not completion.strip() and unwritten:
        raise DataError(
            f"{where}: the turn has only {ticked(unwritten)}, which the chat template of the base does not write; take a base "
            "that calls tools, or give the turn `weight: 0`"
        )
    # Without BOS: the prefix token stands before every example anyhow.
    return RenderedTurn(head.removeprefix(tokenizer.bos_token or ""), completion, end, tuple(unwritten))


def chat_prompt(tokenizer: "TextTokenizer", messages: Sequence[Message], tools: Sequence[Any] = (), where: str = "") -> str:
    """What a model trained on chats reads before its answer to `messages`."""
    asked = [*messages, turn_of("x")]
    return render_turn(tokenizer.hf, asked, tools, where).prompt if tokenizer.hf.chat_template else plain_turn(asked)[0]


def end_ids(tokenizer: "TextTokenizer", end: str) -> list[int]:
    """The ids that end a turn: those of `end` to the first that ends a generation, or all of them and EOS."""
    ids = tokenizer.encode_continuation(end)
    stops = [position for position, token in enumerate(ids) if token in tokenizer.stop_ids]
    return ids[: stops[0] + 1] if stops else [*ids, tokenizer.eos_id]


def turn_end(tokenizer: "TextTokenizer", end: Sequence[int] | None = None) -> tuple[int, ...]:
    """The ids by which an answer is over before an EOS: of what ends a turn (by `end_ids`, or what the chat template of the
    base ends one with), up to the first special token. Empty where that is white space or nothing.
    """
    if end is None:
        try:
            pair = [{"role": "user", "content": "x"}, turn_of("x")]
            end = end_ids(tokenizer, render_turn(tokenizer.hf, pair, (), "").end) if tokenizer.hf.chat_template else []
        except DataError:
            return ()
    ids: list[int] = []
    for token in end:
        if token in tokenizer.stop_ids:
            break
        ids.append(token)
        if token in tokenizer.special_ids:
            return tuple(ids)
    return tuple(ids) if tokenizer.decode(ids).strip() else ()


def ending_ids(tokenizer: "TextTokenizer") -> set[int]:
    """The ids that end an answer, each by itself: EOS, and the special token that a turn ends with."""
    return {*tokenizer.stop_ids, *(token for token in turn_end(tokenizer)[-1:] if token in tokenizer.special_ids)}


def turn_of(content: str) -> Message:
    """A turn of the assistant."""
    return {"role": "assistant", "content": content}


def _between(whole: str, head: str, end: str) -> str | None:
    """What stands between `head` and `end` in `whole`; None where it does not begin and end so."""
    fits = whole.startswith(head) and whole.endswith(end) and len(whole) >= len(head) + len(end)
    return whole[len(head) : len(whole) - len(end)] if fits else None


def _is_trimmed(text: str, content: str) -> bool:
    """Whether `text` is `content`, or that without white space at its ends."""
    return text in content and text.strip() == content.strip()
