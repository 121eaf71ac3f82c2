"""What keeps a ranking of runs from being one of methods, where variants were not treated alike, and what was compared."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from paretune.analysis.caveats import (
    BaseDropoutOn,
    BlocksChosen,
    ChosenAtEdge,
    DocumentsAlike,
    FewSeeds,
    GroupUnnamed,
    LeakedFigures,
    LossStillFalling,
    MergedFromPacked,
    NotSmaller,
    OneDocument,
    Overfitted,
    PartTrained,
    RankedOnValidation,
    RecordsShared,
    SheetUnread,
    TimesDisturbed,
    TrainingShort,
    TrialDiverged,
    Tuned,
    Untuned,
    block_facts,
    chosen_on_validation,
    disturbed_times,
    remarks,
    short_training,
    trained_shares,
    training_notes,
    tuning_facts,
)
from paretune.analysis.deviations import (
    BasesUnequal,
    BestWeightsKept,
    BudgetUnequal,
    ComparedOnShared,
    ExamplesLeftOut,
    LeakageAllowed,
    NoDeviations,
    QuestionsTooLong,
    RecordsLeftOut,
    Run,
    RunDeviates,
    SeveralMachines,
    TunedUnequally,
    deviations,
)
from paretune.analysis.findings import LEAKED, Fact, Findings
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Quantity
from paretune.analysis.setup import (
    AnswersDefined,
    AuditClean,
    BaselineUsed,
    BaseUsed,
    CleaningProposed,
    DataCleaned,
    Definition,
    DocumentsCounted,
    DocumentsUnused,
    LabelsCounted,
    MachinesUsed,
    NoLeakage,
    PrecisionUsed,
    RunOn,
    StagesMissing,
    TrainedAlike,
    audit,
    data_notes,
    notes,
    setup,
)
from paretune.analysis.training import BlockChoice
from paretune.pipeline.records import Cell, Divergence, Record, Results, Trial, Tuning
from paretune.report.words import say
from paretune.study.study import Study
from tests.analysis.synthetic import MACHINE, VARIANTS, Shape, Truth, make_results
from tests.analysis.test_answers import OF_PEOPLE, PEOPLE, PROMPTS, fair, of_class, rated

SMALL = Shape(documents=12, epochs=2)
QUIET = Shape(seeds=(0,), documents=40, evaluations=("perplexity",), epochs=1)
BASE, FULL, LORA, REDUCED = (Entrant("novels", "news", name) for name in VARIANTS)


def changed(results: Results, change: Callable[[Cell], dict[str, Any]], *, twice: str = "") -> Results:
    """Other metrics of the trainings of cells, or a variant that is trained `twice`."""

    def other(cell: Cell) -> Cell:
        methods = tuple(replace(record, metrics={**record.metrics, **change(cell)}) for record in cell.methods)
        return replace(cell, methods=(*methods, *(methods[-1:] if cell.variant == twice else ())))

    return replace(results, cells=tuple(map(other, results.cells)))


# Tuning.

TUNE = "learning_rate: {tune: [1.0e-4, 3.0e-4, 1.0e-3]}"


def tuned(root: Path, *, full: bool = True, lora: bool = True, **shape: Any) -> Results:
    """The synthetic study with tuned learning rates, whose trials are not there yet."""
    variants = dict(VARIANTS)
    if full:
        variants["full"] = replace(variants["full"], methods=f"[{{train.full: {{{TUNE}}}}}]")
    if lora:
        for name in ("original", "reduced"):
            variants[name] = replace(variants[name], methods=variants[name].methods.replace("r: 8", f"r: 8, {TUNE}"))
    root.mkdir(exist_ok=True)
    return make_results(root, Shape(**{"variants": variants, "documents": 12, "evaluations": ("perplexity",), **shape}))


def with_trials(results: Results, scores: Sequence[float | None], chosen: int | None) -> Findings:
    """The trials of `original`, each with the records of another seed, or diverged after 3 steps where it has no score."""
    cells = [cell for cell in results.cells if cell.variant == "original"]
    values = ("learning_rate=1e-4", "learning_rate=3e-4", "learning_rate=1e-3")
    trials = tuple(
        Trial(name, divergence=Divergence("step 3: the loss is nan", 3, 0.5))
        if score is None
        else Trial(name, cells[index % len(cells)].methods, score)
        for index, (name, score) in enumerate(zip(values, scores, strict=True))
    )
    return measure(replace(results, tunings=(Tuning("novels", "news", "original", 0, trials, chosen),)))


def test_what_tuning_chose_and_cost_is_told(tmp_path: Path) -> None:
    findings = with_trials(tuned(tmp_path, seeds=(0, 1, 2)), [4.2, 4.1, 4.3], 1)
    (fact,) = tuning_facts(findings, findings.groups[0])
    seconds = [trial.methods[-1].metrics["train_seconds"] for trial in findings.results.tunings[0].trials]
    assert fact == Tuned(LORA, "learning_rate=3e-4", 0, (pytest.approx(seconds[0] + seconds[2]), 72), (seconds[1], 36))


@pytest.mark.parametrize(
    ("scores", "chosen", "edge"),
    [
        ([4.1, 4.2, 4.3], 0, [ChosenAtEdge("learning_rate", "1e-4", "smallest", (LORA,))]),
        ([4.3, 4.2, 4.1], 2, [ChosenAtEdge("learning_rate", "1e-3", "largest", (LORA,))]),
        ([4.3, 4.2, None], 1, []),  # beyond it lies one that diverged
    ],
)
def test_a_choice_at_the_end_of_its_list_is_told(
    tmp_path: Path, scores: list[float | None], chosen: int, edge: list[Fact]
) -> None:
    findings = with_trials(tuned(tmp_path), scores, chosen)
    assert of_class(remarks(findings), ChosenAtEdge) == edge
    facts = tuning_facts(findings, findings.groups[0])
    assert of_class(facts, ChosenAtEdge) == edge
    assert of_class(facts, TrialDiverged) == (
        [TrialDiverged(LORA, "learning_rate=1e-3", "step 3: the loss is nan")] if scores[2] is None else []
    )


def test_before_the_choice_nothing_is_said_of_it(tmp_path: Path) -> None:
    findings = with_trials(tuned(tmp_path), [4.2, 4.1, 4.3], None)
    assert tuning_facts(findings, findings.groups[0]) == []


def test_unequal_tuning_is_a_deviation_and_equal_is_not(tmp_path: Path) -> None:
    unequal, equal = measure(tuned(tmp_path / "a", full=False)), measure(tuned(tmp_path / "b"))
    said = [TunedUnequally(((3, ("original", "reduced")), (0, ("full",))))]
    for facts in (deviations(unequal), remarks(unequal)):
        assert of_class(facts, TunedUnequally) == said
        assert of_class(facts, Untuned) == []  # told as tuned unequally
    assert of_class([*deviations(equal), *remarks(equal)], TunedUnequally) == []
    assert of_class(remarks(equal), Untuned) == []


def test_methods_of_one_rate_each_are_not_tuned(tmp_path: Path) -> None:
    shapes = {"each one": QUIET, "sweep": QUIET, "one method": replace(QUIET, variants={"lora": VARIANTS["original"]})}
    other = replace(VARIANTS["original"], methods="[{train.lora: {learning_rate: 1.0e-3}}]")
    shapes["sweep"] = replace(QUIET, variants={**VARIANTS, "other": other})
    found = {}
    for name, shape in shapes.items():
        (tmp_path / name).mkdir()
        found[name] = of_class(remarks(measure(make_results(tmp_path / name, shape))), Untuned)
    assert found == {"each one": [Untuned((("train.full", 3e-5), ("train.lora", 3e-4)))], "sweep": [], "one method": []}


# Training.


def with_train_loss(results: Results, loss: Callable[[float], float]) -> Findings:
    for record in (record for cell in results.cells for record in cell.methods):
        file = record.path / "curves.jsonl"
        if file.exists():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in (row for row in rows if "train_loss" in row):
                row["train_loss"] = loss(row["epoch"]) + 0.05 * math.sin(7 * row["step"])
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return measure(results)


def test_of_a_single_evaluation_the_train_loss_tells_that_a_training_was_short(tmp_path: Path) -> None:
    results = make_results(tmp_path, QUIET)
    falling = with_train_loss(results, lambda epoch: 5 - epoch)
    assert short_training(falling.groups[0]) == [TrainingShort((), (FULL, LORA, REDUCED))]
    assert LossStillFalling("train", (FULL, LORA, REDUCED)) in training_notes(falling, falling.groups[0])
    flat = with_train_loss(results, lambda epoch: 4.0)
    assert short_training(flat.groups[0]) == []


def test_overfitting_is_told_from_a_loss_that_still_falls(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, epochs=3))
    findings = measure(results)
    every = (FULL, LORA, REDUCED)
    assert training_notes(findings, findings.groups[0]) == [LossStillFalling("validation", every), BaseDropoutOn((0.1,))]
    assert short_training(findings.groups[0]) == [TrainingShort(every, ())]
    for record in (record for cell in results.cells for record in cell.methods):
        file = record.path / "curves.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if "validation_loss" not in line]
            for third, loss in enumerate((4.0, 3.9, 4.2), start=1):
                step = third * len(lines) // 3 if third < 3 else 36
                row = {"step": step, "epoch": step / 12, "seconds": 1, "tokens": step * 3600, "validation_loss": loss}
                lines.append(json.dumps(row))
            file.write_text("\n".join(lines) + "\n")
    findings = measure(results)
    facts = training_notes(findings, findings.groups[0])
    assert of_class(facts, Overfitted) == [Overfitted(entrant, (2,), 3) for entrant in every]
    assert of_class(facts, LossStillFalling) == []


def test_an_adapter_that_was_trained_beside_fewer_bits_is_told_with_what_merging_changed(tmp_path: Path) -> None:
    def losses(cell: Cell) -> dict[str, Any]:
        packed = cell.variant == "original"
        return {"packed_validation_loss": 4.0 + 0.1 * (cell.seed or 0), "merged_validation_loss": 3.9} if packed else {}

    results = changed(make_results(tmp_path, replace(SMALL, seeds=(0, 2))), losses)
    for record in (record for cell in results.cells for record in cell.methods):
        record.config["method"] = {"load": "nf4"}
    findings = measure(results)
    (fact,) = of_class(training_notes(findings, findings.groups[0]), MergedFromPacked)
    assert fact == MergedFromPacked(LORA, "nf4", pytest.approx(4.1), pytest.approx(3.9))


def test_fewer_bits_that_save_nothing_are_told(tmp_path: Path) -> None:
    variants = dict(VARIANTS)
    original = variants["original"].methods.removesuffix("]")
    variants |= {
        name: replace(variants["original"], methods=f"{original}, {{quantize.{name}: {{}}}}]", parameters=parameters)
        for name, parameters in (("int8", 7_073_728), ("nf4", 6_000_000))
    }
    findings = measure(make_results(tmp_path, replace(SMALL, variants=variants)))
    (fact,) = of_class(remarks(findings), NotSmaller)
    assert (fact.entrant.variant, fact.made_of, fact.where) == ("int8", LORA, None)
    assert fact.num_bytes == fact.bytes_before


def test_validation_that_chose_something_is_no_fair_judge(tmp_path: Path) -> None:
    shapes = {
        "validation": replace(QUIET, splits=("validation",)),
        "test": QUIET,
        "untrained": replace(QUIET, splits=("validation",), variants={"cut": Truth("[{prune.blocks: {count: 1}}]", 5.0)}),
    }
    found = {}
    for name, shape in shapes.items():
        (tmp_path / name).mkdir()
        findings = measure(make_results(tmp_path / name, shape))
        found[name] = chosen_on_validation(findings, findings.groups[0])
    findings = measure(tuned(tmp_path / "tuned", splits=("validation",)))
    found["tuned"] = chosen_on_validation(findings, findings.groups[0])
    assert found == {
        "validation": [RankedOnValidation(("weights",))],
        "test": [],
        "untrained": [],
        "tuned": [RankedOnValidation(("weights", "values"))],
    }


def test_the_share_of_trained_parameters_is_told_where_it_is_not_all(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, SMALL))
    assert trained_shares(findings, findings.groups[0]) == [
        PartTrained((LORA,), 73_728, 7_073_728),
        PartTrained((REDUCED,), 61_440, 6_271_520),
    ]


def test_blocks_that_were_chosen_by_measuring_are_told(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, QUIET))
    assert block_facts(findings, findings.groups[0]) == []
    choice = BlockChoice((("reduced", None),), (1,), 4, "loss", "all sets", 1000, 1000, 30, ())
    findings = replace(findings, block_choices={("novels", "news"): [choice]})
    assert block_facts(findings, findings.groups[0]) == [BlocksChosen(choice)]


# The whole study.


@pytest.mark.parametrize(("seeds", "facts"), [((0,), [FewSeeds(1)]), ((0, 1), [FewSeeds(2)]), ((0, 1, 2), [])])
def test_what_the_number_of_seeds_allows_to_say(tmp_path: Path, seeds: tuple[int, ...], facts: list[Fact]) -> None:
    findings = measure(make_results(tmp_path, replace(QUIET, seeds=seeds, documents=6)))
    assert of_class(remarks(findings), FewSeeds) == facts


def test_disturbed_times_are_told_and_quiet_ones_not(tmp_path: Path) -> None:
    variants = {name: VARIANTS[name] for name in ("base", "original", "reduced")}
    results = make_results(tmp_path, replace(QUIET, variants=variants, evaluations=("perplexity", "latency")))
    quiet = measure(results)
    assert disturbed_times(quiet, quiet.groups[0]) == {}

    def slow(cell: Cell) -> Cell:
        record = cell.evaluations["latency"]
        times = {name: (1 if name == "threads" else 3) * value for name, value in record.metrics.items()}
        record = replace(record, metrics=times) if cell.variant == "base" else record
        return replace(cell, evaluations={**cell.evaluations, "latency": record})

    busy = measure(replace(results, cells=tuple(map(slow, results.cells))))
    factors = disturbed_times(busy, busy.groups[0])
    assert list(factors) == ["ms_per_token_median"]
    assert factors["ms_per_token_median"] == pytest.approx(3, rel=0.1)
    assert of_class(remarks(busy), TimesDisturbed) == [TimesDisturbed(None, tuple(factors.items()))]


def test_a_latency_that_waited_for_a_core_is_told(tmp_path: Path) -> None:
    variants = {name: VARIANTS[name] for name in ("base", "original", "reduced")}
    results = make_results(tmp_path, replace(QUIET, variants=variants, evaluations=("perplexity", "latency")))

    def beside(share: float) -> dict[str, float]:
        def waited(cell: Cell) -> Cell:
            record = cell.evaluations["latency"]
            cpu = {f"cpu_{name}": share * value for name, value in record.metrics.items() if "ms" in name}
            return replace(cell, evaluations={**cell.evaluations, "latency": replace(record, metrics=record.metrics | cpu)})

        findings = measure(replace(results, cells=tuple(map(waited, results.cells))))
        return disturbed_times(findings, findings.groups[0])

    assert beside(0.99) == {}
    assert beside(0.5) == {"ms_per_token_median": pytest.approx(2)}


def test_sheets_of_other_texts_are_told(tmp_path: Path) -> None:
    findings = measure(rated(tmp_path, OF_PEOPLE, 4 * PROMPTS + 7, ratings=fair))
    assert of_class(remarks(findings), SheetUnread) == [SheetUnread(rater, 7, 4 * PROMPTS + 7) for rater in PEOPLE]


# Deviations.


def test_a_training_that_went_otherwise_is_told(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    first = next(cell for cell in results.cells if cell.methods)
    odd: dict[str, Any] = {"stopped_early": True, "out_of_memory": 2, "flex_failure": "no kernel", "repeated_steps": 3}
    odd |= {"steps": 7, "best_step": 4, "train_tokens": 999}
    facts = deviations(measure(changed(results, lambda cell: odd if cell is first else {})))
    run = Run(FULL, 0, alone=True)
    of_run = of_class(facts, RunDeviates)
    assert [(fact.run, fact.metric) for fact in of_run] == [(run, metric) for metric in list(odd)[:4]]
    assert of_run[0].metrics["steps"] == 7
    assert of_class(facts, BestWeightsKept) == [BestWeightsKept(((run, 4, 7),))]
    unequal = of_class(facts, BudgetUnequal)
    assert [(fact.metric, fact.values[0]) for fact in unequal] == [
        ("train_tokens", (999.0, ("full",))),
        ("steps", (7.0, ("full",))),
    ]
    plain = deviations(measure(results))
    assert plain == [RecordsLeftOut("news", (("records_empty", "", 2),), completes=False, drops_empty=False)]


def test_only_runs_of_one_seed_have_to_see_the_same_tokens(tmp_path: Path) -> None:
    results = changed(make_results(tmp_path, SMALL), lambda cell: {"train_tokens": 1000 + (cell.seed or 0)})
    assert of_class(deviations(measure(results)), BudgetUnequal) == []


def test_the_budget_of_a_variant_is_that_of_all_its_trainings(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    facts = of_class(deviations(measure(changed(results, lambda _: {}, twice="full"))), BudgetUnequal)
    assert [fact.metric for fact in facts] == ["train_tokens", "epochs_done", "steps"]
    assert facts[2].values == ((48.0, ("full",)), (24.0, ("original", "reduced")))
    only = changed(results, lambda cell: {"train_tokens_read": 5} if cell.variant == "full" else {})
    assert of_class(deviations(measure(only)), BudgetUnequal) == []  # the others do not tell


def test_bases_are_held_to_the_same_steps(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, bases=("novels", "other")))
    assert of_class(deviations(measure(results)), BasesUnequal) == []
    facts = deviations(measure(changed(results, lambda cell: {"steps": 7} if cell.base == "other" else {})))
    assert of_class(facts, BasesUnequal) == [BasesUnequal("news", (("novels", (24.0,)), ("other", (7.0,))))]


def test_trainings_of_several_machines_are_told(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    cells = tuple(
        replace(cell, methods=tuple(replace(record, machine={"processor": cell.variant}) for record in cell.methods))
        for cell in results.cells
    )
    assert of_class(deviations(measure(replace(results, cells=cells))), SeveralMachines) == [SeveralMachines(None, 3)]


def test_questions_that_are_too_long_are_told_by_base_and_where_not_alike_by_variant(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, bases=("novels", "other"), evaluations=("perplexity", "qa")))

    def skipping(cell: Cell) -> Cell:
        counts = {"questions": 8, "skipped_questions": 2} if cell.base == "novels" else {"questions": 10, "cut_questions": 3}
        counts = {"questions": 10} if cell.base == "other" and cell.variant == "base" else counts
        qa = replace(cell.evaluations["qa"], metrics={**cell.evaluations["qa"].metrics, **counts})
        return replace(cell, evaluations={**cell.evaluations, "qa": qa})

    findings = measure(replace(results, cells=tuple(map(skipping, results.cells))))
    trained = tuple(name for name in findings.study.variants if name != "base")
    assert of_class(deviations(findings), QuestionsTooLong) == [
        QuestionsTooLong("novels", "qa", 2, 0, 10, "skip"),
        QuestionsTooLong("other", "qa", 0, 3, 10, "skip", trained),
    ]


def test_bases_that_did_not_read_the_same_are_compared_on_what_both_did(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, bases=("novels", "other"), evaluations=("perplexity",)))
    assert of_class(deviations(measure(results)), ComparedOnShared) == []
    for cell in results.cells:
        file = cell.evaluations["perplexity"].path / "scores.parquet"
        scores = pd.read_parquet(file)
        left_out = sorted(scores.document.unique())[: 3 if cell.base == "other" else 1]
        scores[~scores.document.isin(left_out)].to_parquet(file, index=False)
    findings = measure(results)
    bits = Quantity("perplexity", "test", "bits_per_byte")
    (shared,) = of_class(deviations(findings), ComparedOnShared)
    own = {entrant.base: estimates[bits].n_examples for entrant, estimates in findings.estimates.items() if bits in estimates}
    assert own["novels"] - own["other"] == 2
    assert shared == ComparedOnShared("news", "perplexity", "test", own["other"], tuple(own.items()))
    across = [
        difference.n_examples
        for (one, two, quantity), difference in findings.differences.items()
        if one.base != two.base and quantity == bits
    ]
    assert set(across) == {own["other"]}


def test_what_was_too_long_is_told_beside_the_recommendation_where_it_is_much(tmp_path: Path) -> None:
    results, facts = make_results(tmp_path, SMALL), {}
    for skipped in (6, 7):
        kept = {"kept_examples_train": 96 - skipped, "kept_examples_validation": 12, "skipped_examples": skipped}
        tokens = {key: replace(record, metrics={**record.metrics, **kept}) for key, record in results.tokens.items()}
        findings = measure(replace(results, tokens=tokens))
        by_split, rule = (("train", skipped), ("validation", 0)), findings.study.data["news"].length_rule
        facts[skipped] = ExamplesLeftOut("novels", "news", skipped, 512, 120, by_split, rule)
        assert of_class(deviations(findings), ExamplesLeftOut) == [facts[skipped]]
        assert of_class(remarks(findings), ExamplesLeftOut) == [facts[skipped]] * (skipped > 6)
    assert facts[6].share == 0.05


def test_what_makes_documents_less_than_independent_is_told(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, leakage="allow"))
    study = results.study
    plain = study.model_copy(update={"data": {"news": study.data["news"].model_copy(update={"document": None})}})
    of_data = {"documents_train": 80, "documents_validation": 20, "documents_test": 20, "records_used": 120}
    of_data |= {"records_largest_document": 1, "groups": [["session", 40, 120]]}
    found = {"pairs": 9, "documents_touched_train": 9, "documents_alike_validation": 1, "documents_alike_test": 8}

    def with_metrics(data: dict[str, Any], study: Study) -> Findings:
        parts = ((results.data, data), (results.leakage, found))
        of_both = [{name: replace(record, metrics=new) for name, record in part.items()} for part, new in parts]
        return measure(replace(results, study=study, data=of_both[0], leakage=of_both[1]))

    findings = with_metrics(of_data, plain)
    told = remarks(findings)
    assert of_class(told, GroupUnnamed) == [GroupUnnamed("news", "session", 40, 120)]
    assert of_class(told, DocumentsAlike) == [DocumentsAlike("news", "test", 8, 20)]
    assert of_class(told, RecordsShared) == [RecordsShared("news", 9, removed=False)]
    assert of_class(told, OneDocument) == []
    assert of_class(data_notes(findings), DocumentsCounted) == [DocumentsCounted("news", None, 120, 120, 1)]
    assert "session" in say(GroupUnnamed("news", "session", 40, 120))
    findings = with_metrics(of_data | {"records_largest_document": 70, "groups": []}, study)
    told = remarks(findings)
    assert of_class(told, OneDocument) == [OneDocument("news", "title", 70, 120)]
    assert of_class(told, GroupUnnamed) == of_class(told, RecordsShared) == []
    counted = say(DocumentsCounted("news", "title", 120, 40, 6))
    assert counted == "120 records of `news`, from 40 documents by `title`, at most 6 of one."
    assert say(DocumentsCounted("news", None, 120, 120, 1)) == "120 records of `news`, each a document of its own."


def test_leaked_texts_are_told_and_their_marks_explained(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, replace(SMALL, leakage="allow")))
    assert of_class(remarks(findings), LeakedFigures) == [LeakedFigures("news", ("qa", "test"))]
    assert of_class(deviations(findings), LeakageAllowed) == [LeakageAllowed("news", 2, (("test", 1),), (("qa", 3),))]
    assert Definition(LEAKED) in notes(findings)


def test_what_the_data_was_checked_for_stands_with_it(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, leakage="allow"))
    assert data_notes(measure(results)) == []
    none = {"pairs": 0, "items_touched_qa": 0, "documents_touched_test": 0}
    clean = {name: replace(record, metrics=none) for name, record in results.leakage.items()}
    data = {
        name: replace(record, metrics={**record.metrics, "documents_unused": 9, "records_empty": 0})
        for name, record in results.data.items()
    }
    findings = measure(replace(results, leakage=clean, data=data))
    assert data_notes(findings) == [DocumentsUnused("news", 9), NoLeakage("news", with_items=True, after_removal=False)]
    assert deviations(findings) == [NoDeviations()]


# What was compared, and the notes.


def test_what_was_compared_names_base_training_machine_versions_and_date(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, SMALL))
    study = findings.study
    machine = {name: value for name, value in MACHINE.items() if value is not None}
    versions = {"paretune": "0.1.0", "python": "3.12.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
    assert setup(findings) == [
        BaseUsed("novels", study.bases["novels"], 7_000_000.0),
        TrainedAlike(study.train, (0, 1)),
        PrecisionUsed(("float32",), "float32"),
        BaselineUsed("full"),
        MachinesUsed((machine,)),
        RunOn(("2026-08-20",), tuple((name, (version,)) for name, version in versions.items())),
    ]


def test_a_base_that_was_quantized_is_told_by_its_format(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    lock = {**results.lock, "bases": {"novels": {"config": {"paretune_dequantized_from": "GGUF Q4_1"}}}}
    base = setup(measure(replace(results, lock=lock)))[0]
    assert "7,000,000 parameters, weights dequantized from GGUF Q4_1." in say(base)


def test_a_variant_that_failed_is_missing_without_what_depends_on_it(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    missing = ("train.lora-0123abcd", "evaluate.qa-4567cdef")
    cells = tuple(
        replace(cell, methods=(), evaluations={}, missing=missing) if cell.variant == "reduced" else cell
        for cell in results.cells
    )
    findings = measure(replace(results, cells=cells))
    assert of_class(notes(findings), StagesMissing) == [StagesMissing(REDUCED, missing[:1], models=True)]
    assert of_class(deviations(findings), NoDeviations) == []


def test_notes_are_of_what_the_study_has(tmp_path: Path) -> None:
    terms, answered = {}, {}
    for name, shape in {"plain": replace(SMALL, seeds=(0,), evaluations=("perplexity",)), "whole": SMALL}.items():
        (tmp_path / name).mkdir()
        facts = notes(measure(make_results(tmp_path / name, shape)))
        terms[name] = [(fact.term, fact.several_seeds) for fact in of_class(facts, Definition)]
        answered[name] = of_class(facts, AnswersDefined)
    assert [term for term, _ in terms["plain"]] == ["interval", "difference", "p", "margin", "loss", "files"]
    assert [several for _, several in (terms["plain"][1], terms["whole"][1])] == [False, True]
    assert answered == {"plain": [], "whole": [AnswersDefined(("accuracy", "log_likelihood", "exact_match"))]}


def audited(folder: Path, rows: list[dict[str, Any]], **metrics: int) -> Findings:
    results = make_results(folder, SMALL)
    ((name, data),) = results.data.items()
    place = folder / "audit"
    place.mkdir()
    (place / "audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    audit: Record = replace(data, kind="audit", metrics={}, path=place)
    return measure(replace(results, data={name: replace(data, metrics={**data.metrics, **metrics})}, audit={name: audit}))


def test_what_an_audit_found_is_told_beside_its_table(tmp_path: Path) -> None:
    rows = [
        {"split": "train", "finding": finding, "count": 1, "of": 100, "records": [], "detail": detail}
        for finding, detail in (
            *(("email", ""), ("encoding", ""), ("long", "over 9,000 characters"), ("answer_in_prompt", "title")),
            ("labels", "type: 2 labels, `a` 60, `b` 40"),
        )
    ]
    assert audit(audited(tmp_path, rows)) == [
        LabelsCounted("news", "type", "2 labels, `a` 60, `b` 40", 100),
        Definition("length"),
        Definition("answers in prompts"),
        CleaningProposed("news", "encoding: fix, mask: [email]"),
    ]


def test_what_cleaning_did_is_told(tmp_path: Path) -> None:
    findings = audited(tmp_path, [], fixed=3, masked_email=1, masked_phone=1200)
    assert audit(findings) == [DataCleaned("news", 3, (("email", 1), ("phone", 1200))), AuditClean("news")]
    (tmp_path / "none").mkdir()
    assert audit(measure(make_results(tmp_path / "none", SMALL))) == []
