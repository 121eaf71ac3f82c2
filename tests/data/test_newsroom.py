"""The built-in data set as it ships: golden items, and the fields that studies name. What writes it: `tests/scripts`."""

import hashlib
import json

from paretune.data import newsroom

FIRST_ARTICLE = "cd8901896a3880e5"
FIRST_QUESTION = "173f78217c3388fe"


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def test_the_first_article_and_question_are_golden() -> None:
    assert digest(newsroom.articles()[0]) == FIRST_ARTICLE
    assert digest(newsroom.questions()[0]) == FIRST_QUESTION


def test_articles_have_their_fields_and_unique_titles() -> None:
    articles = newsroom.articles()
    assert len(articles) == len({article["title"] for article in articles}) == 1200
    assert all(list(article) == ["id", "title", "summary", "tags", "type", "content"] for article in articles)


def test_questions_are_numbered_and_half_of_them_have_options() -> None:
    questions = newsroom.questions()
    assert [question["id"] for question in questions] == list(range(1, 241))
    assert sum("options" in question for question in questions) == 120
