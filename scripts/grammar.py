"""A small probabilistic grammar: templates in a text file, expanded at random from a seed.

The built-in data set and the text that its base model is pretrained on are both written by such grammars, so that
neither needs a download. A file holds rules, `[name]` and one alternative a line; an alternative may hold

    {a|b|c}        one of the parts, which may be empty or nest
    <name>         a fact given by the caller, else an alternative of the rule of that name
    <#10-90:5>     a number from 10 to 90 in steps of 5; `<#1000-9000,>` with a comma at the thousands

Only `random.Random.random` is drawn from: its sequence is the one that Python promises to keep between versions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import TypeVar

T = TypeVar("T")
Grammar = Mapping[str, tuple[str, ...]]
Node = tuple[str, object]

_TOKEN = re.compile(r"[{}|]|<[^<>]+>|[^{}|<]+")
_NUMBER = re.compile(r"#(\d+)-(\d+)(?::(\d+))?(,?)")
_SENTENCE_START = re.compile(r'((?:^|[.!?]"?\s+|\n)"?|: ")([a-z])')
_LOOSE_SPACE = re.compile(r" +(?=[ .,;:?!])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")


@dataclass(frozen=True)
class Writer:
    """What one document is written with; `used` keeps a rule from giving the same alternative twice."""

    grammar: Grammar
    facts: Mapping[str, str]
    random: Random
    used: dict[str, set[int]] = field(default_factory=dict)

    def write(self, template: str) -> str:
        """Expand a template; raise `KeyError` on a name that is neither a fact nor a rule."""
        return "".join(self._render(node) for node in _parse(template))

    def _render(self, node: Node) -> str:
        kind, value = node
        if kind == "text":
            return str(value)
        if kind == "choice":
            return "".join(self._render(inner) for inner in pick(value, self.random))
        if kind == "number":
            low, high, step, comma = value
            number = low + step * int(self.random.random() * ((high - low) // step + 1))
            return f"{number:,}" if comma else str(number)
        if value in self.facts:
            return self.facts[value]
        return self.write(self._unused(str(value)))

    def _unused(self, rule: str) -> str:
        alternatives = self.grammar[rule]
        used = self.used.setdefault(rule, set())
        if len(used) == len(alternatives):
            used.clear()
        index = pick([i for i in range(len(alternatives)) if i not in used], self.random)
        used.add(index)
        return alternatives[index]


def read_grammar(text: str) -> dict[str, tuple[str, ...]]:
    """The rules of a grammar file; lines that start with `;` and empty lines are skipped."""
    rules: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith(";"):
            continue
        if line.startswith("["):
            name = line.strip("[] ")
            rules[name] = []
        else:
            rules[name].append(line)
    return {name: tuple(lines) for name, lines in rules.items()}


def pick(items: Sequence[T], random: Random) -> T:
    return items[int(random.random() * len(items))]


def shuffled(items: Iterable[T], random: Random) -> list[T]:
    return sorted(items, key=lambda _: random.random())


def polish(text: str) -> str:
    """Capital letters at the start of sentences, `an` before a vowel, no space left over from an empty part."""
    text = _ARTICLE.sub(r"\1n ", _LOOSE_SPACE.sub("", text))
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


@cache
def _parse(template: str) -> tuple[Node, ...]:
    stack: list[list[list[Node]]] = [[[]]]
    for token in _TOKEN.findall(template):
        if token == "{":
            stack.append([[]])
        elif token == "}":
            choice = tuple(tuple(part) for part in stack.pop())
            stack[-1][-1].append(("choice", choice))
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        elif token.startswith("<"):
            stack[-1][-1].append(_slot(token[1:-1]))
        else:
            stack[-1][-1].append(("text", token))
    (nodes,) = stack.pop()
    return tuple(nodes)


def _slot(name: str) -> Node:
    match = _NUMBER.fullmatch(name)
    if match is None:
        return "slot", name
    low, high, step, comma = match.groups()
    return "number", (int(low), int(high), int(step or 1), bool(comma))
