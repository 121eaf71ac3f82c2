"""What counts as unsafe text: a list of words, a classifier that the user names, or both. Nothing is looked for by default."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from paretune.study.base import FILE, OtherModel, Spec, distinct


class Classifier(OtherModel):
    """A text classifier in Hugging Face format, `path` or `hub`; a longer text is judged by its worst part."""

    unsafe: tuple[str, ...] = Field(min_length=1)
    """Its labels that stand for unsafe text."""
    threshold: float = Field(0.5, gt=0, le=1)
    """Probability of those labels from which a text counts as unsafe: their sum, or the largest where labels do not exclude
    each other."""

    _are_distinct = field_validator("unsafe")(distinct)


class Safety(Spec):
    """A filter for unsafe text: on the records of all datasets, and on all that variants generate."""

    words: str | None = Field(None, json_schema_extra=FILE)
    """A text file, relative to the study: a word or phrase a line, found as whole words in any case; `#` begins a comment."""
    classifier: Classifier | None = None
    """A model that judges texts."""
    data: Literal["drop", "count"] = "count"
    """Leave unsafe records out before the split, or only count them. Generated texts are counted and marked, never changed."""

    @model_validator(mode="after")
    def _looks_for_something(self) -> Self:
        if self.words is None and self.classifier is None:
            raise ValueError("name `words: FILE`, a `classifier`, or both")
        return self
