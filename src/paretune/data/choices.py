"""Multiple choice as people write it: where the options of a record stand, and how its answer names the right one.

Options stand in a list (`options`, `choices`, `endings`, ...; of texts, of `text` and `label`, by letter, or any of these
written out as text, as a table has them), in columns (`option_a`, `optionA`, `choice0`, `opa`, `A`, `sol1`, ...), or beside the
right answer (`distractor1`, `incorrect_answers`). The answer is the text of an option, its label, column, letter or number.
Which of these is decided from all records of a file: whether numbers count from 0 or from 1 cannot be seen in one of them.
"""

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from string import ascii_lowercase
from typing import Any, get_args

from paretune.data.json_text import written_out
from paretune.errors import DataError
from paretune.study.base import shown
from paretune.study.evaluations import Rule

RULES: tuple[Rule, ...] = get_args(Rule)
ANSWER_FIELDS = (
    *("answer", "answerkey", "answerindex", "answeridx", "correctanswer", "correct", "correctoption", "correctchoice"),
    *("correctindex", "correctidx", "correctletter", "rightanswer", "bestanswer", "gold", "goldindex", "goldidx", "goldlabel"),
    *("label", "target", "cop", "answers"),
)
"""Fields that name the right option, by `plain`; the first that a record has counts."""
_AGREE = ("answer", "correct")
"""What the names of fields begin with that must name the same option where a record has several."""
_LISTS = ("options", "choices", "endings", "alternatives", "candidates", "answerchoices", "answeroptions", "mc1targets")
_WRONG_LISTS = ("distractors", "incorrectanswers", "wronganswers")
_COLUMN = re.compile(r"((?:choice|option|opt|op|answer|ans|alternative|alt|candidate|ending|sol|solution)?)(?:([a-j])|(\d\d?))")
_WRONG_COLUMN = re.compile(r"(?:distractor|wrong|incorrect)(?:answer)?s?(?:[a-j]|\d\d?)")
_LETTER = re.compile(r"\(?([a-z])[).:]?\)?", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,3}(?:\.0+)?")
_SAYS: dict[Rule, str] = {
    "label": "is the label of an option",
    "text": "is the text of an option",
    "letter": "is the letter of an option",
    "from_0": "counts the options from 0",
    "from_1": "counts the options from 1",
}


@dataclass(frozen=True)
class Choices:
    """The options of one record."""

    source: str
    """Where they stand, in words that are the same for all records of one form."""
    read: tuple[str, ...]
    """The fields that they take."""
    texts: tuple[str, ...]
    """Empty where a column is."""
    labels: tuple[str, ...] = ()
    """One for each text where the record labels them: given, or the columns."""
    labelled: bool = False
    """Whether the labels are given, so that no answer counts options by their place."""
    right: int | None = None
    """Into `texts`, where options stand beside the right one."""

    @property
    def options(self) -> tuple[str, ...]:
        """The texts that are not empty."""
        return tuple(text for text in self.texts if text)


@dataclass(frozen=True)
class Answer:
    """How a record names the right one of its options."""

    choices: Choices
    values: Mapping[str, Any]
    """By field, the one that counts first; others must agree with it."""
    where: str


def plain(name: str) -> str:
    """A field's name without what separates its parts: `Option A`, `option_a` and `optionA` are one."""
    return re.sub(r"[\W_]+", "", name).casefold()


def find_choices(record: Mapping[str, Any], question: str, where: str, skipped: Collection[str] = ()) -> Choices | None:
    """The options of a record, None where it has none; `skipped` are fields that hold none. DataError beginning with `where`
    for what looks like options and cannot be read as two or more."""
    fields = {name: value for name, value in record.items() if name not in skipped and not _is_empty(value)}
    nested = record.get("question")
    if isinstance(nested, Mapping):
        fields["choices"] = nested.get("choices")
    by_name = {plain(name): name for name in fields}
    right = next((by_name[name] for name in ("correctanswer", "rightanswer", "bestanswer", "answer") if name in by_name), None)
    wrong = [name for name in fields if plain(name) in _WRONG_LISTS or _WRONG_COLUMN.fullmatch(plain(name))]
    if wrong and right is not None:
        wrong.sort()
        values = [fields[name] if plain(name) not in _WRONG_LISTS else written_out(fields[name]) for name in wrong]
        each = [text for value in values for text in (value if isinstance(value, list) else [value])]
        return _beside(fields[right], each, f"`{right}` and {_named(wrong)}", (right, *wrong), question, where)
    for name in (by_name[name] for name in _LISTS if name in by_name):
        return _of_list(name, written_out(fields[name]), question, where)
    runs = list(_runs(record, skipped))
    filled = [run for run in runs if any(not _is_empty(record[name]) for name in run)]
    if len(filled) > 1:
        raise DataError(f"{where}: {' or '.join(map(_named, filled))} may be its options; rename those that are not")
    if filled:
        texts = ["" if _is_empty(record[name]) else _text(record[name], name, where) for name in filled[0]]
        return _several(Choices(f"columns {_named(filled[0])}", filled[0], tuple(texts), filled[0]), where)
    answers = fields.get("answers")
    named = (
        by_name[name] for name in ANSWER_FIELDS if name in by_name and name.startswith(("answerk", "answeri", *_AGREE[1:]))
    )
    if isinstance(answers, list) and any(_is_place(fields[name]) for name in named) and "answer" not in fields:
        return _of_list("answers", answers, question, where)
    return None


