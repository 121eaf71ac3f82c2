"""What writes the built-in data set: deterministic, consistent, balanced, and no article stands in another."""

import hashlib
import json
import re
from collections import Counter
from functools import cache

import newsroom
import pytest

from paretune.data import newsroom as shipped
from paretune.data.leakage import NGRAM, find_item_pairs, find_pairs, words_of

FIRST_ARTICLE = "cd8901896a3880e5"
FIRST_QUESTION = "173f78217c3388fe"
LEAST_ARTICLES = 20


@cache
def articles() -> list[dict[str, object]]:
    return newsroom.articles()


def contents() -> list[str]:
    return [str(article["content"]) for article in articles()]


@cache
def questions() -> list[dict[str, object]]:
    return newsroom.questions()


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def test_the_first_article_and_question_are_golden() -> None:
    assert digest(articles()[0]) == FIRST_ARTICLE
    assert digest(questions()[0]) == FIRST_QUESTION


def test_the_package_ships_what_is_written() -> None:
    assert shipped.articles() == articles()
    assert shipped.questions() == questions()
    assert [list(question) for question in shipped.questions()] == [list(question) for question in questions()]


def test_the_same_seed_gives_the_same_and_another_seed_other_articles() -> None:
    assert newsroom.articles(30) == articles()[:30]
    assert not {article["title"] for article in newsroom.articles(30, seed=1)} & {
        article["title"] for article in articles()[:30]
    }
    assert newsroom.questions() == newsroom.questions() != newsroom.questions(seed=1)


def test_articles_have_their_fields_unique_titles_and_80_to_300_words() -> None:
    assert len(articles()) == 1200
    assert len({article["title"] for article in articles()}) == len({article["id"] for article in articles()}) == 1200
    assert len(set(contents())) == 1200
    for article in articles():
        assert list(article) == ["id", "title", "summary", "tags", "type", "content"]
        assert 80 <= len(str(article["content"]).split()) <= 300
        assert article["tags"][0] == article["type"]
        assert article["summary"] not in article["content"]
    assert min(Counter(article["type"] for article in articles()).values()) > 60


def test_text_is_clean() -> None:
    for article in articles():
        text = f"{article['title']}\n{article['summary']}\n{article['content']}"
        assert not re.search(r"[<>{}|]|  | [.,;:]|\bthe the\b|\ba [aeiou]|(^|[.!?] |\n)[a-z]", text), text


@pytest.mark.parametrize("fact", newsroom.world_facts(), ids=lambda fact: f"{fact.relation}-{fact.name}")
def test_every_fact_stands_in_many_articles(fact: newsroom.Fact) -> None:
    sentence = re.compile(rf"\b{fact.name}\b[^.!?]*\b{fact.value}\b|\b{fact.value}\b[^.!?]*\b{fact.name}\b")
    assert sum(bool(sentence.search(content)) for content in contents()) >= LEAST_ARTICLES


@pytest.mark.parametrize("relation", ["model.market", "plant.energy", "team.series", "model.range", "programme.partner"])
def test_no_article_says_otherwise(relation: str) -> None:
    facts = [fact for fact in newsroom.world_facts() if fact.relation == relation]
    for fact in facts:
        others = "|".join(other.value for other in facts if other.value != fact.value)
        # One sentence tells one fact, so that another value beside the name would be another fact.
        false = re.compile(rf"\b{fact.name}\b[^.!?\n]*\b({others})\b")
        assert not [match[0] for content in contents() if (match := false.search(content))]


def test_figures_agree_between_articles_on_the_same_quarter() -> None:
    delivered: dict[tuple[str, ...], set[str]] = {}
    sentence = re.compile(r"delivered ([\d,]+) (?:cars of the )?(\w+)(?: cars)? in the (\w+) quarter of (\d+)")
    for seed in range(3):
        for article in newsroom.articles(800, seed=seed):
            for units, *period in sentence.findall(str(article["content"])):
                delivered.setdefault(tuple(period), set()).add(units)
    assert len(delivered) > 20
    assert all(len(units) == 1 for units in delivered.values())


def test_kind_difficulty_and_position_of_the_answer_are_balanced() -> None:
    cells = Counter((question["category"], question["difficulty"]) for question in questions())
    assert cells == {(kind, level): 40 for kind in ("multiple_choice", "factual") for level in newsroom.DIFFICULTIES}
    choices = [question for question in questions() if question["category"] == "multiple_choice"]
    positions = Counter((question["difficulty"], question["answer_index"]) for question in choices)
    assert positions == {(level, index): 10 for level in newsroom.DIFFICULTIES for index in range(4)}
    assert [question["id"] for question in questions()] == list(range(1, 241))
    assert len({question["question"] for question in questions() if question["category"] == "factual"}) == 120


def test_options_are_four_and_one_of_them_is_right() -> None:
    told = {(fact.name, fact.value) for fact in newsroom.world_facts()}
    for question in questions():
        options = question.get("options", [])
        assert ("options" in question) == (question["category"] == "multiple_choice")
        if options:
            assert len(set(options)) == 4
            assert options[question["answer_index"]] == question["answer"]
        text, hard = str(question["question"]), question["difficulty"] == "hard"
        for option in options or [question["answer"]]:
            true = [pair for pair in told if option == pair[not hard] and re.search(rf"\b{pair[hard]}\b", text)]
            assert bool(true) == (option == question["answer"]), question


def test_one_two_or_all_options_stand_in_the_articles() -> None:
    text = "\n".join(f"{article['title']} {article['summary']} {article['content']}" for article in articles())
    for question in questions():
        if question["category"] == "multiple_choice":
            told = [option for option in question["options"] if re.search(rf"\b{option}\b", text)]
            assert len(told) == {"easy": 1, "medium": 2, "hard": 4}[question["difficulty"]], question
            assert question["answer"] in told


def test_no_question_stands_in_an_article() -> None:
    training = {str(article["id"]): str(article["content"]) for article in articles()}
    items = [f"{question['question']} {question['answer']}" for question in questions()]
    assert find_item_pairs(training, {"qa": items}) == []


def test_no_article_is_a_near_duplicate_of_another() -> None:
    grams = [_grams(f"{article['title']}\n\n{article['content']}") for article in articles()]
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, distinct in enumerate(grams):
        for gram in distinct:
            holders.setdefault(gram, []).append(number)
    for number, distinct in enumerate(grams):
        shared = Counter(other for gram in distinct for other in holders[gram] if other != number)
        assert max(shared.values(), default=0) < 0.2 * len(distinct), articles()[number]["id"]


def test_the_leakage_check_finds_nothing_between_splits() -> None:
    texts = {str(article["id"]): f"{article['title']}\n\n{article['content']}" for article in articles()}
    names = list(texts)
    sides = {"train": names[:960], "validation": names[960:1080], "test": names[1080:]}
    assert find_pairs({side: {name: texts[name] for name in chosen} for side, chosen in sides.items()}) == []


def _grams(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)}
