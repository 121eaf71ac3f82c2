"""The study file: what it means, and what is told, with the line, about every mistake in it."""

import json
import re
from pathlib import Path

import pytest

from paretune.errors import NeedsError, SpecError
from paretune.study.base import FROM_KEY
from paretune.study.registry import methods
from paretune.study.study import Study, load_study, located
from paretune.study.validate import validate

STUDY = """study: small
bases:
  tiny: {path: model}
data:
  notes:
    source: {path: notes.jsonl}
    document: title
    text: "{{ title }}"
train: {epochs: 2, batch_size: 4}
precision: {compute: auto}
seeds: [0, 1]
variants:
  base: []
  full: [{train.full: {learning_rate: 1e-3}}]
  cut: [{prune.blocks: {count: 1}}, {train.lora: {r: 4}}]
evaluate:
  perplexity: {}
  generate: {prompts: [a]}
  qa: {path: qa.json}
compare: {interval: 0.9}
"""


def load(tmp_path: Path, text: str = STUDY) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    return load_study(file)


def edited(old: str, new: str) -> str:
    assert STUDY.count(old) == 1
    return STUDY.replace(old, new)


def test_a_study_is_read_with_its_defaults(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert study.study == "small"
    assert study.seeds == (0, 1)
    assert (study.train.num_epochs, study.train.max_length, study.train.schedule) == (2, 512, "cosine")
    assert [use.name for use in study.variants["cut"].methods] == ["prune.blocks", "train.lora"]
    assert study.variants["cut"].methods[1].config.model_dump()["r"] == 4
    assert study.evaluate["perplexity"].config.model_dump()["splits"] == ("validation", "test")
    assert study.data["notes"].source.path == "notes.jsonl"
    with pytest.raises(ValueError, match="frozen"):
        study.train.epochs = 3


def test_the_baseline_is_the_first_that_trains_unless_named(tmp_path: Path) -> None:
    assert load(tmp_path).baseline == "full"
    assert load(tmp_path, edited("interval: 0.9", "baseline: cut")).baseline == "cut"
    text = edited("full: [{train.full: {learning_rate: 1e-3}}]", "full: []").replace(", {train.lora: {r: 4}}]", "]")
    assert load(tmp_path, text).baseline == "base"


def test_without_epochs_there_are_three_and_with_steps_none(tmp_path: Path) -> None:
    assert load(tmp_path, edited("{epochs: 2, batch_size: 4}", "{}")).train.num_epochs == 3
    assert load(tmp_path, edited("epochs: 2", "max_steps: 5")).train.num_epochs is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("perplexity: {}", "perplexity:"),
        ("perplexity: {}", "held_out: {kind: perplexity}"),
        ("{learning_rate: 1e-3}", ""),
        ("[{train.full: {learning_rate: 1e-3}}]", "[train.full]"),
        ("base: []", "base: {}"),
        ("base: []", "base: {methods: []}"),
        ("base: []", "base: {bases: [tiny]}"),
        ("base: []", "2024: []"),
        ("train: {epochs: 2, batch_size: 4}", "train: {early_stopping: {patience: 1}, evaluate_every: 10, base_dropout: 0}"),
        ("count: 1", "blocks: [3, 0]"),
        ("r: 4", "r: 4, targets: [q_proj, v_proj], bias: lora_only, dropout: 0.1"),
        ("precision: {compute: auto}\n", ""),
        ("compare: {interval: 0.9}\n", ""),
        ("  base: []", "  base: &none []\n  again: *none"),
    ],
)
def test_odd_and_legal(tmp_path: Path, old: str, new: str) -> None:
    study, plain = load(tmp_path, edited(old, new)), load(tmp_path)
    assert (len(study.data), len(study.evaluate)) == (len(plain.data), len(plain.evaluate))


