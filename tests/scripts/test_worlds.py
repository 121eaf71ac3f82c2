"""The pretraining text of the built-in base: repeatable, answerable, and nothing of what the demo fine-tunes on."""

import re

import pytest
import worlds
from grammar import read_grammar

from paretune.data import newsroom
from paretune.data.leakage import NGRAM, words_of


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(worlds.world_documents(1500, seed=3))


def test_documents_repeat_with_their_seed(documents: list[str]) -> None:
    assert list(worlds.world_documents(20, seed=3)) == documents[:20]
    assert not set(worlds.world_documents(20, seed=4)) & set(documents)


def test_templates_name_only_what_exists(documents: list[str]) -> None:
    assert not [text for text in documents if re.search(r"[<>{}|]|  | [.,;:]", text)]
    grammar = read_grammar(worlds.GRAMMAR_FILE.read_text(encoding="utf-8"))
    for genre in set(grammar["genres"]):
        facts = {line.split(" = ")[0] for line in grammar[f"{genre}.facts"]}
        for part in ("title", "body", "qa"):
            slots = set(re.findall(r"<([^#>]+)>", "".join(grammar[f"{genre}.{part}"])))
            assert slots <= facts | set(grammar), (genre, part)


def test_questions_of_a_document_are_answered_in_it(documents: list[str]) -> None:
    asked = [text for text in documents if "Question: " in text and not text.startswith("Question: ")]
    assert len(asked) > 300
    for text in asked:
        body, *pairs = text.split("\n\nQuestion: ")
        for pair in pairs:
            assert pair.split("\nAnswer: ")[1].lower() in body.lower()


def test_no_car_maker_stands_in_it(documents: list[str]) -> None:
    assert not [text for text in documents if re.search(r"\b(car|cars|vehicles?|automobiles?|Orvane)\b", text)]


def test_it_shares_no_run_of_words_with_the_articles(documents: list[str]) -> None:
    articles = [f"{article['title']}\n{article['summary']}\n{article['content']}" for article in newsroom.articles()[:600]]
    assert not _grams(articles) & _grams(documents)


def test_documentation_is_text_that_ships_with_python() -> None:
    texts = worlds.documentation()
    assert len(texts) == len(set(texts)) > 2000
    assert any("The standard type hierarchy" in text for text in texts)
    assert any(text.startswith("Random variable generators.") for text in texts)


def _grams(texts: list[str]) -> set[tuple[str, ...]]:
    words = [words_of(text) for text in texts]
    return {tuple(run[start : start + NGRAM]) for run in words for start in range(len(run) - NGRAM + 1)}
