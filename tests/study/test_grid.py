"""Lists of values in the fields of methods: what they are written out to, what the results are called, and what is refused."""

from pathlib import Path

import pytest

from paretune.errors import SpecError
from paretune.study.grid import file_name, file_names
from paretune.study.study import Study, load_study

STUDY = """study: small
bases: {tiny: {path: model}}
data: {notes: {source: {path: notes.jsonl}, text: "{{ title }}"}}
train: {batch_size: 4}
variants:
  base: []
  one: [{train.full: {learning_rate: 1e-3}}]
  two: [{prune.blocks: {count: 1}}, {train.lora: {r: 4}}]
evaluate: {perplexity: {}}
compare: {interval: 0.9}
"""


def load(folder: Path, *changes: tuple[str, str]) -> Study:
    text = STUDY
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return load_study(folder / "study.yaml")


def members(study: Study) -> list[str]:
    return [name for name in study.variants if name not in ("base", "one", "two")]


GRIDS = [
    ("one: [{train.full: {learning_rate: {grid: [1e-3, 0.05, 3.0e-4]}}}]", ["1e-3", "0.05", "3e-4"], "learning_rate={}"),
    ("one: {bases: [tiny], methods: [{train.lora: {r: {grid: [4, 8]}}}]}", ["4", "8"], "r={}"),
    ("one: [{train.lora: {targets: {grid: [all-linear, [a, b]]}}}]", ["all-linear", "a+b"], "targets={}"),
    ("one: [{prune.blocks: {count: 1, choose: loss, calibration: {seed: {grid: [0, 1]}}}}]", ["0", "1"], "seed={}"),
    ("one: [{prune.blocks: {blocks: {grid: [[0], [0, 1]]}}}]", ["0", "0+1"], "blocks={}"),
]


@pytest.mark.parametrize(("line", "values", "name"), GRIDS)
def test_a_grid_makes_a_variant_of_each_value(tmp_path, line, values, name):
    study = load(tmp_path, ("one: [{train.full: {learning_rate: 1e-3}}]", line))
    assert members(study) == [f"one[{name.format(value)}]" for value in values]
    assert len({repr(study.variants[member].methods) for member in members(study)}) == len(values)
    assert list(study.variants)[:: len(values) + 1] == ["base", "two"]


PRODUCTS = [
    ("{count: {grid: [1, 2]}}", "{r: {grid: [4, 8]}}", "two[count=1,r=4]"),
    (
        "{count: {grid: [1, 2]}}",
        "{r: 4}}, {prune.blocks: {count: {grid: [1, 2]}}",
        "two[0.prune.blocks.count=1,2.prune.blocks.count=1]",
    ),
    (
        "{count: 1, choose: random, seed: {grid: [0, 1]}}",
        "{r: 4}}, {prune.blocks: {count: 1, choose: loss, calibration: {seed: {grid: [0, 1]}}}",
        "two[seed=0,calibration.seed=0]",
    ),
]


@pytest.mark.parametrize(("first", "second", "name"), PRODUCTS)
def test_of_several_fields_the_product_is_taken_and_names_tell_them_apart(tmp_path, first, second, name):
    found = members(load(tmp_path, ("{count: 1}", first), ("{r: 4}", second)))
    assert (len(found), len(set(found)), found[0]) == (4, 4, name)


def test_a_tuned_variant_is_one_variant_with_trials(tmp_path):
    study = load(tmp_path, ("{r: 4}", "{r: {grid: [4, 8]}, learning_rate: {tune: [1.0e-4, 3e-3]}}"))
    assert members(study) == ["two[r=4]", "two[r=8]"]
    variant = study.variants["two[r=8]"]
    assert [trial.name for trial in variant.trials] == ["learning_rate=1e-4", "learning_rate=3e-3"]
    assert [chain[1].config.model_dump()["learning_rate"] for chain in variant.chains] == [1e-4, 3e-3]
    assert (variant.first_tuned, variant.last_trained) == (1, 1)
    assert variant.methods == variant.trials[0].methods
    both = load(tmp_path, ("{count: 1}", "{count: {tune: [1, 2]}}"), ("{r: 4}", "{learning_rate: {tune: [1, 2, 3]}}"))
    assert len(both.variants["two"].trials) == 6
    assert both.variants["two"].first_tuned == 0


