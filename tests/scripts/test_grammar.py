"""The grammar that writes the built-in texts."""

from random import Random

import pytest
from grammar import Writer, polish, read_grammar, shuffled


def write(template: str, rules: str = "", seed: int = 0, **facts: str) -> str:
    return Writer(read_grammar(rules), facts, Random(seed)).write(template)


def test_choices_nest_and_may_be_empty() -> None:
    found = {write("a{|b{c|d}}", seed=seed) for seed in range(60)}
    assert found == {"a", "abc", "abd"}


def test_a_fact_comes_before_the_rule_of_its_name() -> None:
    assert write("<x> <y>", "[x]\nrule\n[y]\n<x>!", x="fact") == "fact fact!"


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        write("<nowhere>")


def test_numbers_keep_their_range_step_and_comma() -> None:
    values = {int(write("<#10-30:10>", seed=seed)) for seed in range(60)}
    assert values == {10, 20, 30}
    assert write("<#5000-5000,>") == "5,000"


def test_a_rule_gives_all_its_alternatives_before_one_returns() -> None:
    assert sorted(write("<x><x><x>", "[x]\na\nb\nc\n")) == ["a", "b", "c"]


def test_comments_and_empty_lines_are_no_alternatives() -> None:
    assert read_grammar("; note\n[x]\n\na\n; b\n") == {"x": ("a",)}


def test_polish_mends_what_templates_cannot_know() -> None:
    text = 'a old  mill stands . it said: "we wait." later, a man came.'
    assert polish(text) == 'An old mill stands. It said: "We wait." Later, a man came.'


def test_shuffling_is_a_permutation_given_by_the_seed() -> None:
    assert sorted(shuffled(range(20), Random(1))) == list(range(20))
    assert shuffled(range(20), Random(1)) == shuffled(range(20), Random(1)) != shuffled(range(20), Random(2))
