"""Ratings of generated texts from 1 to 5, by people with a sheet or by a judge model, and the rubric that both are given.

The rubric stands in the key of every rating: other words are another question.
"""

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from paretune.errors import SpecError
from paretune.study.base import FILE, Spec, suggestion
from paretune.study.registry import StageParts

if TYPE_CHECKING:
    from paretune.study.study import Study

Criterion = Literal["coherence", "relevance"]
LOWEST, HIGHEST = 1, 5
PREFERENCE = "preference"
"""The metric of which of two texts a person prefers, where sheets say so."""
RUBRIC: dict[str, str] = {
    "coherence": (
        "Coherence: does the text hold together in itself? 1: disconnected words, or the same again and again; 2: sentences "
        "that mostly do not follow from each other; 3: understandable, with breaks or contradictions; 4: clear, with small "
        "flaws; 5: clear and well connected throughout."
    ),
    "relevance": (
        "Relevance: does the text do what its prompt asks for, on the subject of prompt and context? 1: it has nothing to do "
        "with them; 2: it touches them and drifts away; 3: partly on the subject; 4: on the subject, with small lapses; 5: "
        "wholly what was asked for. An empty text is 1 in both."
    ),
}
INSTRUCTION = (
    f"Rate the text with whole numbers from {LOWEST} (worst) to {HIGHEST} (best). Judge it alone, as it stands: a text may be "
    "cut off at a length limit, which counts neither way."
)


class _Criteria(Spec):
    criteria: Annotated[tuple[Criterion, ...], Field(min_length=1)] = ("coherence", "relevance")
    """What is rated."""

    @model_validator(mode="after")
    def _distinct_criteria(self) -> Self:
        if len(set(self.criteria)) < len(self.criteria):
            raise ValueError("`criteria` names a criterion twice")
        return self

    @property
    def rubric(self) -> str:
        """The wording of what is asked of a rater."""
        return "\n".join([INSTRUCTION, *(RUBRIC[name] for name in self.criteria)])


class Ratings(_Criteria):
    """Ratings of generated texts by people: sheets that `paretune rate` wrote and people have filled in."""

    files: tuple[str, ...] = Field(min_length=1, json_schema_extra=FILE)
    """Filled sheets, one a person, who goes by the name of the file; relative to the study file."""

    @model_validator(mode="after")
    def _distinct_raters(self) -> Self:
        if len(self.by_rater) < len(self.files):
            raise ValueError("two files have the same name, and a person goes by the name of the file; rename one")
        return self

    @property
    def by_rater(self) -> dict[str, str]:
        """The file of each person."""
        return {PurePath(file).stem: file for file in self.files}


class Judge(_Criteria):
    """Ratings of generated texts by a model behind an OpenAI-compatible address. The texts are sent there."""

    url: str = Field(min_length=1)
    """What `/chat/completions` follows, such as `http://localhost:8000/v1`. Nothing is called unless it is given."""
    model: str = Field(min_length=1)
    """The name of the judge there."""
    key: str | None = None
    """The environment variable that holds the key of the address; its value is stored nowhere."""
    repeats: int = Field(1, ge=1)
    """How often each text is judged; from 2 on the report says whether the judge agrees with itself."""
    items: int | None = Field(None, ge=1)
    """Prompts whose texts are judged, the same for every variant; all unless given."""
    of: tuple[str, ...] = ()
    """Evaluations of the kind `generate` and tasks whose texts are judged; all unless given."""
    temperature: float | None = Field(0.0, ge=0)
    """Sent to the judge; null sends none, for models that take no other than their own."""
    max_tokens: int = Field(512, ge=1)
    """Longest reply; a model that thinks aloud needs more."""
    structured: bool = True
    """Ask the address to enforce the form of replies (`response_format`); false for one that refuses that."""
    timeout: float = Field(60.0, gt=0)
    """Seconds to wait for a reply. A reply that does not come is asked for again; so is one that is no rating."""

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"`url` begins with http:// or https://, got `{self.url}`")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What the ratings depend on: neither the key nor how long to wait."""
        return self.model_dump(mode="json", exclude={"key", "timeout"})


def ratings_content(config: Ratings, parts: StageParts) -> dict[str, Any]:
    """What the key of people's ratings holds: the rubric and the sheets."""
    sheets = {rater: parts.file(f"sheet.{rater}", file) for rater, file in config.by_rater.items()}
    return {"evaluation": {"criteria": list(config.criteria)}, "rubric": config.rubric, "sheets": sheets}


def judge_content(config: Judge, parts: StageParts) -> dict[str, Any]:
    """What the key of a judge's ratings holds: neither the key of its address nor how long to wait."""
    parts.settings(timeout=config.timeout, **({"environment": config.key} if config.key else {}))
    return {"evaluation": config.identity, "rubric": config.rubric}


def judge_fits(config: Judge, study: "Study", name: str) -> None:
    """SpecError where `of` names no texts of the study."""
    for index, source in enumerate(config.of):
        if source not in study.rated_texts:
            raise SpecError(
                f"evaluate.{name}.of[{index}]: no generation or task `{source}`{suggestion(source, study.rated_texts)}"
            )
