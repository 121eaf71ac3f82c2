"""A record as what is learned from it: one text, or a context with branches, a prompt and a completion each.

Where a dataset has `tasks` there is a branch for each of them; the ready formats (`records:`) have one task, `response`, with a
branch for each turn of the assistant, or for each of several right completions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from paretune.data.chat import SPOKEN, Message, conversation, messages_in, parse_messages, plain_turn, tools_of, turns
from paretune.data.references import is_template, references_in
from paretune.data.sources import Row
from paretune.data.templates import LEAVE_OUT, Template, is_blank, parse_template, render
from paretune.errors import DataError, SpecError
from paretune.study.base import shown
from paretune.study.data import Dataset
from paretune.study.tasks import RESPONSE

ALPACA = (
    "Below is an instruction that describes a task{% if input is defined and input %}, paired with an input that provides "
    "further context{% endif %}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{{ instruction }}\n\n"
    "{% if input is defined and input %}### Input:\n{{ input }}\n\n{% endif %}### Response:\n"
)
"""The prompt of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca), with a line end after its last line."""
_READY = {"alpaca": (ALPACA, "output"), "prompt_completion": ("{{ prompt }}", "completion")}
"""Ready formats that are no conversations: their prompt, and the field of the completion."""


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt and what is to follow it."""

    task: str
    prompt: str
    completion: str
    part: str = ""
    """Tells several branches of one task and record apart: `.2`."""
    references: tuple[str, ...] = ()
    """What would be right too in the place of the completion; it is not learned."""
    messages: str | None = None
    """JSON of a conversation for a base that has a chat template: `messages`, the completion last, and `tools`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as text."""

    context: str
    """What all branches read first; where there are none, the whole text."""
    branches: tuple[PromptCompletion, ...] = ()
    empty: tuple[str, ...] = ()
    """The tasks whose completion is nothing but white space, and which are left out for it."""

    @property
    def text(self) -> str:
        """Context, prompts and all right completions, each once; the last turn of a conversation holds those before it."""
        if self.branches and self.branches[-1].messages is not None:
            return self.branches[-1].prompt + self.branches[-1].completion
        further = "".join(f"\n{reference}" for branch in self.branches for reference in branch.references)
        return self.context + "".join(branch.prompt + branch.completion for branch in self.branches) + further


@dataclass(frozen=True)
class TaskForm:
    name: str
    prompt: Template
    completion: Template
    keeps_empty: bool
    several: str | None = None
    """A field that may hold a list of right completions."""
    references: tuple[str, ...] = ()
    """Fields and templates of what is right too."""