def answer_values(record: Mapping[str, Any], choices: Choices, where: str) -> dict[str, Any]:
    """The fields of a record that name one of its options, the one that counts first; empty where there is none. DataError
    beginning with `where` for one that names several."""
    by_name = {plain(name): name for name in record if name not in choices.read and not _is_empty(record[name])}
    known = [by_name[name] for name in ANSWER_FIELDS if name in by_name and not isinstance(record[by_name[name]], bool)]
    values = {name: record[name] for name in known[:1]}
    if known and plain(known[0]).startswith(_AGREE):
        values |= {name: record[name] for name in known if plain(name).startswith(_AGREE)}
    for name, value in values.items():
        several = value if value in choices.texts else written_out(value)
        if isinstance(several, list) and len(several) > 1:
            raise DataError(
                f"{where}: `{name}` names {len(several)} options, {shown(several)}; multiple choice has one right one"
            )
        values[name] = several[0] if isinstance(several, list) else value
    return values


def decide(answers: Sequence[Answer], rules: Collection[Rule] = RULES) -> tuple[list[int], str]:
    """The place of the right option of each record (into `Choices.texts`), and in words how they are named.

    `answers` have the same fields; `rules` are the ways that may be meant. DataError where none fits all records, where two fit
    that name different options, and where two fields name different ones.
    """
    first, *others = answers[0].values
    fits = _fitting(first, answers, rules)
    for field in others:
        agreeing = _fitting(field, answers, RULES)
        both = {rule: places for rule, places in fits.items() if places in agreeing.values()}
        if not both:
            places, other = next(iter(fits.values())), next(iter(agreeing.values()))
            n = next(n for n in range(len(answers)) if places[n] != other[n])
            said, texts = answers[n].values, answers[n].choices.texts
            raise DataError(
                f"{answers[n].where}: `{field}: {said[field]}` is {shown(texts[other[n]])} and `{first}` {shown(said[first])}; "
                "correct one of them"
            )
        fits = both
    rule = next(iter(fits))
    differing = [other for other, places in fits.items() if places != fits[rule]]
    if differing and rule != "label":
        other = differing[0]
        n = next(n for n in range(len(answers)) if fits[rule][n] != fits[other][n])
        one, two = (shown(answers[n].choices.texts[fits[each][n]]) for each in (rule, other))
        raise DataError(
            f"{answers[n].where}: `{first}` {shown(answers[n].values[first])} names {one} if it {_SAYS[rule]}, and {two} if it "
            f"{_SAYS[other]}, and no record decides it; write `right_option: {rule}` or `right_option: {other}`"
        )
    return fits[rule], f"`{first}` {_SAYS[rule]}"


def _fitting(field: str, answers: Sequence[Answer], rules: Collection[Rule]) -> dict[Rule, list[int]]:
    """The rules by which each answer names an option, with its place; DataError where there is none."""
    if set(rules) == set(RULES) and answers[0].choices.labelled:
        rules = ("label", "text")
    elif set(rules) == set(RULES) and plain(field) == "answerindex":
        rules = ("from_0",)  # as our own format has it
    placed = {rule: [_place(each.choices, each.values[field], rule) for each in answers] for rule in RULES if rule in rules}
    fits = {rule: [place for place in places if place is not None] for rule, places in placed.items() if None not in places}
    if fits:
        return fits
    value, choices = answers[0].values[field], answers[0].choices
    likely: Rule = "from_0" if _is_number(value) else "letter" if _is_place(value) else "text"
    likely = "label" if choices.labelled else "text" if any(map(_is_place, choices.texts)) else likely
    rule = max(placed, key=lambda rule: (sum(place is not None for place in placed[rule]), rule == likely))
    n = placed[rule].index(None)
    choices, value = answers[n].choices, answers[n].values[field]
    told = f"{answers[n].where}: `{field}` {{}}{shown(value)}{{}}"
    if rule == "label":
        raise DataError(told.format("", f" is none of the labels {shown(list(choices.labels))}; correct it"))
    if rule == "text":
        options = shown(list(choices.options))
        raise DataError(told.format("", f" is not among the options {options}; write it as it stands there"))
    expected = f"a number from {rule[-1]} that counts the {len(choices.options)} options"
    if rule == "letter":
        expected = f"one of the letters {shown([letter.upper() for letter in ascii_lowercase[: len(choices.texts)]])}"
    more = "" if len(answers) == 1 else f", as in {len(answers) - placed[rule].count(None)} of {len(answers)} records"
    raise DataError(told.format("is ", f"; expected {expected}{more}"))


