"""What is concluded from studies of which the truth is known: facts, and once the sentence of each."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest

from paretune.analysis import conclusions
from paretune.analysis.compare import Difference, Estimate
from paretune.analysis.conclusions import (
    BasesCompared,
    BestChosen,
    BetterThanBase,
    CheaperChosen,
    CheaperForPrice,
    CheaperNotShown,
    CostDifference,
    DecidedBy,
    Drawbacks,
    EquivalentToBase,
    Forbidden,
    Frontier,
    Incomplete,
    LikelyMemorised,
    MoreVariants,
    NoBasesCompared,
    NoRecommendation,
    NothingMeasured,
    NothingRanked,
    NotToldFromBase,
    OnlyOne,
    Running,
    TokenizersDiffer,
    ToUse,
    Trade,
    Undecided,
    UnderLimit,
    WorseThanBase,
    export_command,
)
from paretune.analysis.facts import find
from paretune.analysis.findings import Fact, Findings, Limit
from paretune.analysis.inference import Errors
from paretune.analysis.scores import Entrant, Quantity
from paretune.pipeline.records import Results
from paretune.report.words import say
from paretune.study.compare import Bound
from tests.analysis.synthetic import VARIANTS, Shape, Truth, make_results

QUIET = Shape(seeds=(0,), seed_effect=0.0, evaluations=("perplexity", "latency"), epochs=1)
BASE, FULL, LORA, REDUCED = (VARIANTS[name] for name in ("base", "full", "original", "reduced"))
PERPLEXITY = Quantity("perplexity", "test", "perplexity")
FactT = TypeVar("FactT", bound=Fact)


def facts_of(results: Results) -> list[Fact]:
    """Of the first base on the first dataset."""
    findings = find(results)
    group = findings.groups[0]
    found = findings.facts.groups[group.base, group.dataset]
    return [*found.recommendation, *found.findings]


def study(tmp_path: Path, shape: Shape = QUIET, **variants: Truth) -> list[Fact]:
    return facts_of(make_results(tmp_path, replace(shape, variants=variants)))


def only(facts: Iterable[Fact], kind: type[FactT]) -> FactT:
    (fact,) = (fact for fact in facts if isinstance(fact, kind))
    return fact


def having(facts: Iterable[Fact], *kinds: type[Fact]) -> list[Fact]:
    return [fact for fact in facts if isinstance(fact, kinds)]


def metrics_of(costs: Iterable[CostDifference]) -> list[str]:
    return [cost.metric for cost in costs]


def pair(difference: Difference) -> tuple[str, str]:
    return difference.variant.variant, difference.reference.variant


def test_a_detected_loss_of_quality_is_a_trade_with_its_price(tmp_path: Path) -> None:
    facts = study(tmp_path, original=LORA, reduced=REDUCED)
    best = only(facts, BestChosen)
    assert (best.entrant.variant, best.quantity, best.near, best.leads) == ("original", PERPLEXITY, (), "all")
    trade = only(facts, CheaperForPrice).trade
    assert pair(trade.difference) == ("reduced", "original")
    assert trade.difference.verdict == "worse"
    assert metrics_of(trade.cheaper) == ["model_bytes", "train_tokens_per_second", "ms_per_token"]
    assert trade.cheaper[0].ratio == pytest.approx(1 - 0.113, abs=5e-4)
    assert not trade.dearer
    assert trade.is_contrast


def test_a_cheaper_variant_that_is_shown_to_lose_no_more_than_the_margin_is_recommended(tmp_path: Path) -> None:
    facts = study(tmp_path, original=LORA, reduced=replace(REDUCED, loss=LORA.loss + 1e-3))
    chosen = only(facts, CheaperChosen)
    assert pair(chosen.difference) == ("reduced", "original")
    assert chosen.difference.margin is not None
    assert chosen.difference.worst <= chosen.difference.margin == pytest.approx(0.01 * LORA.loss, rel=0.1)
    assert "model_bytes" in metrics_of(chosen.cheaper)
    assert not having(facts, CheaperForPrice, Trade, BestChosen, CheaperNotShown)  # the two have been compared


def noisy(results: Results, scatter: float, more: float) -> Results:
    """The losses of `reduced` scatter by document, and are higher by `more`, both in nats."""
    for cell in results.cells:
        if cell.variant == "reduced":
            file = cell.evaluations["perplexity"].path / "scores.parquet"
            table = pd.read_parquet(file)
            moved = dict(zip(table["document"].unique(), np.random.default_rng(0).normal(more, scatter, 1000), strict=False))
            shift = table["document"].map(moved)
            scale = table["metric"].map({"loss": 1.0, "bits_per_byte": 1 / math.log(2) / 4.4}).fillna(0)
            table.assign(value=table["value"] + shift * scale).to_parquet(file, index=False)
    return results


@pytest.mark.parametrize(("documents", "scatter", "more"), [(6, 0.4, 0.5), (20, 0.4, 0.05), (200, 1.0, 0.15)])
def test_what_cannot_be_told_apart_recommends_nothing_cheaper(
    documents: int, scatter: float, more: float, tmp_path: Path
) -> None:
    """6 documents with +72 % perplexity and an interval up to more than double are no case for the cheaper variant."""
    shape = replace(QUIET, documents=documents, variants={"original": LORA, "reduced": replace(REDUCED, loss=LORA.loss)})
    facts = facts_of(noisy(make_results(tmp_path, shape), scatter, more))
    assert only(facts, BestChosen).entrant.variant == "original"
    open_one = only(facts, CheaperNotShown)
    difference = open_one.difference
    assert difference.margin is not None
    assert difference.verdict == "no difference detected"
    assert difference.worst > difference.margin
    assert " may be up to " in say(open_one)
    if difference.loss < difference.margin:
        assert open_one.needed is not None
        assert open_one.needed > documents
    else:
        assert open_one.needed is None
    assert not having(facts, CheaperChosen)


def test_a_variant_that_is_better_and_cheaper_is_no_trade(tmp_path: Path) -> None:
    facts = study(tmp_path, original=LORA, reduced=replace(REDUCED, loss=3.9))
    assert only(facts, BestChosen).entrant.variant == "reduced"
    assert not having(facts, CheaperForPrice)
    trade = only(facts, Trade)
    assert pair(trade.difference) == ("reduced", "original")
    assert (trade.difference.verdict, trade.is_contrast) == ("better", False)


def test_a_variant_worse_than_the_untouched_base_is_said_to_be_so(tmp_path: Path) -> None:
    facts = study(tmp_path, base=BASE, full=replace(FULL, loss=5.3), original=LORA)
    assert pair(only(facts, WorseThanBase).difference) == ("full", "base")
    better = only(facts, BetterThanBase)
    assert [pair(difference) for difference in better.differences] == [("original", "base")]
    assert not better.is_every_variant


def test_all_that_are_better_than_the_base_are_told_best_first(tmp_path: Path) -> None:
    better = only(study(tmp_path, base=BASE, original=LORA, full=FULL), BetterThanBase)
    assert [difference.variant.variant for difference in better.differences] == ["full", "original"]
    assert better.is_every_variant


def test_what_is_worse_than_the_untouched_base_is_no_bargain(tmp_path: Path) -> None:
    facts = study(tmp_path, base=BASE, original=LORA, reduced=replace(REDUCED, loss=6.5))
    assert not having(facts, CheaperForPrice)
    worse = say(only(facts, WorseThanBase))
    assert " times as high (98.3 % interval " in worse
    assert worse.endswith(" times).")


def test_what_cannot_be_told_from_the_base_and_what_is_equivalent_to_it_are_two_things(tmp_path: Path) -> None:
    variants = {"base": BASE, "full": FULL, "original": replace(LORA, loss=BASE.loss + 1e-3)}
    facts = study(tmp_path, **variants)
    assert [pair(difference) for difference in only(facts, NotToldFromBase).differences] == [("original", "base")]
    assert not having(facts, EquivalentToBase)
    (tmp_path / "margin").mkdir()
    shape = replace(QUIET, extra="compare: {baseline: base, margin: {bits_per_byte: 0.05}}\n")
    facts = study(tmp_path / "margin", shape, **variants)
    assert [pair(difference) for difference in only(facts, EquivalentToBase).differences] == [("original", "base")]
    assert not having(facts, NotToldFromBase)


def test_a_base_that_nothing_beats_is_recommended(tmp_path: Path) -> None:
    facts = study(tmp_path, base=BASE, full=replace(FULL, loss=5.3), original=replace(LORA, loss=5.0))
    best = only(facts, BestChosen)
    assert (best.entrant.variant, best.is_untouched) == ("base", True)


def slowed(results: Results, variant: str, factor: float) -> Results:
    """One variant writes so many times as slowly."""
    cells = []
    for cell in results.cells:
        record = cell.evaluations["latency"]
        slow = {name: value * (1 if name == "threads" else factor) for name, value in record.metrics.items()}
        record = replace(record, metrics=slow) if cell.variant == variant else record
        cells.append(replace(cell, evaluations={**cell.evaluations, "latency": record}))
    return replace(results, cells=tuple(cells))


def told_costs(facts: Iterable[Fact]) -> set[str]:
    trades = [fact.trade if isinstance(fact, CheaperForPrice) else fact for fact in facts]
    found = [cost for fact in trades if isinstance(fact, Trade) for cost in (*fact.cheaper, *fact.dearer)]
    return {cost.metric for cost in found}


def test_disturbed_times_are_not_compared(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(QUIET, variants={"base": BASE, "original": LORA, "reduced": REDUCED}))
    assert "ms_per_token" in told_costs(facts_of(results))
    assert "ms_per_token" not in told_costs(facts_of(slowed(results, "base", 3)))


def test_times_of_different_machines_are_not_compared(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(QUIET, variants={"original": LORA, "reduced": REDUCED}))
    assert "train_tokens_per_second" in told_costs(facts_of(results))
    cells = tuple(
        replace(
            cell,
            methods=tuple(replace(record, machine={"processor": f"of {cell.variant}"}) for record in cell.methods),
            evaluations={
                name: replace(record, machine={"processor": f"of {cell.variant}"}) for name, record in cell.evaluations.items()
            },
        )
        for cell in results.cells
    )
    assert told_costs(facts_of(replace(results, cells=cells))) == {"model_bytes"}


def test_times_of_two_evaluations_are_told_apart_by_their_names(tmp_path: Path) -> None:
    extra = "  short: {kind: latency, repeats: 5, prompt_tokens: 8}\n"
    results = make_results(tmp_path, replace(QUIET, variants={"original": LORA, "reduced": REDUCED}, extra=extra))
    cells = tuple(
        replace(cell, evaluations={**cell.evaluations, "short": cell.evaluations["latency"]}) for cell in results.cells
    )
    price = only(facts_of(replace(results, cells=cells)), CheaperForPrice)
    times = [cost.evaluation for cost in price.trade.cheaper if cost.metric == "ms_per_token"]
    assert times == ["latency", "short"]
    sentence = say(price)
    assert all(f"x faster on `{name}`, " in sentence for name in times)


def test_seeds_that_lie_too_far_apart_are_not_a_verdict_about_methods(tmp_path: Path) -> None:
    shape = replace(QUIET, seeds=(0, 1), seed_effect=0.05)
    facts = study(tmp_path, shape, full=replace(FULL, loss=4.08), original=LORA)
    assert only(facts, BestChosen).entrant.variant == "full"
    difference = only(facts, CheaperNotShown).difference
    assert difference.detected_for_weights
    assert not difference.detected
    assert not replace(difference, withheld=True).detected_for_weights


LIMITS = """  asked: {kind: qa, path: qa.json}
compare:
  baseline: original
  costs: [model_bytes]
  require:
    - {model_bytes: {at_most: 26.0e6}}
    - {model_bytes: {at_most: 1.0e6}}
    - {bits_per_byte: {within: 0.1}}
    - {bits_per_byte: {within: 0.001}}
    - {adapter_bytes: {at_most: 1.0e6}, bits_per_byte: {at_most: 9, at_least: 0}}
    - {peak_memory_bytes: {at_most: 1.0e9}}
    - {accuracy: {at_least: 0.5}}
