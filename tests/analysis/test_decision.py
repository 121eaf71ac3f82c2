from dataclasses import replace
from pathlib import Path

import pytest

from paretune.analysis.decision import choose, is_cheaper, weighed_costs
from paretune.analysis.findings import Choice, Findings
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant
from tests.analysis.synthetic import VARIANTS, Shape, make_results

QUIET = Shape(seeds=(0,), seed_effect=0.0, evaluations=("perplexity", "latency"), epochs=1)
LORA, REDUCED = VARIANTS["original"], VARIANTS["reduced"]
BASE, ORIGINAL, CUT = (Entrant("novels", "news", name) for name in ("base", "original", "reduced"))


def findings_of(tmp_path: Path, reduced_loss: float, extra: str = "compare: {costs: [model_bytes]}\n") -> Findings:
    variants = {"base": VARIANTS["base"], "original": LORA, "reduced": replace(REDUCED, loss=reduced_loss)}
    return measure(make_results(tmp_path, replace(QUIET, variants=variants, extra=extra)))


def choice_of(findings: Findings) -> Choice:
    choice = findings.groups[0].choice
    assert choice is not None
    return choice


def test_a_variant_that_is_not_shown_to_be_better_is_beaten_by_a_cheaper_one(tmp_path: Path) -> None:
    choice = choice_of(findings_of(tmp_path, LORA.loss - 1e-4))
    assert choice.chosen == CUT
    assert choice.costs == ("model_bytes",)
    assert choice.beaten == choice.beaten_by_cost["model_bytes"] == {CUT: None, ORIGINAL: CUT, BASE: CUT}


def test_a_variant_that_is_shown_to_be_better_stays_on_the_frontier(tmp_path: Path) -> None:
    choice = choice_of(findings_of(tmp_path, LORA.loss + 0.1))
    assert choice.chosen == ORIGINAL
    assert choice.near == (ORIGINAL,)
    assert choice.ranked == (ORIGINAL, CUT, BASE)
    assert choice.verdict == "recommended"
    assert choice.beaten == {ORIGINAL: None, CUT: None, BASE: ORIGINAL}


def test_training_is_weighed_between_trained_variants_unless_asked_for(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, 4.2, "")
    assert not is_cheaper(findings, BASE, ORIGINAL)
    assert BASE not in choice_of(findings).beaten_by_cost["train_seconds"]
    assert {entrant for entrant, rival in choice_of(findings).beaten.items() if rival is None} == {ORIGINAL, CUT}


def test_a_cost_that_is_not_clear_says_not_that_nothing_is_dearer(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, LORA.loss - 0.5, "compare: {costs: [train_seconds]}\n")
    assert choice_of(findings).beaten[ORIGINAL] == CUT
    slow = {key: replace(ratio, clear=False, value=2.8) for key, ratio in findings.ratios.items() if key[1] == CUT}
    findings = replace(findings, ratios={**findings.ratios, **slow})
    choice = choose(findings, findings.groups[0])
    assert choice is not None
    assert choice.beaten[ORIGINAL] is None


def test_what_is_not_shown_to_be_as_good_beats_nothing(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, replace(QUIET, documents=5)))
    choice = choice_of(findings)
    assert set(choice.beaten.values()) == {None}
    assert (choice.tells, choice.verdict) == (False, "cannot tell")


def test_a_margin_of_the_perplexity_counts_in_bits_per_byte(tmp_path: Path) -> None:
    loss = LORA.loss + 0.1
    for margin, chosen in (("{perplexity: 9.0}", CUT), ("{loss: 0.15}", CUT), ("{loss: 0.05}", ORIGINAL)):
        (tmp_path / margin[1:5] / margin[-4:-1]).mkdir(parents=True)
        extra = f"compare: {{costs: [model_bytes], margin: {margin}}}\n"
        assert choice_of(findings_of(tmp_path / margin[1:5] / margin[-4:-1], loss, extra)).chosen == chosen


def test_the_training_of_what_was_not_trained_costs_nothing(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, 4.2, "compare: {costs: [train_seconds]}\n")
    assert findings.cost(BASE, "train_seconds") == 0
    assert findings.cost(BASE, "adapter_bytes_of_another_name") is None
    assert is_cheaper(findings, BASE, ORIGINAL)
    assert not is_cheaper(findings, ORIGINAL, BASE)


