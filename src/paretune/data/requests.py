"""What a model is asked about a question: prompt and answers from templates, and the slices that its scores fall into.

No torch here: a study is refused before its first stage where its templates or `slice_by` do not fit its questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from paretune.data.questions import Question
from paretune.data.templates import Template, render
from paretune.errors import DataError


@dataclass(frozen=True)
class Request:
    """What a model is asked about one question."""

    question: Question
    prompt: str
    answers: tuple[str, ...]
    """The options as they follow the prompt, or the one answer of a factual question."""

    @property
    def factual(self) -> bool:
        return not self.question.options


def request_of(question: Question, prompt: Template, answer: Template, context: Template | None = None) -> Request:
    """The templates filled with a question, taken literally: nothing is trimmed, and the prompt does not know the answer.

    `context` comes before the prompt of a question that has one. DataError for a field that the question lacks.
    """
    where = f"question `{question.id}`"
    fields = {**question.fields, "question": question.question, "options": list(question.options)}
    fields |= {"context": question.context} if question.context else {}
    texts = question.options or (question.answer,)
    answers = (render(answer, {**fields, "answer": text}, where) for text in texts)
    before = render(context, fields, where) if context is not None and question.context else ""
    return Request(question, before + render(prompt, fields, where), tuple(answers))


def slices_of(question: Question, names: Sequence[str]) -> dict[str, str]:
    """The value of each field that scores are broken down by; DataError for one that is missing or no single value."""
    missing = [name for name in names if not isinstance(question.fields.get(name), str | int | float | bool)]
    if missing:
        raise DataError(
            f"question `{question.id}` has no single value in the field `{missing[0]}` that `slice_by` names; add it to the "
            "question, or leave it out of `slice_by`"
        )
    return {name: str(question.fields[name]) for name in names}
