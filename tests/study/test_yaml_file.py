"""Reading YAML 1.2: what its values mean, on which line they stand, and what is refused before it is a study."""

from pathlib import Path
from typing import Any

import pytest

from paretune.errors import SpecError
from paretune.study.yaml_file import read_yaml


def read(tmp_path: Path, text: str | bytes) -> tuple[Any, dict]:
    file = tmp_path / "study.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 3e-4),
        ("3.0e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-0.5", -0.5),
        ("1e1", 10.0),
        ("8", 8),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ('"8"', "8"),
        ("'it''s'", "it's"),
        ('"a\\nb"', "a\nb"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31T10:00:00", "2024-01-31T10:00:00"),
        ("12:30:45", "12:30:45"),
        ("[1, [2, {a: 3}]]", [1, [2, {"a": 3}]]),
        ("|\n  a\n   b\n", "a\n b\n"),
        (">-\n  a\n  b\n", "a b"),
        ("!!int 4", 4),
    ],
)
def test_values_are_those_of_yaml_1_2_and_plain(tmp_path: Path, written: str, value: Any) -> None:
    (read_value,) = read(tmp_path, f"key: {written}\n")[0].values()
    assert read_value == value
    assert type(read_value) is type(value)


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    value, lines = read(tmp_path, "# a comment\na:\n  b: 1\n\n  c: [x,\n      y]\nd: {e: {f: 2}}\n- ".rstrip("- "))
    assert value == {"a": {"b": 1, "c": ["x", "y"]}, "d": {"e": {"f": 2}}}
    assert lines == {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 5,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("d",): 7,
        ("d", "e"): 7,
        ("d", "e", "f"): 7,
    }


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbfa: 1\n", b"a: 1\r\n", b"a: 1\r", b"---\na: 1\n...\n", b"%YAML 1.2\n---\na: 1\n", b"a: 1"]
)
def test_marks_and_line_ends_make_no_difference(tmp_path: Path, text: bytes) -> None:
    assert read(tmp_path, text)[0] == {"a": 1}


def test_anchors_and_merged_keys_give_values_of_their_own(tmp_path: Path) -> None:
    value, lines = read(tmp_path, "a: &a {r: 4, x: [1]}\nb: *a\nc: {<<: *a, r: 8}\n")
    assert value == {"a": {"r": 4, "x": [1]}, "b": {"r": 4, "x": [1]}, "c": {"r": 8, "x": [1]}}
    assert value["a"] is not value["b"]
    assert lines["c", "x"] == 3


def test_names_that_are_numbers_or_dates_are_texts(tmp_path: Path) -> None:
    assert read(tmp_path, "1: a\n1.5: b\n2024-01-31: c\n")[0] == {"1": "a", "1.5": "b", "2024-01-31": "c"}


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n"])
def test_an_empty_file_is_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == (None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", ':3: found duplicate key "a"; each key stands once'),
        ("a:\n  b: 1\n  b: 2\n", ':3: found duplicate key "b"; each key stands once'),
        ('a:\n  1: x\n  "1": y\n', ':3: a: found duplicate key "1"; each key stands once'),
        ("a:\n  true: x\n", ":2: a: `true` is no name; put it in quotes if it is one"),
        ("a: 1\nnull: x\n", ":2: `null` is no name; put it in quotes if it is one"),
        ("a:\n\tb: 1\n", ":2: not YAML: found character '\\t' that cannot start any token; indent with spaces, not with tabs"),
        ("a: 1\nb:\t2\n", ":2: not YAML: found character '\\t' that cannot start any token; write spaces, not tabs"),
        ("a:\n    b: 1\n   c: 2\n", ":3: not YAML: "),
        ("a: [1, 2\nb: 3\n", ":2: not YAML: expected ',' or ']', but got ':'; look for a bracket or quote that is not closed"),
        ('a: "b\n', ":2: not YAML: found unexpected end of stream; look for a bracket or quote"),
        ("a: b: c\n", ":1: not YAML: mapping values are not allowed here; a text that holds `: ` stands in quotes"),
        ("a: *b\n", ":1: not YAML: found undefined alias 'b'; a text that begins with `*` stands in quotes"),
        ("a: 1\n---\nb: 2\n", ":2: not YAML: but found another document; a study is one document, so remove the line `---`"),
        ("text: {{ title }}\n", ':1: text: braces that are not in quotes; a template is written `"{{ title }}"`, with'),
        ("text: {{ title }} and more\n", ':1: not YAML: '),
        ("a: 1\n? [b, c]\n: 2\n", ":2: braces that are not in quotes"),
        ("%YAML 1.1\n---\na: 1\n", ':1: a study is YAML 1.2; remove the line `"%YAML 1.1"`'),
        ("a: 1\0\n", ": not YAML: unacceptable character #x0000"),
        ("a:\n  b: !!python/tuple [1]\n", ":2: a.b: the tag `tag:yaml.org,2002:python/tuple` has no place in a study file"),
        ("a: !mine x\n", ":1: a: the tag `!mine` has no place in a study file; write the plain value"),
        ("a:\n  - !!binary aGk=\n", ":2: a.0: only texts, numbers, lists and mappings have a place in a study file, got "),
        ("a:\n  b: !!set {c}\n", ":2: a.b: only texts, numbers, lists and mappings"),
        ('a: "\\ud83d"\n', ":1: a: holds half of a surrogate pair (`\\ud...`), which is no character"),
        (f"a:\n  b: {'9' * 30}\n", ":2: a.b: a number of 30 digits; 18 are enough for anything"),
        (f"a: {'9' * 5000}\n", ": a value that cannot be read (Exceeds the limit (4300 digits)"),
        ("a: 2024-13-45\n", ": a value that cannot be read (month must be in 1..12); look at dates"),
        (f"a: {'[' * 2000}{']' * 2000}\n", ": a value that cannot be read (maximum recursion depth exceeded"),
        ("a: größe\n".encode("latin-1"), ": not UTF-8 (byte 5); save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), ": not UTF-8 (byte 0); save the file as UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SpecError) as told:
        read(tmp_path, text)
    assert str(told.value).startswith(f"{tmp_path / 'study.yaml'}{message}")
    assert "\n" not in str(told.value)


def test_aliases_that_multiply_are_cut_short(tmp_path: Path) -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefg", "bcdefgh", strict=True)]
    with pytest.raises(SpecError, match=r"study.yaml: holds more than 100,000 values; do aliases"):
        read(tmp_path, "\n".join(lines))


def test_a_data_file_is_not_read_as_a_study(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"study.yaml: is too large for a study; for a data file, `paretune init .*study.yaml`"):
        read(tmp_path, '{"title": "a"}\n' * 100_000)


def test_a_file_that_is_not_there_or_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gone.yaml: no such file; `paretune init DATA` writes a first study file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(SpecError, match=r": is a directory; name the study file in it"):
        read_yaml(tmp_path)
