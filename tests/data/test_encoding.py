import pytest

from paretune.data.cleaning import has_control_characters, is_damaged, repaired

DAMAGED = [
    ("disrupt a person\u00e2\u20ac\u2122s thoughts", "disrupt a person\u2019s thoughts"),
    ("caf\u00c3\u00a9 au lait", "caf\u00e9 au lait"),
    ("the \u00e2\u20ac\u0153talk\u00e2\u20ac\u009d", "the \u201ctalk\u201d"),
    ("schizophrenia \x96 they", "schizophrenia \u2013 they"),
    ("disrupt a personaTMs thoughts", "disrupt a person's thoughts"),
    ("\ud83d\ude00 halves", "\U0001f600 halves"),
]
WHOLE = [
    "plain words",
    "\u201cquotes\u201d, it\u2019s \u2013 caf\u00e9, na\u00efve, 20 \u20ac, BMW\u2122, \ufb01ne, \uff21",
    "\u4e2d\u6587, \u0440\u0443\u0441\u0441\u043a\u0438\u0439, \u0939\u093f\u0928\u094d\u0926\u0940, \U0001f600",
    "&amp; <b>stays</b>\r\n\ttoo",
    "a CaTMan, aTMs and ATMs",
]


@pytest.mark.parametrize(("text", "expected"), DAMAGED)
def test_damage_is_seen_and_repaired(text: str, expected: str) -> None:
    assert is_damaged(text)
    assert repaired(f"first\nline {text} after") == f"first\nline {expected} after"
    assert not is_damaged(expected)


@pytest.mark.parametrize("text", WHOLE)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert not is_damaged(text)
    assert repaired(text) is text


def test_what_is_lost_stays_damaged() -> None:
    assert is_damaged(repaired("it\ufffds gone"))


def test_control_characters_are_taken_out() -> None:
    assert has_control_characters("bell\x07")
    assert not has_control_characters("tab\tand\r\n")
    assert repaired("bell\x07 and \ufeffmark") == "bell and mark"


def test_many_accents_in_a_text_hide_no_damage() -> None:
    text = "\u00e9t\u00e9 \u00e0 la plage, " * 200 + "\u00c3\u00a9t\u00c3\u00a9"
    assert is_damaged(text)
    assert repaired(text).endswith("\u00e9t\u00e9")
