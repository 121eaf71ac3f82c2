import pytest
from rouge_score import tokenize

from paretune.data.words import words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don\u2019t STOP\u00a0now, 24-hour\tStra\u00dfe!", ["don", "t", "stop", "now", "24", "hour", "strasse"]),
        ("\ufb01ne auto\u00admobil zero\u200bwidth _emphasis_", ["fine", "automobil", "zerowidth", "emphasis"]),
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("...", []),
        ("लड़का घर गया।", ["लड\u093cका", "घर", "गया"]),  # combining vowel signs, a nukta, a danda
        ("நான் போனேன்", ["நான்", "போனேன்"]),
        ("আমি খাই", ["আমি", "খাই"]),
        ("العَرَبِيَّة لغة", ["العَرَبِيَّة", "لغة"]),
        ("\u0645\u06cc\u200c\u0634\u0648\u062f", ["\u0645\u06cc\u0634\u0648\u062f"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("自動車、BMW。", ["自", "動", "車", "bmw"]),
        ("コーヒー・です", ["コ", "ー", "ヒ", "ー", "で", "す"]),
        ("ที่นี่ 25 ๒๕", ["ที่", "นี่", "25", "๒๕"]),  # a consonant with its vowel and tone signs is one character
        ("ພາສາ", ["ພ", "າ", "ສ", "າ"]),
        ("ភាសា", ["ភា", "សា"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("བོད་སྐད", ["བོད", "སྐད"]),
    ],
)
def test_words_are_compared_without_case_punctuation_and_presentation(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("text", ["The car's new_engine: 3.14 l, 1,000 rpm; C++!", "", "a\x00b\x1fc", "x" * 50 + "-Y"])
def test_words_of_ascii_are_those_of_rouge_score(text: str) -> None:
    assert words_of(text) == tokenize.tokenize(text, None)