@dataclass(frozen=True)
class Form:
    """How the records of a dataset are read: templates that are known to be well formed."""

    context: Template
    """Of the whole text where there are no tasks."""
    tasks: tuple[TaskForm, ...] = ()
    """In the order of their names: how a study orders them changes nothing."""
    chat: str | None = None
    """`messages` or `sharegpt`."""
    forbidden: tuple[str, ...] = ()
    """Fields that belong to a record of this form and are not read: refused where they hold something."""
    drops_empty: bool = False
    """What needs a field that is empty is left out, as what renders to nothing is, and no error."""

    @property
    def conversational(self) -> bool:
        """Prompt and completion may be lists of messages; only turns of the completion are learned."""
        return any(task.several == "completion" for task in self.tasks)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a record that any of its templates uses, in alphabetical order."""
        used = {name for template in self.templates for name in template.fields}
        return tuple(sorted(used))

    @property
    def templates(self) -> list[Template]:
        return [self.context, *(template for task in self.tasks for template in (task.prompt, task.completion))]


def parse_form(dataset: Dataset, where: str) -> Form:
    """How `dataset`, which stands at `where` in the study, reads its records; SpecError for a template that is none."""

    def parsed(source: str, field: str) -> Template:
        try:
            return parse_template(source)
        except SpecError as error:
            raise SpecError(f"{where}.{field}: {error}") from None

    drops_empty = "empty" in dataset.clean.drop
    if dataset.ready is None and not dataset.tasks:
        return Form(parsed(dataset.template, "text"), drops_empty=drops_empty)
    if dataset.ready is None:
        forms = []
        for name, task in sorted(dataset.tasks.items()):
            prompt = parsed(task.prompt, f"tasks.{name}.prompt")
            completion = parsed(task.completion, f"tasks.{name}.completion")
            for entry in filter(is_template, task.references):
                parsed(entry, f"tasks.{name}.references")
            forms.append(TaskForm(name, prompt, completion, task.empty == "keep", references=task.references))
        return Form(parsed(dataset.context, "context"), tuple(forms), drops_empty=drops_empty)
    nothing, ready = parse_template(""), dataset.ready.format
    if ready not in _READY:
        return Form(nothing, chat=ready, drops_empty=drops_empty)
    prompt, field = _READY[ready]
    response = TaskForm(RESPONSE, parse_template(prompt), parse_template(f"{{{{ {field} }}}}"), False, field)
    forbidden = ("system", "history") if ready == "alpaca" else ()
    return Form(nothing, (response,), forbidden=forbidden, drops_empty=drops_empty)


def read_record(form: Form, row: Row) -> Rendered:
    """A record as text; DataError for a field that is missing, null or of the wrong kind."""
    if form.drops_empty and (_lacks(form.context, row) or _lacks_words(form, row)):
        return Rendered("")
    try:
        if form.chat is not None:
            return _chat(conversation(form.chat, row.values, row.where), tools_of(row.values, row.where))
        prompt, completion = row.values.get("prompt"), row.values.get("completion")
        if form.conversational and isinstance(prompt, list) and isinstance(completion, list):
            before = parse_messages(prompt, "role", "content", f"{row.where}: `prompt`")
            after = parse_messages(completion, "role", "content", f"{row.where}: `completion`")
            return _chat([message | {"weight": 0} for message in before] + after, tools_of(row.values, row.where))
        if unread := [name for name in form.forbidden if not is_blank(row.values.get(name))]:
            raise DataError(
                f"{row.where}: `{unread[0]}` is {shown(row.values[unread[0]])}, which `records: alpaca` does not read; write "
                "the record as `messages`, or the prompt as a template of `tasks`"
            )
        return _rendered(form, row)
    except DataError as error:
        null = any(name in row.values and row.values[name] is None for each in form.templates for name in each.needed)
        if not form.drops_empty and (null or _lacks_words(form, row)):
            raise DataError(f"{error}, or {LEAVE_OUT}") from None
        raise


def _lacks(template: Template, row: Row) -> bool:
    return any(is_blank(row.values.get(name)) for name in template.needed)


def _lacks_words(form: Form, row: Row) -> bool:
    """Whether a conversation, or one of its messages, is empty."""
    messages = None if form.chat is None else messages_in(form.chat, row.values)
    return messages is not None and (not messages or any(map(is_blank, messages)))


def _rendered(form: Form, row: Row) -> Rendered:
    """The context, and for each task its prompt with its completion, or with each of several right ones."""
    context = render(form.context, row.values, row.where)
    branches, empty = [], []
    for task in form.tasks:
        if form.drops_empty:
            # A completion that may be empty must not be null all the same.
            null = any(row.values.get(name) is None for name in task.completion.needed)
            if _lacks(task.prompt, row) or (null if task.keeps_empty else _lacks(task.completion, row)):
                empty.append(task.name)
                continue
        prompt = render(task.prompt, row.values, row.where)
        several = row.values.get(task.several) if task.several else None
        if isinstance(several, list) and several and all(isinstance(completion, str) for completion in several):
            parts = [f".{number}" for number in range(1, len(several) + 1)] if len(several) > 1 else [""]
            answers = list(zip(several, parts, strict=True))
        else:
            answers = [(render(task.completion, row.values, row.where), "")]
        for completion, part in answers:
            if completion.strip() or task.keeps_empty:
                others = tuple(text for text in references_in(task.references, row.values, row.where) if text != completion)
                branches.append(PromptCompletion(task.name, prompt, completion, part, others))
            else:
                empty.append(task.name)
    return Rendered(context, tuple(branches), tuple(empty))


def _chat(messages: list[Message], tools: list[Any]) -> Rendered:
    branches, empty = [], 0
    for number, turn in enumerate(turns(messages), 1):
        prompt, completion = plain_turn(turn)
        if not completion.strip() and not any(name in turn[-1] for name in SPOKEN):
            empty += 1
            continue
        written = json.dumps({"messages": turn, "tools": tools}, ensure_ascii=False)
        branches.append(PromptCompletion(RESPONSE, prompt, completion, f".{number}", messages=written))
    if len(branches) == 1:
        branches = [replace(branches[0], part="")]
    return Rendered("", tuple(branches), (RESPONSE,) * empty)


def chat_texts(values: Mapping[str, Any], form: Form, where: str) -> list[str]:
    """What users and assistants say in a conversation, for the leakage check: a system prompt is many records' own."""
    if form.chat is None:
        return []
    return [message["content"] for message in conversation(form.chat, values, where) if message["role"] != "system"]


def refuse_surrogates(text: str, where: str) -> None:
    """DataError for half of a surrogate pair, which JSON can say and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            f"{where}: character {error.start + 1} of the text is half of a surrogate pair ({code}), no character; "
            "repair the record (an emoji cut in two by an earlier program?)"
        ) from None