"""


def test_each_limit_of_the_study_has_a_recommendation(tmp_path: Path) -> None:
    shape = replace(QUIET, extra=LIMITS)
    facts = study(tmp_path, shape, base=BASE, full=FULL, original=LORA, reduced=replace(REDUCED, loss=4.2))
    assert [say(fact) for fact in having(facts, UnderLimit, Frontier)] == [
        "With model size at most 26.0 MB: `reduced`; no other is shown to keep to it.",
        "With model size at most 1.00 MB: no variant is shown to keep to it.",
        "With test bits per byte within 0.1 of `original`: `reduced`; of those that keep to it (`full`, `original` and "
        "`reduced`) it is the cheapest.",
        "With test bits per byte within 0.001 of `original`: `full`; of those that keep to it (`full` and `original`) none is "
        "clearly cheaper.",
        "With adapter size at most 1.00 MB and test bits per byte at most 9 and at least 0: `reduced`; of those that keep to "
        "it (`full`, `original`, `reduced` and `base`) it is the cheapest.",
        "With peak memory at most 1.00 GB: `full`; of those that keep to it (`full`, `original`, `reduced` and `base`) it has "
        "the lowest test perplexity.",
        "With accuracy at least 0.5: `accuracy` was not measured.",
        "On the Pareto frontier of test perplexity against model size are `full` and `reduced`; beaten: `original` and "
        "`base` (by `full`).",
    ]


def test_a_difference_inside_the_margin_is_equivalent_and_the_cheaper_variant_is_taken(tmp_path: Path) -> None:
    variants = {"original": LORA, "reduced": replace(REDUCED, loss=LORA.loss + 0.04)}
    margin = "compare: {baseline: original, margin: {bits_per_byte: 0.05}, costs: [model_bytes]}\n"
    chosen = only(study(tmp_path, replace(QUIET, extra=margin), **variants), CheaperChosen)
    assert (pair(chosen.difference), chosen.difference.verdict) == (("reduced", "original"), "equivalent")
    (tmp_path / "no").mkdir()
    assert only(study(tmp_path / "no", **variants), BestChosen).entrant.variant == "original"


def with_answers(tmp_path: Path, extra: str, right: float, **changed: Truth) -> list[Fact]:
    """`reduced` is a little worse in perplexity, and answers `right` of 200 questions where `original` answers nine of ten."""
    variants = {
        "original": replace(LORA, right=0.9),
        "reduced": replace(REDUCED, loss=LORA.loss + 1e-3, right=right),
        **changed,
    }
    shape = replace(QUIET, evaluations=("perplexity", "qa"), questions=100, variants=variants, extra=extra)
    return facts_of(make_results(tmp_path, shape))


def test_a_recommendation_names_what_it_is_shown_to_lose(tmp_path: Path) -> None:
    chosen = only(with_answers(tmp_path, "compare: {baseline: original}\n", 0.2), CheaperChosen)
    lost = {difference.quantity.metric: difference for difference in chosen.drawbacks.lost}
    assert {"accuracy", "log_likelihood"} <= set(lost)
    assert "bits_per_byte" not in lost
    assert all(difference.verdict == "worse" for difference in lost.values())
    assert "; shown worse: " in say(chosen)
    assert "accuracy on `qa` by " in say(chosen)
    (tmp_path / "family").mkdir()
    family = "compare: {baseline: original, family: [perplexity, accuracy]}\n"
    chosen = only(with_answers(tmp_path / "family", family, 0.2), CheaperChosen)
    assert [difference.quantity.metric for difference in chosen.drawbacks.lost] == ["accuracy"]


def test_a_margin_forbids_what_is_shown_to_lose_more(tmp_path: Path) -> None:
    margin = "compare: {baseline: original, margin: {accuracy: 0.05}}\n"
    facts = with_answers(tmp_path, margin, 0.2)
    assert only(facts, BestChosen).entrant.variant == "original"
    (tmp_path / "ahead").mkdir()
    facts = with_answers(tmp_path / "ahead", margin, 0.2, reduced=replace(REDUCED, loss=3.9, right=0.2))
    assert pair(only(facts, Forbidden).difference) == ("reduced", "original")
    best = only(facts, BestChosen)
    assert (best.entrant.variant, best.of_others, best.leads, best.near) == ("original", True, "", ())


def test_the_first_of_the_declared_family_decides(tmp_path: Path) -> None:
    facts = with_answers(tmp_path, "compare: {baseline: original, family: [accuracy, perplexity]}\n", 0.2)
    assert only(facts, BestChosen).quantity == Quantity("qa", "", "accuracy")
    assert only(facts, DecidedBy).why == "family"
    (tmp_path / "text").mkdir()
    facts = with_answers(tmp_path / "text", "compare: {baseline: original, family: [perplexity, accuracy]}\n", 0.95)
    assert only(facts, DecidedBy).quantity.metric == "bits_per_byte"


def test_a_lead_by_chance_recommends_nothing_that_is_shown_to_be_worse_elsewhere(tmp_path: Path) -> None:
    extra = "compare: {baseline: original, family: [accuracy, perplexity]}\n"
    facts = with_answers(tmp_path, extra, 0.0, reduced=replace(REDUCED, loss=LORA.loss + 0.5, right=0.9))
    undecided = only(facts, Undecided)
    assert (undecided.entrant.variant, [rival.variant for rival in undecided.rivals]) == ("reduced", ["original"])
    assert [lost.quantity.metric for lost in undecided.lost] == ["bits_per_byte"]
    assert not having(facts, BestChosen)
    assert not having(facts, ToUse)
    (tmp_path / "shown").mkdir()
    ahead = replace(REDUCED, loss=LORA.loss + 0.5, right=0.93)
    best = only(with_answers(tmp_path / "shown", extra, 0.0, reduced=ahead), BestChosen)
    assert (best.entrant.variant, len(best.drawbacks.lost)) == ("reduced", 1)


def test_a_half_measured_variant_is_not_recommended_without_that_said(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(QUIET, variants={"original": LORA, "reduced": REDUCED}))
    cells = tuple(replace(cell, missing=("evaluate.qa",)) if cell.variant == "original" else cell for cell in results.cells)
    best = only(facts_of(replace(results, cells=cells)), BestChosen)
    assert best.drawbacks.num_missing == 1


def test_one_document_gives_no_recommendation(tmp_path: Path) -> None:
    findings = find(
        make_results(tmp_path, replace(QUIET, documents=1, variants={"base": BASE, "original": LORA, "reduced": REDUCED}))
    )
    found = findings.facts.groups["novels", "news"]
    (fact,) = found.recommendation
    assert isinstance(fact, NoRecommendation)
    assert say(fact) == "No recommendation: 1 document cannot tell variants apart."
    assert not having(found.findings, Frontier)  # where nothing is told apart, costs alone would say what beats what
    assert findings.facts.use == ()


def test_a_study_without_a_quality_or_a_choice_says_so(tmp_path: Path) -> None:
    assert [type(fact) for fact in study(tmp_path, replace(QUIET, evaluations=("latency",)), original=LORA)] == [NothingRanked]
    (tmp_path / "one").mkdir()
    assert only(study(tmp_path / "one", original=LORA), OnlyOne).entrant.variant == "original"


def test_a_perplexity_that_only_memory_can_give_is_flagged(tmp_path: Path) -> None:
    facts = having(study(tmp_path, original=replace(LORA, loss=0.2)), LikelyMemorised)
    assert [fact.quantity.split for fact in facts if isinstance(fact, LikelyMemorised)] == ["validation", "test"]
    (tmp_path / "sane").mkdir()
    assert not having(study(tmp_path / "sane", original=LORA), LikelyMemorised)


def test_merged_networks_of_one_shape_have_no_speed_and_no_size_to_tell(tmp_path: Path) -> None:
    facts = study(tmp_path, full=replace(FULL, ms_per_token=8.0), lora=LORA, reduced=replace(REDUCED, ms_per_token=1.0))
    trades = [fact.trade if isinstance(fact, CheaperForPrice) else fact for fact in facts]
    of_lora = [fact for fact in trades if isinstance(fact, Trade) and pair(fact.difference) == ("lora", "full")]
    assert {cost.metric for fact in of_lora for cost in (*fact.cheaper, *fact.dearer)} <= {
        "train_tokens_per_second",
        "peak_memory_bytes",
    }
    of_cut = [fact for fact in trades if isinstance(fact, Trade) and pair(fact.difference) == ("reduced", "full")]
    assert "model_bytes" in metrics_of(of_cut[0].cheaper)


def test_cheaper_in_nothing_that_is_told_is_no_bargain(tmp_path: Path) -> None:
    costs = "compare: {baseline: original, costs: [trainable_parameters]}\n"
    tiny = Truth(LORA.methods, LORA.loss + 0.2, parameters=7_010_000, trainable=10_000, tokens_per_second=5000)
    facts = study(tmp_path, replace(QUIET, extra=costs), original=LORA, tiny=tiny)
    assert only(facts, BestChosen).entrant.variant == "original"
    assert not having(facts, CheaperForPrice)


def test_of_many_variants_the_best_are_compared_in_words(tmp_path: Path) -> None:
    many = {f"v{index}": replace(LORA, loss=4.2 + 0.05 * index) for index in range(8)}
    facts = study(tmp_path, replace(QUIET, extra="compare: {baseline: original}\n"), original=LORA, **many)
    assert [fact.difference.variant.variant for fact in facts if isinstance(fact, Trade)] == [f"v{n}" for n in range(6)]
    assert only(facts, MoreVariants).count == 2


def bases(tmp_path: Path, **tokens: str) -> Findings:
    shape = replace(QUIET, bases=("novels", "other"), variants={"base": BASE, "original": LORA})
    results = make_results(tmp_path, shape)
    records = {
        (base, name): replace(record, config={**record.config, "base": {"digest": tokens.get(base, "same")}})
        for (base, name), record in results.tokens.items()
    }
    return find(replace(results, tokens=records))


def test_the_best_of_each_base_is_compared_with_the_best_of_all(tmp_path: Path) -> None:
    (fact,) = bases(tmp_path).facts.across["news"]
    assert isinstance(fact, BasesCompared)
    assert (fact.difference.variant.base, fact.difference.reference.base) == ("other", "novels")
    assert fact.difference.quantity.metric == "bits_per_byte"
    (tmp_path / "apart").mkdir()
    assert [type(fact) for fact in bases(tmp_path / "apart", other="another").facts.across["news"]] == [
        BasesCompared,
        TokenizersDiffer,
    ]


def test_how_to_export_names_what_is_not_plain_from_the_study(tmp_path: Path) -> None:
    findings = find(make_results(tmp_path, replace(QUIET, variants={"base": BASE, "original": LORA})))
    assert findings.facts.use == (ToUse(("paretune export study.yaml original --to original-exported",)),)
    (tmp_path / "many").mkdir()
    shape = replace(QUIET, seeds=(0, 1), bases=("novels", "other"), variants={"base": BASE, "original": LORA})
    findings = find(make_results(tmp_path / "many", shape))
    first = "paretune export study.yaml original --to novels-original-exported --base novels --seed 0"
    assert findings.facts.use == (ToUse((first,)),)  # of the base that is ahead
    of_grid = export_command(findings, Entrant("novels", "news", "rank[r=4]"))
    assert of_grid == "paretune export study.yaml 'rank[r=4]' --to novels-rank-r-4-exported --base novels"


def test_what_is_missing_and_a_study_that_never_ran_are_said_to_be_so(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(QUIET, variants={"base": BASE, "original": LORA}))
    cells = tuple(replace(cell, missing=("train.lora", "evaluate.size")) for cell in results.cells)
    assert find(replace(results, cells=cells)).facts.incomplete == (Incomplete(("base", "original"), 2),)
    assert find(replace(results, cells=())).facts.incomplete == (NothingMeasured(),)


def difference_of(variant: str = "full", mean: float = -0.2, **fields: Any) -> Difference:
    """In nats per token, from a perplexity of 20 on 40 documents, detected unless `fields` say otherwise."""
    reference, half = math.log(20), 0.1
    detected = Difference(
        variant=Entrant("novels", "news", variant),
        reference=Entrant("other", "news", "base"),
        quantity=Quantity("perplexity", "test", "loss"),
        variant_mean=reference + mean,
        reference_mean=reference,
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=0.01,
        p_documents=0.01,
        errors=Errors(0.05, 40, 0.0, 1.0),
        n_examples=40,
        n_seeds=2,
        level=0.95,
        p_adjusted=0.02,
        mde=0.12,
    )
    return replace(detected, **fields)


APART, ALIKE = difference_of(), difference_of("lora", mean=0.02, p_adjusted=0.6)
ONE, TWO = Entrant("novels", "news", "full"), Entrant("novels", "news", "base")
CHEAPER = (CostDifference("model_bytes", "", 0.5, cheaper=True), CostDifference("ms_per_token", "short", 0.25, cheaper=True))
DEARER = (
    CostDifference("train_tokens_per_second", "", 0.5, cheaper=False),
    CostDifference("peak_memory_bytes", "", 1.2, cheaper=False),
)
NOTHING = Drawbacks((), 0)
LOST = difference_of(
    quantity=Quantity("qa", "", "accuracy"),
    mean=-0.1,
    low=-0.15,
    high=-0.05,
    level=1 - 0.05 / 3,
    reference_mean=0.5,
    variant_mean=0.4,
)
CLOSE = difference_of("lora", mean=0.002, low=-0.008, high=0.012, margin=0.015)
ESTIMATE = Estimate(16.4, 15.0, 18.0, 40, 40, {0: 16.4})
LIMIT = Limit({"ms_per_token": Bound(at_most=50)}, (ONE, TWO), ONE, "cheaper")
SENTENCES: list[tuple[Fact, str]] = [
    (NothingRanked(), "Nothing was measured that variants are ranked by."),
    (OnlyOne(ONE), "One variant was measured, `full`: there is nothing to choose between."),
    (NoRecommendation(None), "No recommendation: nothing cannot tell variants apart."),
    (
        Undecided(ONE, PERPLEXITY, ESTIMATE, (TWO,), (LOST,)),
        (
            "No recommendation: `full` has the lowest test perplexity (16.4) on 40 documents, but its lead over `base` may be"
            " chance; shown worse: accuracy on `qa` by 10.0 points than `base` (98.3 % interval -15.0 to -5.0 points)."
        ),
    ),
    (
        BestChosen(ONE, False, PERPLEXITY, ESTIMATE, (TWO,), "", False, NOTHING),
        (
            "Recommended: `full`. It has the lowest test perplexity (16.4) on 40 documents; `base` cannot be told apart from"
            " it and is not clearly cheaper."
        ),
    ),
    (
        BestChosen(TWO, True, PERPLEXITY, ESTIMATE, (), "all measured", False, Drawbacks((), 2)),
        (
            "Recommended: the untouched base, `base`. It has the lowest test perplexity (16.4) on 40 documents, and its lead"
            " over the others that were measured is detected; only half measured: 2 stages failed or did not run."
        ),
    ),
    (
        BestChosen(ONE, False, PERPLEXITY, ESTIMATE, (), "", True, Drawbacks((LOST,), 0)),
        (
            "Recommended: `full`. Of the others it has the lowest test perplexity (16.4) on 40 documents; shown worse: "
            "accuracy on `qa` by 10.0 points than `base` (98.3 % interval -15.0 to -5.0 points)."
        ),
    ),
    (
        Forbidden(replace(LOST, margin=0.02)),
        (
            "Not recommended: `full`, whose accuracy on `qa` is 10.0 points lower (98.3 % interval 5.0 to 15.0 points), more "
            "than the margin of 2.0 points from `base`."
        ),
    ),
    (
        CheaperChosen(CLOSE, False, CHEAPER, NOTHING),
        (
            "Recommended: `lora`. Its test perplexity on 40 documents is shown to be no more than 1.5 % worse than the best, "
            "that of `base` (+0.20 %, 95 % interval -0.80 to +1.2 %), and it is 50.0 % smaller and generates 4.00x faster on "
            "`short`."
        ),
    ),
    (
        CheaperNotShown(replace(ALIKE, margin=0.015), CHEAPER[:1], 812),
        (
            "Cheaper, but not shown to be as good: `lora` is 50.0 % smaller and may be up to 12.7 % worse than `base` (test "
            "perplexity +2.0 %, 95 % interval -7.7 to +12.7 %; 1.5 % would not matter); about 812 documents would settle it."
        ),
    ),
    (
        CheaperNotShown(replace(LOST, margin=0.2), (), None),
        (
            "Cheaper, but not shown to be as good: `full` costs less and may be up to 15.0 points worse than `base` (accuracy "
            "on `qa` -10.0 points, 98.3 % interval -15.0 to -5.0 points; 20.0 points would not matter); more seeds would have "
            "to settle it."
        ),
    ),
    (
        DecidedBy(Quantity("summary", "test", "rouge_l"), "answers"),
        (
            "Decided by test ROUGE-L on `summary`: the study asks for answers, and this is the score of the first task; "
            "`compare: {family: [METRIC]}` decides by another."
        ),
    ),
    (
        Trade(APART, CHEAPER, DEARER),
        (
            "`full` is 50.0 % smaller than `base`, generates 4.00x faster on `short`, trains 2.00x slower, needs 20.0 % more"
            " memory to train, and its test perplexity is 18.1 % lower (95 % interval 9.5 to 25.9 %)."
        ),
    ),
    (
        Trade(APART, (), DEARER[:1]),
        ("`full` trains 2.00x slower than `base`, but its test perplexity is 18.1 % lower (95 % interval 9.5 to 25.9 %)."),
    ),
    (Trade(APART, (), ()), "Against `base`, `full`'s test perplexity is 18.1 % lower (95 % interval 9.5 to 25.9 %)."),
    (
        Trade(ALIKE, (), ()),
        (
            "Between `lora` and `base`, no difference in test perplexity is detected (+2.0 %, 95 % interval -7.7 to +12.7 %;"
            " 12.7 % would have been detected)."
        ),
    ),
    (
        CheaperForPrice(Trade(difference_of(mean=1.2), CHEAPER[:1], ())),
        (
            "Cheaper at a price: `full` is 50.0 % smaller than `base`, but its test perplexity is 3.3 times as high (95 % "
            "interval 3.0 to 3.7 times)."
        ),
    ),
    (
        UnderLimit(LIMIT, (("ms_per_token", None, Bound(at_most=50)),), None, PERPLEXITY),
        (
            "With time per token at most 50.0 ms: `full`; of those that keep to it (`full` and `base`) it is shown to lose no "
            "more than the margin against the best, and is cheaper."
        ),
    ),
    (
        Frontier(PERPLEXITY, ("model_bytes", "ms_per_token"), (ONE,), (), True),
        (
            "On the Pareto frontier of test perplexity against model size and time per token is `full`: none is shown to "
            "beat another."
        ),
    ),
    (
        Frontier(PERPLEXITY, ("model_bytes",), (ONE,), ((ONE, (TWO,) * 7),), True),
        ("On the Pareto frontier of test perplexity against model size is `full`; beaten: 7 others (by `full`)."),
    ),
    (
        BetterThanBase((APART,), False),
        (
            "`full` is better than the untouched base: test perplexity from 20.0 to 16.4, -18.1 % (95 % interval -25.9 to "
            "-9.5 %)."
        ),
    ),
    (
        BetterThanBase((APART, difference_of("lora", mean=-0.1)), False),
        (
            "`full` and `lora` are better than the untouched base: test perplexity from 20.0 to 16.4 (`full`, -18.1 %) at "
            "best, 18.1 (`lora`, -9.5 %) at worst."
        ),
    ),
    (
        BetterThanBase((APART, APART), True),
        (
            "Every other variant is better than the untouched base: test perplexity from 20.0 to 16.4 (`full`, -18.1 %) at "
            "best, 16.4 (`full`, -18.1 %) at worst."
        ),
    ),
    (
        WorseThanBase(difference_of(mean=0.2)),
        ("`full` is worse than the untouched base: its test perplexity is 22.1 % higher (95 % interval 10.5 to 35.0 %)."),
    ),
    (
        WorseThanBase(difference_of(mean=0.2, low=-0.1, high=0.3, errors=Errors(0.05, 40, 0.1, 1.0))),
        (
            "`full` is worse than the untouched base: its test perplexity is 22.1 % higher in these runs, but the 2 seeds "
            "lie too far apart to expect that of new ones (95 % interval -9.5 to +35.0 %)."
        ),
    ),
    (
        WorseThanBase(difference_of(mean=0.02, margin=0.3)),
        (
            "`full` is worse than the untouched base: its test perplexity is equivalent, within 35.0 % (+2.0 %, 95 % "
            "interval -7.7 to +12.7 %)."
        ),
    ),
    (
        EquivalentToBase((ALIKE, APART)),
        ("Equivalent to the untouched base in test perplexity, within the margin of the study: `lora` and `full`."),
    ),
    (
        NotToldFromBase((ALIKE, APART, ALIKE)),
        (
            "No difference in test perplexity from the untouched base is detected for `lora` (+2.0 %, 95 % interval -7.7 to "
            "+12.7 %), `full` (-18.1 %, 95 % interval -25.9 to -9.5 %) and `lora` (+2.0 %, 95 % interval -7.7 to +12.7 %)."
        ),
    ),
    (
        MoreVariants(2, Quantity("perplexity", "test", "bits_per_byte")),
        ("2 variants with a worse test bits per byte than these: see the tables."),
    ),
    (
        LikelyMemorised(ONE, PERPLEXITY, 1.2),
        (
            "The test perplexity of `full` is 1.20: so low that held-out text is likely to stand in the training data, or in"
            " what the base was pretrained on."
        ),
    ),
    (
        BasesCompared(APART),
        (
            "Best of `novels` (`full`) against best of `other` (`base`): its test perplexity is 18.1 % lower (95 % interval "
            "9.5 to 25.9 %)."
        ),
    ),
    (NoBasesCompared(), "No two bases have figures that can be compared."),
    (
        TokenizersDiffer(),
        (
            "The bases have different tokenizers: loss, perplexity, token accuracy and log-likelihood are per token and not "
            "compared across them; bits per byte are."
        ),
    ),
    (
        Running(("full", "lora"), 3),
        "A run of this study is on: of `full` and `lora` 3 stages are running or still to come; see the notes.",
    ),
    (Incomplete(("full", "lora"), 1), "Incomplete: of `full` and `lora` 1 stage failed or did not run; see the notes."),
    (NothingMeasured(), "Nothing has been measured yet."),
    (
        ToUse(("paretune export a", "paretune export b")),
        ("To use what is recommended, in the folder of the study: `paretune export a`; `paretune export b`"),
    ),
]


@pytest.mark.parametrize(("fact", "sentence"), SENTENCES, ids=[type(fact).__name__ for fact, _ in SENTENCES])
def test_each_fact_has_its_sentence(fact: Fact, sentence: str) -> None:
    assert say(fact) == sentence


def test_no_fact_is_without_a_sentence() -> None:
    classes = {one for one in vars(conclusions).values() if isinstance(one, type) and issubclass(one, Fact)}
    ours = {one for one in classes if one.__module__ == conclusions.__name__}
    assert ours == {type(fact) for fact, _ in SENTENCES}
    assert all(dataclasses.is_dataclass(one) for one in ours)
