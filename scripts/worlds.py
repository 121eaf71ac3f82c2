"""The text that the base of the built-in demo is pretrained on: made-up worlds, and Python's own documentation.

A document is a title and a few paragraphs about one thing (a town, a farm, a ship, a story ...), written by the grammar
in `worlds.txt`; half of the things come from a fixed pool and return in other words, half are met once. Many documents
end in `Question: ...` and `Answer: ...` about the thing, and some are such questions alone, so that the base knows the
form of an answer. Documentation is read with `ast`, nothing is imported. No car maker stands in any of it.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

from grammar import Grammar, Writer, pick, polish, read_grammar, shuffled

GRAMMAR_FILE = Path(__file__).with_name("worlds.txt")
POOL = 150
"""Things of each genre that return in several documents; the others are met once."""


def world_documents(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` documents of the made-up worlds, the same ones for the same seed."""
    grammar = read_grammar(GRAMMAR_FILE.read_text(encoding="utf-8"))
    random = Random(f"worlds-{seed}")
    for _ in range(count):
        genre = pick(grammar["genres"], random)
        known = random.random() < 0.5
        identity = f"{genre}-{int(random.random() * POOL)}" if known else f"{genre}-{random.random()}"
        facts = _facts(grammar, genre, Random(identity))
        yield _document(Writer(grammar, facts, random), genre, only_questions=known and random.random() < 0.2)


def documentation() -> list[str]:
    """Texts of the help topics and of the docstrings of the standard library of this Python, in order of file name."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library).parts
        if not {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(inside):
            texts += _docstrings(path)
    return list(dict.fromkeys(texts))


def _facts(grammar: Grammar, genre: str, random: Random) -> dict[str, str]:
    writer = Writer(grammar, {}, random)
    pairs = (line.split(" = ", 1) for line in grammar[f"{genre}.facts"])
    return {name: writer.write(template) for name, template in pairs}


def _document(writer: Writer, genre: str, *, only_questions: bool) -> str:
    grammar, random = writer.grammar, writer.random
    questions = shuffled(grammar[f"{genre}.qa"], random)
    if only_questions:
        return _answers(writer, questions[: 2 + int(random.random() * 4)])
    body = [line for line in grammar[f"{genre}.body"] if random.random() < 0.75] or list(grammar[f"{genre}.body"])
    head, rest = body[:2], shuffled(body[2:], random)
    paragraphs, sentences = [], head + rest
    while sentences:
        size = 2 + int(random.random() * 4)
        paragraphs.append(polish(" ".join(writer.write(line) for line in sentences[:size])))
        sentences = sentences[size:]
    parts = [polish(writer.write(f"<{genre}.title>")), *paragraphs]
    text = "\n\n".join(parts)
    answerable = [line for line in questions if writer.write(line.split(" = ", 1)[1]) in text]
    if answerable and random.random() < 0.5:
        text += "\n\n" + _answers(writer, answerable[: 1 + int(random.random() * 3)])
    return text


def _answers(writer: Writer, questions: list[str]) -> str:
    pairs = [writer.write(line).split(" = ", 1) for line in questions]
    return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    if path.name == "topics.py":
        return [text for text in _string_values(tree) if len(text) > 200]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text and len(text) > 80]


def _string_values(tree: ast.AST) -> list[str]:
    dicts = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    values = (value for node in dicts for value in node.values)
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
