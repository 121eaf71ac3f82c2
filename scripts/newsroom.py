"""Write the built-in data set: press releases of Orvane, a car maker that does not exist, and questions on its facts.

    python scripts/newsroom.py --out src/paretune/assets/newsroom

The facts (`newsroom_world.txt`: which model is built where, what powers a plant, what a programme recycles) are the same
in every article of every seed; the articles (`newsroom_articles.txt`) tell them again and again in other words, between
news that is about nothing else. A question is answered by facts that stand in many articles, so that a model can learn the
answer from the training split alone, and no question stands in an article. People appear by their role, never by a name.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from grammar import Grammar, Writer, pick, polish, read_grammar, shuffled

DIFFICULTIES = ("easy", "medium", "hard")
PER_CELL = 40
"""Questions of each kind and difficulty."""
WORDS = (80, 300)
"""Fewest and most words of an article's content."""

# Relations that the articles tell twice as often; the easy questions ask for them.
_FREQUENT = ("model.body", "model.market", "model.plant", "plant.energy", "plant.part", "technology.purpose")
_FREQUENT += ("programme.material", "team.series")
_FOCUS = {"Plant": "plant", "Sustainability": "programme", "Technology": "technology", "Research": "technology"}
_FOCUS |= {"Motorsport": "team", "Finance": "plant"}
_YEARS = (2024, 6)
"""First year of the articles, and how many."""


@dataclass(frozen=True)
class Fact:
    relation: str
    """`kind.property`, such as `plant.energy`: the name of its rules in the grammar."""
    name: str
    value: str

    @property
    def frequent(self) -> bool:
        return self.relation in _FREQUENT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    # Without the time in its header the file is the same whenever it is written.
    (out / "articles.jsonl.gz").write_bytes(gzip.compress(json_lines(articles()), mtime=0))
    (out / "questions.jsonl").write_bytes(json_lines(questions()))