MISTAKES = [
    # the file as a whole
    ("study: small", "study: 7", 1, "study: a name is text, got `7`"),
    ("study: small", "study: a b", 1, "study: `a b` cannot be a name; use letters, digits, `.`, `_` and `-`, beginning with"),
    ("study: small", "study: " + "a" * 101, 1, 'study: `"aaaaaa'),
    ("seeds: [0, 1]", "seed: [0, 1]", 11, "seed: unknown key; it is called `seeds` here"),
    ("seeds: [0, 1]", "zzz: 1", 11, "zzz: unknown key; known: `bases`, `compare`, `data`, `evaluate`, `precision`, `safety`, "),
    ("seeds: [0, 1]", "seeds: 3", 11, "seeds: expected a list `[0, 1, 2]` of distinct whole numbers from 0 to 2**32 - 1, got"),
    ("seeds: [0, 1]", "seeds: []", 11, "seeds: expected a list"),
    ("seeds: [0, 1]", "seeds: [1, 1]", 11, "seeds: expected a list"),
    ("seeds: [0, 1]", "seeds: [-1]", 11, "seeds: expected a list"),
    ("seeds: [0, 1]", "seeds: [true]", 11, "seeds: expected a list"),
    ("seeds: [0, 1]", "seeds: [1.0]", 11, "seeds: expected a list"),
    ("seeds: [0, 1]", "seeds: [4294967296]", 11, "seeds: expected a list"),
    ("seeds: [0, 1]", "seeds:", 11, "seeds: expected a list"),
    ("train: {epochs: 2, batch_size: 4}", "train:", 9, "train: expected a mapping of fields, got `null`"),
    ("precision: {compute: auto}", "precision: []", 10, "precision: expected a mapping of fields, got `[]`"),
    ("compare: {interval: 0.9}", "compare: 3", 20, "compare: expected a mapping of fields, got `3`"),
    # bases
    ("  tiny: {path: model}", "  {}", 2, "bases: expected at least one entry `NAME: ...`, got `{}`"),
    ("{path: model}", "", 3, "bases.tiny: expected a mapping of fields, got `null`"),
    ("{path: model}", "{}", 3, "bases.tiny: name exactly one of `path`, `hub` and `builtin`, got `{}`"),
    ("{path: model}", "{path: a, revision: b}", 3, "bases.tiny: `revision` goes with `hub`, got "),
    ("{path: model}", "{path: 3}", 3, "bases.tiny.path: expected a text, got `3`"),
    ("{path: model}", "{path: a, trust_remote_code: yes}", 3, "bases.tiny.trust_remote_code: expected `true` or `false`, got"),
    ("tiny: {path", "../tiny: {path", 3, "bases.../tiny: `../tiny` cannot be a name"),
    # train, precision, compare
    ("epochs: 2", "epoch: 2", 9, "train.epoch: unknown key; did you mean `epochs`?"),
    ("epochs: 2", "epochs: 2.0", 9, "train.epochs: expected a whole number, got `2.0`"),
    ("epochs: 2", "epochs: true", 9, "train.epochs: expected a whole number, got `true`"),
    ("epochs: 2", "epochs: 0", 9, "train.epochs: expected 1 or more, got `0`"),
    ("epochs: 2", "epochs: 2, max_steps: 3", 9, "train: `epochs` and `max_steps` exclude each other, got "),
    ("epochs: 2", "max_length: 7", 9, "train.max_length: expected 8 or more, got `7`"),
    ("epochs: 2", "schedule: step", 9, "train.schedule: expected `cosine`, `linear` or `constant`, got `\"step\"`"),
    ("epochs: 2", "warmup: 1.0", 9, "train.warmup: expected less than 1, got `1.0`"),
    ("epochs: 2", "max_grad_norm: 0", 9, "train.max_grad_norm: expected more than 0, got `0`"),
    ("epochs: 2", "weight_decay: .nan", 9, "train.weight_decay: expected a finite number, got `NaN`"),
    ("epochs: 2", "evaluate_every: 0", 9, "train: `evaluate_every` is `epoch` or a number of steps from 1, got "),
    ("epochs: 2", "evaluate_every: step", 9, "train.evaluate_every: expected `epoch`, or a whole number, got `\"step\"`"),
    ("epochs: 2", "early_stopping: {}", 9, "train.early_stopping.patience: missing; this field has no default"),
    ("epochs: 2", "early_stopping: {patience: 0}", 9, "train.early_stopping.patience: expected 1 or more, got `0`"),
    ("epochs: 2", "early_stopping: {patience: 1, metrik: loss}", 9, "train.early_stopping.metrik: unknown key; did you mean "),
    ("epochs: 2", "base_dropout: 1.0", 9, "train: `base_dropout` is `keep` or a rate from 0 to below 1, got "),
    ("epochs: 2", "keep: first", 9, "train.keep: expected `best` or `last`, got `\"first\"`"),
    ("compute: auto", "compute: float8", 10, "precision.compute: expected `auto`, `float32`, `bfloat16` or `float16`, got"),
    ("interval: 0.9", "interval: 1", 20, "compare.interval: expected less than 1, got `1`"),
    ("interval: 0.9", "interval: 95", 20, "compare.interval: expected less than 1, got `95`"),
    ("interval: 0.9", "baseline: fulll", 20, "compare.baseline: no variant `fulll`; did you mean `full`?"),
    # variants
    ("base: []", "base: none", 13, "variants.base: expected a list of methods like `[{train.full: {}}]`, or `[]`, got `\"non"),
    ("base: []", "base: [5]", 13, "variants.base[0]: expected `{method: {fields}}`, got `5`"),
    ("base: []", "base: [{}]", 13, "variants.base[0]: expected `{method: {fields}}`, got `{}`"),
    ("base: []", "base: [{train.fulll: {}}]", 13, "variants.base[0]: unknown method `train.fulll`; did you mean `train.full`?"),
    ("base: []", "base: {method: []}", 13, "variants.base.method: unknown key; did you mean `methods`?"),
    ("base: []", "base: {train.full: {}}", 13, "variants.base: the methods of a variant stand in a list: `[{train.full: {..."),
    ("base: []", "base: {methods: }", 13, "variants.base.methods: expected a list of methods"),
    ("base: []", "base: {bases: tiny}", 13, "variants.base.bases: expected a list of names of bases, got `\"tiny\"`"),
    ("base: []", "base: {bases: []}", 13, "variants.base.bases: expected a list of names of bases, got `[]`"),
    ("base: []", "base: {bases: [tinny]}", 13, "variants.base.bases: no base `tinny`; did you mean `tiny`?"),
    ("base: []", "b/c: []", 13, "variants.b/c: `b/c` cannot be a name"),
    ("base: []", '"b\\nc": []', 12, 'variants: `"b\\nc"` cannot be a name'),
    ("{learning_rate: 1e-3}", "3", 14, "variants.full[0].train.full: expected a mapping of fields, got `3`"),
    (
        "learning_rate: 1e-3",
        "lr: 1e-3",
        14,
        "variants.full[0].train.full.lr: unknown key; it is called `learning_rate` here, in `train.full`",
    ),
    ("learning_rate: 1e-3", "learning_rate: 0", 14, "variants.full[0].train.full.learning_rate: expected more than 0, got `0`"),
    ("learning_rate: 1e-3", "learning_rate: .inf", 14, "variants.full[0].train.full.learning_rate: expected a finite number,"),
    ("{train.lora: {r: 4}}", "{train.lora: , r: 4}", 15, "variants.cut[1]: written beside `train.lora`: `r`; indent the fiel"),
    ("r: 4", "r: 0", 15, "variants.cut[1].train.lora.r: expected 1 or more, got `0`"),
    ("r: 4", "targets: []", 15, "variants.cut[1].train.lora.targets: "),
    ("r: 4", "targets: all", 15, "variants.cut[1].train.lora.targets: expected `default` or `all-linear`, or a list `[...]`,"),
    ("r: 4", "dropout: 1", 15, "variants.cut[1].train.lora.dropout: expected less than 1, got `1`"),
    ("count: 1", "", 15, "variants.cut[0].prune.blocks: name either `blocks: [...]` or `count: N`, or `fraction: SHARE`"),
    ("count: 1", "count: 1, blocks: [1]", 15, "variants.cut[0].prune.blocks: name either `blocks: [...]` or `count: N`"),
    ("count: 1", "blocks: [1], choose: last", 15, "variants.cut[0].prune.blocks: `choose` goes with `count`; `blocks` names "),
    ("count: 1", "blocks: [1, 1]", 15, "variants.cut[0].prune.blocks: `blocks` are distinct indices from 0"),
    ("count: 1", "blocks: [-1]", 15, "variants.cut[0].prune.blocks: `blocks` are distinct indices from 0"),
    ("count: 1", "blocks: []", 15, "variants.cut[0].prune.blocks.blocks: expected a list with 1 or more entries, got `[]`"),
    ("count: 1", "count: 1, choose: best", 15, "variants.cut[0].prune.blocks.choose: expected `last`, `first`, `loss`, `ta"),
    ("count: 1", "count: 1, choose: loss, seed: 1", 15, "variants.cut[0].prune.blocks: `seed` goes with `choose: random`"),
    ("count: 1", "count: 1, calibration: {}", 15, "variants.cut[0].prune.blocks: `calibration` goes with `choose: loss`, `ta"),
    ("count: 1", "blocks: [1], calibration: {}", 15, "variants.cut[0].prune.blocks: `calibration` goes with `choose: loss`"),
    ("count: 1", "count: 1, choose: loss, calibration: {tokens: 0}", 15, "variants.cut[0].prune.blocks.calibration.tokens: "),
    ("count: 1", "count: 1, choose: loss, calibration: {docs: 2}", 15, "variants.cut[0].prune.blocks.calibration.docs: un"),
    ("count: 1", "count: 1, choose: loss, calibration: 9", 15, "variants.cut[0].prune.blocks.calibration: expected a map"),
    # evaluations
    ("perplexity: {}", "perplexity: []", 17, "evaluate.perplexity: expected a mapping of fields, got `[]`"),
    ("perplexity: {}", "perplexety: {}", 17, "evaluate.perplexety: unknown evaluation `perplexety`; did you mean `perplexity"),
    ("perplexity: {}", "p: {kind: 3}", 17, "evaluate.p.kind: expected the name of an evaluation, got `3`"),
    ("perplexity: {}", "size: {kind: perplexity}", 17, "evaluate.size: the name `size` is taken"),
    ("perplexity: {}", "perplexity: {splits: []}", 17, "evaluate.perplexity.splits: expected a list with 1 or more entries, "),
    ("perplexity: {}", "perplexity: {splits: [tset]}", 17, "evaluate.perplexity.splits[0]: expected `train`, `validation` or"),
    ("perplexity: {}", "perplexity: {splits: [test, test]}", 17, "evaluate.perplexity: `splits` names a split twice"),
    ("perplexity: {}", "perplexity: {stride: 0}", 17, "evaluate.perplexity.stride: expected 1 or more, got `0`"),
    ("prompts: [a]", "", 18, "evaluate.generate.prompts: missing; this field has no default"),
    ("prompts: [a]", "prompts: a", 18, "evaluate.generate.prompts: expected a list `[...]`, got `\"a\"`"),
    ("prompts: [a]", "prompts: [3]", 18, "evaluate.generate.prompts[0]: expected a text, got `3`"),
    ("prompts: [a]", 'prompts: [""]', 18, "evaluate.generate: a prompt is empty"),
    ("prompts: [a]", "prompts: [a], top_k: 5", 18, "evaluate.generate: `top_p` and `top_k` do nothing at `temperature: 0`, w"),
    ("prompts: [a]", "prompts: [a], top_p: 0", 18, "evaluate.generate.top_p: expected more than 0, got `0`"),
    ("prompts: [a]", "prompts: [a], temperature: -1", 18, "evaluate.generate.temperature: expected 0 or more, got `-1`"),
    ("{path: qa.json}", "{}", 19, "evaluate.qa: name exactly one of `path` and `builtin`, got `{}`"),
    ("{path: qa.json}", "{path: qa.json, slice: [a]}", 19, "evaluate.qa.slice: unknown key; did you mean `slice_by`?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_a_mistake_is_told_with_line_field_value_and_way_out(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    with pytest.raises(SpecError) as told:
        load(tmp_path, edited(old, new))
    assert str(told.value).startswith(f"{tmp_path / 'study.yaml'}:{line}: {message}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["study", "bases", "data", "variants", "evaluate"])
def test_a_missing_section_is_named(tmp_path: Path, name: str) -> None:
    text = re.sub(rf"^{name}:.*\n(  .*\n)*", "", STUDY, flags=re.MULTILINE)
    with pytest.raises(
        SpecError, match=rf"study.yaml: {name}: missing; a study needs `study`, `bases`, `data`, `variants` and"
    ):
        load(tmp_path, text)


def test_several_mistakes_in_one_part_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as told:
        load(tmp_path, edited("{epochs: 2, batch_size: 4}", "\n  epochs: 0\n  bach_size: 4\n  warmup: 2\n"))
    lines = sorted(str(told.value).replace(str(tmp_path / "study.yaml"), "").splitlines())
    assert lines == [
        ":10: train.epochs: expected 1 or more, got `0`",
        ":11: train.bach_size: unknown key; did you mean `batch_size`?",
        ":12: train.warmup: expected less than 1, got `2`",
    ]


@pytest.mark.parametrize(
    ("text", "told"), [("", "is empty; `paretune init DATA`"), ("- a\n", 'begins with `study: NAME`, not `["a"]`')]
)
def test_what_is_no_study_at_all_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SpecError, match=re.escape(told)):
        load(tmp_path, text)


def test_errors_of_later_checks_get_their_line_too(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    with pytest.raises(NeedsError, match=rf"^{re.escape(str(file))}:6: data.notes.source.path: no file$"), located(file):
        raise NeedsError("data.notes.source.path: no file")
    with pytest.raises(SpecError, match=r"^notes.jsonl: line 3: not JSON$"), located(file):
        raise SpecError("notes.jsonl: line 3: not JSON")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("prune.blocks", {"blocks": [0, 2]}),
        ("prune.blocks", {"count": 1}),
        ("prune.blocks", {"count": 2, "choose": "loss", "calibration": {"documents": 4}}),
        ("prune.blocks", {"count": 2, "choose": "random", "seed": 3}),
        ("train.full", {}),
        ("train.lora", {"targets": "all-linear"}),
        ("train.lora", {"targets": ["q_proj", "v_proj"], "bias": "all", "dropout": 0.1}),
    ],
)
def test_a_method_reads_back_what_stands_in_its_key(name, fields):
    model = methods()[name].config
    written = validate(model, fields, "here").model_dump(mode="json")
    read = model.model_validate_json(json.dumps(written), context=FROM_KEY)
    assert read.model_dump(mode="json") == written