RATE = "{learning_rate: 1e-3}"
MISTAKES = [
    (RATE, "{learning_rate: {grid: []}}", 7, "variants.one[0].train.full.learning_rate.grid: no values; several are written"),
    (
        RATE,
        "{learning_rate: {grid: [1]}}",
        7,
        "learning_rate.grid: one value, `1`, is no list to choose from; write it without `grid`",
    ),
    (RATE, "{learning_rate: {tune: [1e-3, 0.001]}}", 7, "learning_rate.tune: `1e-3` stands there twice; write each value once"),
    (RATE, "{learning_rate: {grid: 3}}", 7, "learning_rate.grid: expected a list of values like `{grid: [4, 8, 16]}`, got `3`"),
    (RATE, "{learning_rate: {tune: [1, x]}}", 7, 'learning_rate.tune[1]: only numbers are tuned, got `"x"`; `grid` takes any'),
    (RATE, "{learning_rate: {tune: [1, true]}}", 7, "learning_rate.tune[1]: only numbers are tuned, got `true`"),
    (RATE, "{learning_rate: {grid: [1, -1]}}", 7, "variants.one[0].train.full.learning_rate: expected more than 0, got `-1`"),
    (RATE, "{learning_rate: {tune: [1, 2], grid: [1, 2]}}", 7, "learning_rate: `grid` or `tune` stands alone, got"),
    (RATE, "{learning_rate: {grid: [1, {tune: [1, 2]}]}}", 7, "learning_rate.grid[1]: a list of values inside another"),
    (RATE, "{grid: [{}, {}]}", 7, "variants.one[0].train.full: `grid` stands for the values of a field, and this is a method"),
    (RATE, "{rate: {tune: [1, 2]}}", 7, "variants.one[0].train.full.rate: unknown key"),
    ("base: []", "base: {grid: [[], []]}", 6, "variants.base.grid: goes with a field of a method"),
    (
        "base: []",
        "base: [{prune.blocks: {count: {tune: [1, 2]}}}]",
        6,
        "count: `tune` is decided by the validation loss of a training",
    ),
    (
        "base: []",
        "one-learning_rate-1: []\n  one: [{train.full: {learning_rate: {grid: [1, 2]}}}]\n  x: []",
        7,
        "would share the files",
    ),
    ("batch_size: 4", "batch_size: {grid: [4, 8]}", 4, "train.batch_size: `grid` goes with a field of a method in `variants`"),
    ("{interval: 0.9}", "{interval: {tune: [0.9, 0.8]}}", 10, "compare.interval: `tune` goes with a field of a method"),
    ("{interval: 0.9}", "{baseline: on[e]}", 10, 'a name with brackets stands in quotes: `"rank[r=4]"`'),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path, old, new, line, message):
    if "share" in message:
        old, new = "  base: []\n  one: [{train.full: {learning_rate: 1e-3}}]", f"  {new}"
    with pytest.raises(SpecError) as caught:
        load(tmp_path, (old, new))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'study.yaml'}:{line}:")


def test_a_reference_names_a_member(tmp_path):
    grid = ("{r: 4}", "{r: {grid: [4, 8]}}")
    assert load(tmp_path, grid, ("{interval: 0.9}", '{baseline: "two[r=8]"}')).baseline == "two[r=8]"
    with pytest.raises(SpecError) as caught:
        load(tmp_path, grid, ("{interval: 0.9}", "{baseline: two}"))
    assert 'no variant `two`: it is a grid of `"two[r=4]"`, `"two[r=8]"`; name one of them, in quotes' in str(caught.value)


def test_file_names_have_no_brackets():
    assert file_name("rank[r=4,learning_rate=3e-4]") == "rank-r-4-learning_rate-3e-4"
    assert file_name("rank") == "rank"


def test_joined_file_names_are_all_different():
    names = [("a", "b-c"), ("a-b", "c"), ("a-b-c", "2")]
    assert list(file_names(names).values()) == ["a-b-c", "a-b-c-3", "a-b-c-2"]
    assert file_names([("x-",), ("x",)]) == {("x-",): "x", ("x",): "x-2"}