def _place(choices: Choices, value: Any, rule: Rule) -> int | None:
    """Where the option stands that `value` names by `rule`; None where there is none."""
    place = None
    said = value.strip() if isinstance(value, str) else value
    if rule == "label" and not isinstance(value, float) and str(said) in choices.labels:
        place = choices.labels.index(str(said))
    elif rule == "text" and isinstance(said, str):
        texts = [text.strip() for text in choices.texts]
        place = choices.texts.index(value) if value in choices.texts else texts.index(said) if said in texts else None
    elif rule == "letter" and isinstance(said, str) and (match := _LETTER.fullmatch(said)):
        place = ascii_lowercase.index(match[1].lower())
    elif rule.startswith("from_") and _is_number(value):
        place = int(float(value)) - int(rule[-1])
    return place if place is not None and 0 <= place < len(choices.texts) and choices.texts[place] else None


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)


def _is_place(value: Any) -> bool:
    """Whether it is a letter or a number, as of a list."""
    return _is_number(value) or (isinstance(value, str) and _LETTER.fullmatch(value.strip()) is not None)


def looks_chosen(answer: str) -> bool:
    """Whether an answer looks like the letter or number of an option: one of A to H, or a digit."""
    match = _LETTER.fullmatch(answer.strip())
    return (match is not None and match[1].lower() <= "h") or re.fullmatch(r"\d(?:\.0)?", answer.strip()) is not None


def _runs(record: Mapping[str, Any], skipped: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Columns that are options by their names: two or more of one stem, lettered from A, or numbered from 0 or 1."""
    stems: dict[tuple[str, bool], dict[int, str]] = {}
    for name in record:
        if name not in skipped and (match := _COLUMN.fullmatch(plain(name))):
            place = int(match[3]) if match[3] else ascii_lowercase.index(match[2])
            stems.setdefault((match[1], bool(match[3])), {})[place] = name
    for (_, numbered), names in stems.items():
        start = 1 if numbered and 0 not in names else 0
        run = tuple(names[place] for place in takewhile(names.__contains__, count(start)))
        if len(run) > 1:
            yield run


def _of_list(name: str, value: Any, question: str, where: str) -> Choices:
    """The options of a field that holds them all."""
    expected = "expected a list of texts, a list of `text` and `label`, or an object of two such lists"
    labels: list[Any] | None = None
    if isinstance(value, Mapping) and isinstance(value.get("labels"), list) and isinstance(value.get("choices"), list):
        texts, marks = value["choices"], value["labels"]
        if len(marks) != len(texts) or sorted(marks) != [0] * (len(marks) - 1) + [1]:
            raise DataError(f"{where}: `{name}.labels` is {shown(marks)}; expected a 1 for the right option, and 0 for others")
        wrong = [text for text, mark in zip(texts, marks, strict=True) if not mark]
        return _beside(texts[marks.index(1)], wrong, f"`{name}`", (name,), question, where)
    if isinstance(value, Mapping) and {"label", "text"} <= set(value):
        labels, value = value["label"], value["text"]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        labels, value = ([item.get(key) for item in value] for key in ("label", "text"))
    elif isinstance(value, Mapping) and value and all(_is_place(key) for key in value):
        labels, value = list(value), list(value.values())
    if not isinstance(value, list) or not isinstance(labels, list | None):
        as_text = "; written as text it is JSON or Python, `['...', '...']`" if isinstance(value, str) else ""
        raise DataError(f"{where}: `{name}` is {shown(value)}; {expected}{as_text}")
    part = name if labels is None else f"{name}.text"
    texts = tuple(_text(text, part, where) for text in value)
    if labels is None:
        return _several(Choices(f"the list `{name}`", (name,), texts), where)
    if len(labels) != len(texts):
        raise DataError(f"{where}: `{name}` must hold as many of `label` as of `text`")
    named = tuple(str(label) if isinstance(label, int) else _text(label, f"{name}.label", where) for label in labels)
    if len(set(named)) < len(named):
        raise DataError(f"{where}: `{name}` has a label twice: {shown(list(named))}")
    return _several(Choices(f"`{name}` with labels", (name,), texts, named, labelled=True), where)


def _beside(right: Any, wrong: Sequence[Any], source: str, read: tuple[str, ...], question: str, where: str) -> Choices:
    """Options of which the file says the right one: its place among them must tell nothing, and be the same in every run."""
    answer, others = _text(right, read[0], where), {_text(text, read[-1], where) for text in wrong if not _is_empty(text)}
    if answer in others:
        raise DataError(f"{where}: {shown(answer)} is the right answer and a wrong one; correct one of them")
    options = sorted({answer, *others})
    random.Random(question).shuffle(options)
    return _several(Choices(source, read, tuple(options), right=options.index(answer)), where)


def _several(choices: Choices, where: str) -> Choices:
    if len(choices.options) < 2:
        raise DataError(f"{where}: {_named(choices.read)} holds {len(choices.options)}; multiple choice needs two or more")
    return choices


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:2]) + (" ..." if len(names) > 2 else "")


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where}: `{field}` is " + ("missing" if value is None else f"{shown(value)}; expected a text, in quotes")
        )
    if not value.strip():
        raise DataError(f"{where}: `{field}` is empty; fill it in, or leave the record out")
    return value


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)