def test_the_usual_costs_are_size_then_time_per_token_then_training(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, 4.2, "")
    assert weighed_costs(findings, [BASE, ORIGINAL]) == ["model_bytes", "ms_per_token_median", "train_seconds"]


def test_times_of_different_machines_beat_nothing(tmp_path: Path) -> None:
    variants = {"original": LORA, "reduced": replace(REDUCED, loss=LORA.loss)}
    shape = replace(QUIET, variants=variants, extra="compare: {costs: [ms_per_token]}\n")
    results = make_results(tmp_path, shape)
    assert is_cheaper(measure(results), CUT, ORIGINAL)
    cells = []
    for cell in results.cells:
        record = replace(cell.evaluations["latency"], machine={"processor": f"of {cell.variant}"})
        cells.append(replace(cell, evaluations={**cell.evaluations, "latency": record}))
    findings = measure(replace(results, cells=tuple(cells)))
    assert not is_cheaper(findings, CUT, ORIGINAL)
    assert set(choice_of(findings).beaten.values()) == {None}


def test_two_evaluations_of_times_are_both_weighed(tmp_path: Path) -> None:
    variants = {"original": LORA, "reduced": REDUCED}
    extra = "  short: {kind: latency, repeats: 5, prompt_tokens: 8}\ncompare: {costs: [ms_per_token]}\n"
    results = make_results(tmp_path, replace(QUIET, variants=variants, extra=extra))
    cells = tuple(
        replace(cell, evaluations={**cell.evaluations, "short": cell.evaluations["latency"]}) for cell in results.cells
    )
    names = ("latency.ms_per_token_median", "short.ms_per_token_median")
    assert choice_of(measure(replace(results, cells=cells))).costs == names


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ("{model_bytes: {at_most: 26.0e6}}", [CUT]),
        ("{perplexity: {at_most: 66}}", [ORIGINAL]),
        ("{token_accuracy: {at_least: 0.1}, model_bytes: {at_least: 26.0e6}}", [BASE, ORIGINAL]),
        ("{bits_per_byte: {within: 0.001}}", [ORIGINAL]),
        ("{bits_per_byte: {within: 0.1}}", [ORIGINAL, CUT]),
        ("{bits_per_byte: {within: 1%}}", [ORIGINAL]),
        ("{bits_per_byte: {within: 5%}}", [ORIGINAL, CUT]),
        ("{token_accuracy: {within: 0.01}}", [ORIGINAL, CUT]),
        ("{accuracy: {at_least: 0}}", []),
        ("{adapter_bytes: {at_most: 0}}", [BASE]),
    ],
)
def test_limits_are_kept_by_what_is_shown_to_keep_them(limit: str, kept: list[Entrant], tmp_path: Path) -> None:
    extra = "  asked: {kind: qa, path: qa.json}\n"
    extra += f"compare: {{baseline: original, costs: [model_bytes], require: [{limit}]}}\n"
    (found,) = findings_of(tmp_path, LORA.loss + 0.1, extra).groups[0].limits
    assert sorted(found.kept) == sorted(kept)
    assert (found.chosen is None) == (not kept)


def test_what_was_not_measured_keeps_to_no_limit(tmp_path: Path) -> None:
    extra = "  asked: {kind: qa, path: qa.json}\n"
    extra += "compare: {baseline: original, require: [{accuracy: {at_least: 0}, first_token_ms: {at_most: 1.0e6}}]}\n"
    (found,) = findings_of(tmp_path, 4.2, extra).groups[0].limits
    assert (found.reason, found.unmeasured) == ("not measured", ("accuracy",))


def test_parameters_are_weighed_as_the_exported_size(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, 4.2, "compare: {costs: [parameters, model_bytes]}\n")
    assert weighed_costs(findings, [ORIGINAL, CUT]) == ["model_bytes"]


def test_nothing_is_chosen_where_nothing_is_ranked(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, replace(QUIET, evaluations=("latency",))))
    assert choose(findings, findings.groups[0]) is None
    assert findings.groups[0].limits == ()
