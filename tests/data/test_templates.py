import datetime
import math
from typing import Any

import pytest

from paretune.data.templates import parse_template, render
from paretune.errors import DataError, SpecError

WHERE = "articles.jsonl: line 12"


def filled(template: str, **record: Any) -> str:
    return render(parse_template(template), record, WHERE)


def test_everything_outside_the_braces_is_literal() -> None:
    assert filled("  {{ title }}\n\n<b>{{ content }}</b>\n\n", title="A & B", content=" {{ x }}\n") == (
        "  A & B\n\n<b> {{ x }}\n</b>\n\n"
    )


def test_filters_conditions_and_nested_fields_work() -> None:
    template = "{{ tags | join(', ') }}{% if input %}: {{ input }}{% endif %} {{ author.name }} {{ pages[0] }}"
    record = {"tags": ["x", "y"], "input": "", "author": {"name": "N"}, "pages": [3]}
    assert filled(template, **record) == "x, y N 3"
    assert filled(template, **(record | {"input": "in"})) == "x, y: in N 3"


def test_numbers_and_dates_are_written_as_they_are() -> None:
    assert filled("{{ n }} {{ x }} {{ day }}", n=3, x=0.5, day=datetime.date(2024, 2, 3)) == "3 0.5 2024-02-03"


def test_a_null_is_false_in_a_condition_and_takes_a_default() -> None:
    assert filled("{% if x %}a{% else %}b{% endif %}", x=None) == "b"
    assert filled("{{ x | default('none') }}{{ y | default('') }}", x=None) == "none"
    assert filled("{% if x is none %}b{% endif %}{% if y is defined %}c{% endif %}", x=None) == "b"


def test_fields_come_from_the_syntax_tree() -> None:
    template = "{% for tag in tags %}{{ tag }}{% endfor %}{{ author.name }}{{ x | default(y) }} z {# w #}"
    assert parse_template(template).fields == ("author", "tags", "x", "y")


BAD_RECORDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("{{ sumary }}", {"summary": "a", "title": "b"}, ["field `sumary` is missing", "`title`", "did you mean `summary`?"]),
    ("{{ x }}", {"title": "b"}, ["field `x` is missing", "the record has `title`", "{{ x | default('') }}"]),
    ("{% if x %}a{% endif %}", {"title": "b"}, ["field `x` is missing"]),
    ("{{ title }}", {"title": None}, ["field `title` is null", "{{ title | default('') }}"]),
    ("{{ title | upper }}", {"title": None}, ["field `title` is null"]),
    ("{{ title ~ '.' }}", {"title": None}, ["field `title` is null"]),
    ("{{ tags | join(', ') }}", {"tags": ["a", None]}, ["an item of field `tags` is null", "repair the record"]),
    ("{{ author.name }}", {"author": {"name": None}}, ["field `author.name` is null", "{{ author.name | default('') }}"]),
    ("{{ a.score }}", {"a": {"score": math.nan}}, ["field `a.score` is nan, which is no number", "a.score | default"]),
    ("{{ a['two words'][0] }}", {"a": {"two words": [None]}}, ["an item of field `a['two words']` is null"]),
    ("{{ '%.1f' | format(x) }}", {"x": math.nan}, ["field `x` is nan, which is no number"]),
    ("{{ x }}", {"x": math.inf}, ["field `x` is inf, which is no number"]),
    ("{{ x * 1e308 }}", {"x": 10.0}, ["a result is inf, which is no number"]),
    ("{{ tags | string }}", {"tags": ["a", None]}, ["an item of field `tags` is null"]),
    ("{{ tags | string }}", {"tags": [("a", None)]}, ["an item of an item of field `tags` is null"]),
    ("{{ author.name }}", {"author": {"nom": "x"}}, ["`name` is missing in an object", '{"nom": "x"}']),
    ("{{ tags }}", {"tags": ["a"]}, ["field `tags` is a list", '`["a"]`', "{{ tags | join(', ') }}"]),
    ("{{ author }}", {"author": {"name": "x"}}, ["field `author` is an object"]),
    ("{{ blob }}", {"blob": b"x"}, ["field `blob` is bytes"]),
    ("{{ n + 1 }}", {"n": "x"}, ["cannot be filled in", "concatenate"]),
    ("{{ range(3) }}", {"n": 1}, ["field `range` is missing"]),
    ("{{ n.__class__ }}", {"n": "x"}, ["cannot be filled in", "unsafe"]),
]


@pytest.mark.parametrize(("template", "record", "told"), BAD_RECORDS)
def test_a_bad_record_is_refused_with_place_field_and_way_out(template: str, record: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        filled(template, **record)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert [part for part in told if part not in message] == []


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("a\n{{ title", "line 2: unexpected end"),
        ("{{ title | uper }}", "No filter named 'uper'"),
        ("{{ titles | random }}", "No filter named 'random'"),
        ("{% if x %}", "line 1: "),
    ],
)
def test_what_is_no_template_is_refused(template: str, told: str) -> None:
    with pytest.raises(SpecError, match="template `") as caught:
        parse_template(template)
    assert told in str(caught.value)
