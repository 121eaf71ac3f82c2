"""A record as what is learned from it: one text, or a context with branches, a prompt and a completion each.

Where a dataset has `tasks` there is a branch for each of them; the ready formats (`records:`) have one task, `response`, with a
branch for each turn of the assistant, or for each of several right completions.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paretune.data.chat import Message, conversation, messages_in, parse_messages, plain_turn, turns
from paretune.data.sources import Row
from paretune.data.templates import LEAVE_OUT, Template, is_blank, parse_template, render
from paretune.errors import DataError, SpecError
from paretune.study.data import Dataset
from paretune.study.tasks import RESPONSE

ALPACA = (
    "Below is an instruction that describes a task{% if input is defined and input %}, paired with an input that provides "
    "further context{% endif %}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{{ instruction }}\n\n"
    "{% if input is defined and input %}### Input:\n{{ input }}\n\n{% endif %}### Response:\n"
)
"""The prompt of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca), with a line end after its last line."""


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt and what is to follow it."""

    task: str
    prompt: str
    completion: str
    part: str = ""
    """Tells several branches of one task and record apart: `.2`."""
    messages: str | None = None
    """JSON of a conversation, the completion last, for a base that has a chat template."""


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
        """Context, prompts and completions, each once; the last turn of a conversation holds those before it."""
        if self.branches and self.branches[-1].messages is not None:
            return self.branches[-1].prompt + self.branches[-1].completion
        return self.context + "".join(branch.prompt + branch.completion for branch in self.branches)


@dataclass(frozen=True)
class TaskForm:
    name: str
    prompt: Template
    completion: Template
    keeps_empty: bool
    several: str | None = None
    """A field that may hold a list of right completions."""


@dataclass(frozen=True)
class Form:
    """How the records of a dataset are read: templates that are known to be well formed."""

    context: Template
    """Of the whole text where there are no tasks."""
    tasks: tuple[TaskForm, ...] = ()
    """In the order of their names: how a study orders them changes nothing."""
    chat: str | None = None
    """`messages` or `sharegpt`."""
    drops_empty: bool = False
    """What needs a field that is empty is left out, as what renders to nothing is, and no error."""

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
    return replace(_form(dataset, where), drops_empty="empty" in dataset.clean.drop)


def _form(dataset: Dataset, where: str) -> Form:
    if dataset.ready is not None:
        return _ready_form(dataset.ready.format)
    if not dataset.tasks:
        return Form(_template(dataset.template, f"{where}.text"))
    tasks = []
    for name, task in sorted(dataset.tasks.items()):
        prompt = _template(task.prompt, f"{where}.tasks.{name}.prompt")
        completion = _template(task.completion, f"{where}.tasks.{name}.completion")
        tasks.append(TaskForm(name, prompt, completion, task.empty == "keep"))
    return Form(_template(dataset.context, f"{where}.context"), tuple(tasks))


def read_record(form: Form, row: Row) -> Rendered:
    """A record as text; DataError for a field that is missing, null or of the wrong kind."""
    if form.drops_empty and (_lacks(form.context, row) or _lacks_words(form, row)):
        return Rendered("")
    try:
        return _read(form, row)
    except DataError as error:
        null = any(name in row.values and row.values[name] is None for each in form.templates for name in each.needed)
        if not form.drops_empty and (null or _lacks_words(form, row)):
            raise DataError(f"{error}, or {LEAVE_OUT}") from None
        raise


def _lacks(template: Template, row: Row) -> bool:
    return any(is_blank(row.values.get(name)) for name in template.needed)


def _lacks_words(form: Form, row: Row) -> bool:
    """Whether a conversation, or one of its messages, is empty."""
    if form.chat is None:
        return False
    messages = messages_in(form.chat, row.values)
    return messages is not None and (not messages or any(map(is_blank, messages)))


def _read(form: Form, row: Row) -> Rendered:
    if form.chat is not None:
        return _chat(conversation(form.chat, row.values, row.where))
    context = render(form.context, row.values, row.where)
    if not form.tasks:
        return Rendered(context)
    conversational = _conversational(form, row)
    if conversational is not None:
        return conversational
    branches, empty = [], []
    for task in form.tasks:
        if form.drops_empty and _lacks_part(task, row):
            empty.append(task.name)
            continue
        for branch in _branches(task, row):
            if branch.completion.strip() or task.keeps_empty:
                branches.append(branch)
            else:
                empty.append(task.name)
    return Rendered(context, tuple(branches), tuple(empty))


def _ready_form(name: str) -> Form:
    nothing = parse_template("")
    if name == "alpaca":
        response = TaskForm(RESPONSE, parse_template(ALPACA), parse_template("{{ output }}"), False, "output")
    elif name == "prompt_completion":
        response = TaskForm(RESPONSE, parse_template("{{ prompt }}"), parse_template("{{ completion }}"), False, "completion")
    else:
        return Form(nothing, chat=name)
    return Form(nothing, (response,))


def _lacks_part(task: TaskForm, row: Row) -> bool:
    """Whether a field of its prompt or completion is empty; of one that may be, only null."""
    if task.keeps_empty:
        return _lacks(task.prompt, row) or any(row.values.get(name) is None for name in task.completion.needed)
    return _lacks(task.prompt, row) or _lacks(task.completion, row)


def _branches(task: TaskForm, row: Row) -> Iterator[PromptCompletion]:
    prompt = render(task.prompt, row.values, row.where)
    completions = row.values.get(task.several) if task.several else None
    if not (isinstance(completions, list) and completions and all(isinstance(each, str) for each in completions)):
        yield PromptCompletion(task.name, prompt, render(task.completion, row.values, row.where))
        return
    for number, completion in enumerate(completions, 1):
        yield PromptCompletion(task.name, prompt, completion, f".{number}" if len(completions) > 1 else "")


def _conversational(form: Form, row: Row) -> Rendered | None:
    """Prompt and completion that are lists of messages; None for all others. Only turns of the completion are learned."""
    prompt, completion = row.values.get("prompt"), row.values.get("completion")
    if form.tasks[0].several != "completion" or not isinstance(prompt, list) or not isinstance(completion, list):
        return None
    before = parse_messages(prompt, "role", "content", f"{row.where}: `prompt`")
    after = parse_messages(completion, "role", "content", f"{row.where}: `completion`")
    return _chat([message | {"weight": "0"} for message in before] + after)


def _chat(messages: list[Message]) -> Rendered:
    branches = []
    for number, turn in enumerate(turns(messages), 1):
        prompt, completion = plain_turn(turn)
        written = json.dumps(turn, ensure_ascii=False)
        branches.append(PromptCompletion(RESPONSE, prompt, completion, f".{number}", written))
    filled = [branch for branch in branches if branch.completion.strip()]
    if len(filled) == 1:
        filled = [replace(filled[0], part="")]
    return Rendered("", tuple(filled), (RESPONSE,) * (len(branches) - len(filled)))


def chat_texts(values: Mapping[str, Any], form: Form, where: str) -> list[str]:
    """What users and assistants say in a conversation, for the leakage check: a system prompt is many records' own."""
    if form.chat is None:
        return []
    return [message["content"] for message in conversation(form.chat, values, where) if message["role"] != "system"]


def _template(source: str, where: str) -> Template:
    try:
        return parse_template(source)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


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
