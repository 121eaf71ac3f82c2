"""Conversations: `messages` and ShareGPT records in one form, and how a turn of the assistant is read and learned.

Each turn of the assistant is an example of its own: all messages before it are the prompt, the turn is the completion, so the
loss is taken on the assistant's words alone, and each turn is seen as it will be asked for (some templates write the last turn
otherwise than earlier ones). A base with a chat template renders with it; for one without, this is the form:

    SYSTEM\\n\\nUser: ...\\n\\nAssistant: ...\\n\\nUser: ...\\n\\nAssistant: ...<end of text>
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from paretune.errors import DataError
from paretune.study.base import shown

Message = dict[str, str]
"""`role` (`system`, `user`, `assistant` or `tool`) and `content`."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_NAMES = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
_KEYS = {"messages": ("messages", "role", "content"), "sharegpt": ("conversations", "from", "value")}


@dataclass(frozen=True)
class RenderedTurn:
    """A turn of the assistant as text in a base's chat template."""

    prompt: str
    completion: str
    end: str
    """What the template writes after the turn, such as `<|im_end|>`."""


def conversation(form: str, values: Mapping[str, Any], where: str) -> list[Message]:
    """The messages of a record in `form` (`messages` or `sharegpt`); DataError for anything else."""
    field, role, content = _KEYS[form]
    if field not in values:
        raise DataError(
            f"{where}: no field `{field}`, which `records: {form}` reads; the record has "
            + ", ".join(f"`{name}`" for name in values)
        )
    return parse_messages(values[field], role, content, f"{where}: `{field}`")


def messages_in(form: str, values: Mapping[str, Any]) -> list[Any] | None:
    """What the messages of a record say, whatever it is; None where it has no field of messages."""
    field, _, content = _KEYS[form]
    if field not in values:
        return None
    messages = values[field] if isinstance(values[field], list) else []
    return [message.get(content) if isinstance(message, Mapping) else message for message in messages]


def parse_messages(value: Any, role: str, content: str, where: str) -> list[Message]:
    """A list of messages with the keys `role` and `content`; DataError for one that is none, or of an unknown role."""
    if not isinstance(value, list):
        raise DataError(f"{where} is {shown(value)}; expected a list of messages with `{role}` and `{content}`")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or role not in message:
            raise DataError(f"{where}: message {number} is {shown(message)}; expected `{role}` and `{content}`")
        if message[role] not in _ROLES:
            known = ", ".join(f"`{name}`" for name in _ROLES)
            raise DataError(f"{where}: message {number}: `{role}` is {shown(message[role])}; known: {known}")
        said = message.get(content)
        parts = said if isinstance(said, list) else [said]
        if said and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
            said = "".join(part["text"] for part in parts)
        if not isinstance(said, str):
            raise DataError(
                f"{where}: message {number}: `{content}` is {shown(said)}; expected a text "
                "(calls of tools and images are not read)"
            )
        weight = {"weight": "0"} if message.get("weight") == 0 else {}
        messages.append({"role": _ROLES[message[role]], "content": said, **weight})
    return messages


def turns(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages up to each turn of the assistant that is to be learned (not those of `weight: 0`), the turn last."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    learned = (n for n, message in enumerate(messages) if message["role"] == "assistant" and "weight" not in message)
    return [plain[: n + 1] for n in learned]


def plain_turn(messages: Sequence[Message]) -> tuple[str, str]:
    """Prompt and completion of the last message, a turn of the assistant, for a base without a chat template."""
    history = "".join(
        f"{message['content']}\n\n" if message["role"] == "system" else f"{_NAMES[message['role']]}: {message['content']}\n\n"
        for message in messages[:-1]
    )
    return f"{history}Assistant:", f" {messages[-1]['content']}"


def render_turn(tokenizer: Any, messages: str, where: str) -> RenderedTurn:
    """The last of `messages` (JSON) after those before it, by the chat template of a tokenizer of transformers.

    DataError where the template refuses the messages, or writes the turn so that its text cannot be found again.
    """
    parsed = json.loads(messages)
    try:
        whole = _rendered(tokenizer, parsed)
        prompt = _rendered(tokenizer, parsed[:-1], add_generation_prompt=True) if parsed[:-1] else ""
        if not whole.startswith(prompt):
            # A template that writes thoughts before the answer only once the answer is there.
            prompt = _rendered(tokenizer, parsed[:-1])
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(f"{where}: the chat template of the base refuses the messages ({error})") from None
    rest = whole.removeprefix(prompt)
    content = parsed[-1]["content"] if parsed[-1]["content"] in rest else parsed[-1]["content"].strip()
    if not whole.startswith(prompt) or content not in rest:
        raise DataError(
            f"{where}: the chat template of the base does not write the assistant's turn after the messages before it; "
            "take another base, or write `tasks:` with prompts of your own"
        )
    lead, _, end = rest.partition(content)
    # Without BOS: the prefix token stands before every example anyhow.
    return RenderedTurn((prompt + lead).removeprefix(tokenizer.bos_token or ""), content, end)


def _rendered(tokenizer: Any, messages: Sequence[Message], **arguments: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