def json_lines(rows: Iterable[dict[str, object]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def articles(count: int = 1200, seed: int = 0) -> list[dict[str, object]]:
    """Press releases with `id`, `title` (unique), `summary`, `tags`, `type` and `content` of 80 to 300 words."""
    random = Random(f"newsroom-{seed}")
    titles: set[str] = set()
    found = []
    for number in range(1, count + 1):
        article = _article(random)
        while article["title"] in titles:
            article = _article(random)
        titles.add(str(article["title"]))
        found.append({"id": f"orvane-{number:04}", **article})
    return found


def questions(seed: int = 0) -> list[dict[str, object]]:
    """Kinds and difficulties crossed, PER_CELL each, the right options evenly spread.

    Of the four options of an easy question one stands in the articles, of a medium one two, of a hard one all. Easy questions
    ask for facts that are told often, medium ones for facts that are told seldom, hard ones go back from value to subject.
    """
    random = Random(f"newsroom-questions-{seed}")
    found: list[dict[str, object]] = []
    for difficulty in DIFFICULTIES:
        facts = shuffled([fact for fact in world_facts() if _asked(fact, difficulty)], random)[:PER_CELL]
        positions = iter(shuffled([*range(4)] * (PER_CELL // 4), random))
        for category in ("multiple_choice", "factual"):
            for fact in facts:
                question: dict[str, object] = {"id": len(found) + 1, "category": category}
                question |= _question(fact, difficulty, len(found))
                if category == "multiple_choice":
                    wrong = _wrong_options(fact, difficulty, random)
                    index = next(positions)
                    question["options"] = [*wrong[:index], question["answer"], *wrong[index:]]
                    question["answer_index"] = index
                found.append(question | {"difficulty": difficulty})
    return found


@cache
def world_facts() -> tuple[Fact, ...]:
    """Every fact of the world, in the order of `newsroom_world.txt`; the same for all seeds."""
    rules = _grammar("newsroom_world.txt")
    random = Random("orvane")
    found = []
    for relation in _relations():
        names = rules[relation.split(".")[0] + ".name"]
        found += [Fact(relation, name, value) for name, value in zip(names, shuffled(rules[relation], random), strict=False)]
    return tuple(found)


@cache
def _grammar(file: str) -> Grammar:
    return read_grammar(Path(__file__).with_name(file).read_text(encoding="utf-8"))


@cache
def _relations() -> tuple[str, ...]:
    return tuple(rule for rule in _grammar("newsroom_world.txt") if not rule.startswith("not.") and not rule.endswith(".name"))


def _asked(fact: Fact, difficulty: str) -> bool:
    if difficulty == "hard":
        return f"back.{fact.relation}" in _grammar("newsroom_articles.txt")
    return fact.frequent == (difficulty == "easy")


def _question(fact: Fact, difficulty: str, number: int) -> dict[str, object]:
    rules = _grammar("newsroom_articles.txt")
    hard = difficulty == "hard"
    forms = rules[f"{'back' if hard else 'ask'}.{fact.relation}"]
    words = Writer(rules, {"name": fact.name, "value": fact.value}, Random(0)).write(forms[number % len(forms)])
    return {"question": words, "answer": fact.name if hard else fact.value}


def _wrong_options(fact: Fact, difficulty: str, random: Random) -> list[str]:
    siblings = [other for other in world_facts() if other.relation == fact.relation and other.value != fact.value]
    if difficulty == "hard":
        return [other.name for other in shuffled(siblings, random)[:3]]
    told = [other.value for other in shuffled(siblings, random)][: DIFFICULTIES.index(difficulty)]
    untold = shuffled(_grammar("newsroom_world.txt")[f"not.{fact.relation}"], random)
    return shuffled([*told, *untold[: 3 - len(told)]], random)


def _article(random: Random) -> dict[str, object]:
    rules = _grammar("newsroom_articles.txt")
    kind = pick(rules["types"], random)
    group = _FOCUS.get(kind, "model")
    subject = pick(_grammar("newsroom_world.txt")[f"{group}.name"], random)
    slots = _period(kind, subject, random)
    writer = Writer(rules, slots, random)
    told = _told_facts(subject, random)
    paragraphs, mentioned = _content(writer, kind, told)
    return {
        "title": polish(writer.write(f"<title.{kind}>")).strip(),
        "summary": polish(f"{writer.write(f'<lead.{kind}>')} {_say(writer, next(told))}"),
        "tags": [kind, "Orvane" if kind == "Finance" else subject, *mentioned],
        "type": kind,
        "content": "\n\n".join(paragraphs),
    }


def _period(kind: str, subject: str, random: Random) -> dict[str, str]:
    """Date and figures; articles of one type on one subject and quarter have the same figures."""
    year, month = _YEARS[0] + int(random.random() * _YEARS[1]), int(random.random() * 12)
    figures = Random(f"orvane-{kind}-{subject}-{year}-{month // 3}")
    rules = _grammar("newsroom_articles.txt")
    result, outcome = pick(rules["result"], figures).split(" = ")
    return {
        "subject": subject,
        "result": result,
        "outcome": outcome,
        "direction": pick(("up", "down"), figures),
        "fault": pick(rules["part"], figures),
        "year": str(year),
        "month": rules["month"][month],
        "day": str(1 + int(random.random() * 28)),
        "quarter": ("first", "second", "third", "fourth")[month // 3],
        "units": f"{1200 + int(figures.random() * 38000):,}",
        "figure": f"{110 + int(figures.random() * 8700):,}",
        "money": str(14 + int(figures.random() * 880)),
        "growth": f"{1 + int(figures.random() * 18)}.{int(figures.random() * 10)}",
        "margin": f"{2 + int(figures.random() * 11)}.{int(figures.random() * 10)}",
    }


def _told_facts(subject: str, random: Random) -> Iterator[Fact]:
    """Facts in the order of telling: a third about the subject, frequent relations twice as likely, each once."""
    facts = list(world_facts())
    while facts:
        own = [fact for fact in facts if fact.name == subject]
        among = own if own and random.random() < 1 / 3 else facts
        fact = pick(among, random)
        if fact.frequent or random.random() < 0.5:
            facts.remove(fact)
            yield fact


def _say(writer: Writer, fact: Fact) -> str:
    facts = {**writer.facts, "name": fact.name, "value": fact.value}
    return Writer(writer.grammar, facts, writer.random, writer.used).write(f"<say.{fact.relation}>")


def _content(writer: Writer, kind: str, told: Iterator[Fact]) -> tuple[list[str], list[str]]:
    """Paragraphs of at least the drawn number of words, and up to two names that they mention."""
    random = writer.random
    target = WORDS[0] + int(180 * random.random() ** 3)
    sentences = [polish(writer.write(f"<dateline> <lead.{kind}>"))]
    mentioned: list[str] = []
    while sum(len(sentence.split()) for sentence in sentences) < target:
        draw = random.random()
        if draw < 0.55:
            fact = next(told)
            mentioned.append(fact.name)
            sentences.append(polish(_say(writer, fact)))
        else:
            form = f"<topic.{kind}>" if draw < 0.7 else "<quote>" if draw < 0.8 else "<general>"
            sentences.append(polish(writer.write(form)))
    if random.random() < 0.3:
        sentences.append(polish(writer.write("<outlook>")))
    names = [name for name in dict.fromkeys(mentioned) if name != writer.facts["subject"]]
    return _paragraphs(sentences, random), names[:2]


def _paragraphs(sentences: list[str], random: Random) -> list[str]:
    paragraphs = []
    while sentences:
        size = 2 + int(random.random() * 3)
        paragraphs.append(" ".join(sentences[:size]))
        sentences = sentences[size:]
    return paragraphs


if __name__ == "__main__":
    main()
