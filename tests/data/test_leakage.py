import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from paretune.data.leakage import NEAR, Near, Pair, block_message, content_digest, find_item_pairs, find_pairs
from paretune.data.ngrams import COMMON, MOSTLY_COMMON
from paretune.data.words import words_of

_DRAW = random.Random(0)
_VOCABULARY = [f"word{number}" for number in range(2000)]


def article(words: int = 120, draw: random.Random = _DRAW) -> str:
    return " ".join(f"{' '.join(draw.choices(_VOCABULARY, k=10)).capitalize()}." for _ in range(words // 10))


def splits(
    train: dict[str, str], validation: dict[str, str] | None = None, test: dict[str, str] | None = None
) -> dict[str, dict[str, str]]:
    return {"train": train, "validation": validation or {}, "test": test or {}}


def brief(pairs: list[Pair]) -> set[tuple[str, str, str, str, str]]:
    return {(pair.kind, pair.split, pair.document, pair.other, pair.other_document) for pair in pairs}


def test_exact_and_normalised_duplicates_are_found_between_all_splits() -> None:
    one, two, three = article(), article(), "A short one, of ten words: it's here twice."
    found = find_pairs(
        splits(
            {"a": one, "b": two, "c": article()},
            {"d": one, "e": three},
            {"f": two.upper().replace(".", ""), "g": "a short one of ten words its here twice", "h": article()},
        )
    )
    assert brief(found) == {
        ("exact", "train", "a", "validation", "d"),
        ("normalised", "train", "b", "test", "f"),
        ("normalised", "validation", "e", "test", "g"),
    }
    assert all(pair.coverage == 1 for pair in found)
    assert found[0].excerpt == one[:77] + "..."


def test_texts_without_words_are_compared_as_they_are() -> None:
    assert brief(find_pairs(splits({"a": "!!!", "b": "\u2026"}, {"c": " !!! "}, {"d": "???"}))) == {
        ("normalised", "train", "a", "validation", "c")
    }


def coverage_by_definition(texts: dict[str, dict[str, str]], near: Sequence[Near]) -> dict[tuple[str, str], float]:
    """The definition of the docstring with sets of tuples of words; documents with the same words do not occur here."""
    words = {name: words_of(text) for documents in texts.values() for name, text in documents.items()}
    grams = {
        size: {name: {tuple(each[n : n + size]) for n in range(len(each) - size + 1)} for name, each in words.items()}
        for size in {way.ngram for way in near}
    }
    times = {size: Counter(gram for each in of_size.values() for gram in each) for size, of_size in grams.items()}
    found = {}
    for split, later in (("train", ("validation", "test")), ("validation", ("test",))):
        for other in (name for part in later for name in texts[part]):
            way = next(way for way in near if len(words[other]) < way.below)
            of_size, own = grams[way.ngram], grams[way.ngram][other]
            rare = {gram for gram in own if times[way.ngram][gram] <= COMMON}
            counted = rare if len(own) - len(rare) <= MOSTLY_COMMON * len(own) else own
            for document in texts[split]:
                share = len(counted & of_size[document]) / len(counted) if counted else 0.0
                if share >= way.threshold:
                    found[document, other] = share
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "near", [NEAR, (Near(math.inf, 13, 0.3),), (Near(60, 8, 0.5), Near(120, 13, 0.7), Near(math.inf, 8, 0.4))]
)
def test_near_duplicates_are_those_of_the_definition(near: Sequence[Near], seed: int) -> None:
    draw = random.Random(seed)
    notice = article(40, draw)
    sources = [article(draw.choice([20, 60, 120]), draw) for _ in range(draw.choice([3, 10, 30]))]
    documents = []
    for number in range(150):
        words = draw.choice(sources).split()
        begin = draw.randrange(len(words) // 2)
        taken = " ".join(words[begin : begin + draw.randint(20, 120)])
        end = notice if draw.random() < 0.5 else ""
        documents.append(f"{taken} {number} {article(draw.choice([0, 20]), draw)} {end}")
    texts = {
        split: {f"{split} {number}": text for number, text in enumerate(documents[begin::3])}
        for begin, split in enumerate(("train", "validation", "test"))
    }
    expected = coverage_by_definition(texts, near)
    found = find_pairs(texts, near=near)
    assert expected
    assert {pair.kind for pair in found} == {"near"}
    assert all(expected[pair.document, pair.other_document] == pytest.approx(pair.coverage, rel=1e-12) for pair in found)
    assert {(pair.document, pair.other) for pair in found} == {(first, second.split()[0]) for first, second in expected}
    assert {(pair.split, pair.other_document) for pair in found} == {(first.split()[0], second) for first, second in expected}


@pytest.mark.parametrize("words", [30, 45, 60, 90, 140])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_short_text_of_which_two_thirds_stand_elsewhere_is_found(words: int, parts: int) -> None:
    own = article(200).replace(".", "").lower().split()[:words]
    size = round(words * 2 / 3 / parts)
    runs = [own[begin : begin + size] for begin in (0, words - size)[:parts]]
    copy = " ".join([article(50), *(" ".join(run) + " " + article(30) for run in runs)])
    texts = splits({"a": copy, "b": article()}, {}, {"c": " ".join(own), "d": article(words // 10 * 10)})
    assert brief(find_pairs(texts)) == {("near", "train", "a", "test", "c")}


def test_documents_of_one_split_are_compared_where_that_is_asked() -> None:
    text, other = article(), article()
    texts = splits(
        {"a": article(), "e": article()}, {"b": text, "c": text, "d": text}, {"f": other, "g": f"{other} {article()}"}
    )
    assert find_pairs(texts) == []
    found = brief(find_pairs(texts, within=True))
    assert {pair for pair in found if pair[0] == "exact"} == {
        ("exact", "validation", "b", "validation", "c"),
        ("exact", "validation", "c", "validation", "d"),
    }
    assert ("near", "test", "g", "test", "f") in found


def test_boilerplate_is_no_duplicate() -> None:
    notice = article(200)
    documents = {str(number): f"{article(100)} {notice}" for number in range(30)}
    side = ("train", "validation", "test")
    texts = {split: {name: documents[name] for name in list(documents)[begin::3]} for begin, split in enumerate(side)}
    assert find_pairs(texts) == []
    few = {split: dict(list(part.items())[:2]) for split, part in texts.items()}
    assert len(brief(find_pairs(few))) >= 4


def test_many_near_copies_are_not_taken_for_boilerplate() -> None:
    text = article(300)
    copies = {str(number): f"{text} Number {number}." for number in range(60)}
    names = list(copies)
    texts = splits({name: copies[name] for name in names[:40]}, {}, {name: copies[name] for name in names[40:]})
    found = find_pairs(texts)
    assert {pair.document for pair in found} == set(names[:40])
    assert {pair.other_document for pair in found} == set(names[40:])


def test_a_near_copy_is_found_through_a_training_document_that_is_held_out_too() -> None:
    text = article(200)
    texts = splits({"a": text, "x": article()}, {"b": text}, {"c": text + " " + article(40)})
    assert {("near", "train", "a", "test", "c"), ("near", "validation", "b", "test", "c")} <= brief(find_pairs(texts))


def test_pairs_grow_with_the_copies_and_not_with_their_square() -> None:
    texts = splits({f"a{n}": "the very same text" for n in range(300)}, {}, {f"b{n}": "the very same text" for n in range(200)})
    found = find_pairs(texts)
    assert len(found) == 300
    assert len({pair.document for pair in found}) == 300
    assert len({pair.other_document for pair in found}) == 200


def test_one_field_in_common_is_found_under_another_title() -> None:
    content = "Here you can see the webcast of the keynote at the mobility show this year."
    texts = splits({"a": f"{article(40)}\n\n{content}", "b": article()}, {}, {"c": f"{article(40)}\n\n{content}"})
    digest = content_digest(content)
    assert digest is not None
    assert digest == content_digest(content.upper())
    assert find_pairs(texts) == []
    (pair,) = find_pairs(texts, {"train": {"a": [digest], "b": [1]}, "test": {"c": [digest, 2]}})
    assert (pair.kind, pair.document, pair.other_document) == ("field", "a", "c")
    assert pair.excerpt == " ".join(words_of(content))
    assert 0 < pair.coverage < 0.1


def test_a_short_field_is_nobodys_content() -> None:
    assert content_digest("one two three four five six seven eight nine ten eleven twelve") is None


QUESTION = "Who designed the first art car of the company in 1975?"
ITEM = f"{QUESTION} Alexander Calder"


@pytest.mark.parametrize(
    ("passage", "kind"),
    [
        (f"Quiz. {ITEM} wins.", "exact"),
        ("quiz: WHO DESIGNED the first art-car, of the company, in 1975 - alexander calder", "normalised"),
        (f"Q: {QUESTION} (a) Roy Lichtenstein (b) Alexander Calder", "exact"),
        ("Nobody asked who designed the first art car of the company in 1974.", "near"),
        ("The first art car of the company was designed in 1975 by Alexander Calder.", None),
        ("Alexander Calder", None),
    ],
)
def test_a_question_that_stands_verbatim_is_leakage_and_one_that_can_be_answered_is_not(passage: str, kind: str | None) -> None:
    training = {"x": article(), "a": f"{article(30)} {passage} {article(30)}"}
    found = find_item_pairs(training, {"quiz": ["What else is there to know?", ITEM]})
    assert brief(found) == ({(kind, "train", "a", "quiz", "2")} if kind else set())


def test_short_items_count_as_one_run_and_very_short_ones_not_at_all() -> None:
    training = {"a": "Somebody asked: who owns the red mill? It is Ann. What is it? Nobody knows."}
    found = find_item_pairs(
        training, {"quiz": ["who owns the red mill? It is Bob.", "What is it? Gold", "the mill red owns who"]}
    )
    assert brief(found) == {("exact", "train", "a", "quiz", "1")}


def test_no_items_and_no_documents_are_no_pairs() -> None:
    assert find_item_pairs({"a": article()}, {}) == []
    assert find_item_pairs({"a": article()}, {"quiz": []}) == []
    assert find_pairs(splits({}, {}, {})) == []


def test_the_message_counts_shows_and_gives_the_ways_out() -> None:
    pairs = [Pair("near", "train", f"a{n}", "test", f"b{n}", 0.75, "some words") for n in range(7)]
    message = block_message([*pairs, Pair("exact", "train", "a0", "quiz", "3", 1.0, "who?")], Path("pairs.csv"), shown=2)
    assert "1 between `train` and `quiz`, 7 between `train` and `test`" in message
    assert "  near: test `b0` in train `a0` (75% of it): some words" in message
    assert "... and 6 more" in message
    assert "`leakage: remove` to leave 7 document(s)" in message
    assert "`leakage: allow`" in message
