"""What questions, tasks, ratings and other text can tell, of studies whose truth is known."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest

from paretune.analysis.answers import (
    AnswersUndecided,
    AnswersUnended,
    BelowChance,
    Confounded,
    ForgettingUnknown,
    Forgotten,
    LabelsUnseen,
    LikeCommonest,
    LikeGuessing,
    NothingForgotten,
    RatersDisagree,
    ScoresDiffer,
    ScoresUndecided,
    WrittenWorse,
    answer_facts,
    confounded_facts,
    forgetting_facts,
    forgotten,
    learned,
    rating_facts,
)
from paretune.analysis.findings import Fact, Findings
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Quantity
from paretune.data.sheets import Text
from paretune.evaluate.ratings import Rating, write_ratings
from paretune.pipeline.records import Results
from paretune.study.study import load_study
from tests.analysis.synthetic import VARIANTS, Shape, _record, make_results, write_scores

FactT = TypeVar("FactT", bound=Fact)
Rate = Callable[[str, int, str, str, int], int | None]
"""Variant, prompt, rater, criterion and occasion to a rating."""
BASE, FULL, LORA, REDUCED = (Entrant("novels", "news", name) for name in VARIANTS)


def of_class(facts: list[Fact], kind: type[FactT]) -> list[FactT]:
    return [fact for fact in facts if isinstance(fact, kind)]


def with_answers(tmp_path: Path, num: int = 10, **right: int) -> Findings:
    """A study of `num` questions of which each variant answers the first `right` ones."""
    variants = {name: VARIANTS[name] for name in ("original", "reduced")}
    results = make_results(tmp_path, Shape(variants, (0,), documents=40, epochs=1, evaluations=("perplexity", "qa")))
    for cell in results.cells:
        rows = [
            {"split": "", "document": str(index), "example": str(index), "metric": "accuracy", "weight": 1.0}
            | {"value": float(index < right[cell.variant])}
            for index in range(num)
        ]
        write_scores(cell.evaluations["qa"].path, rows)
    return measure(results)


def answers(findings: Findings) -> list[Fact]:
    return answer_facts(findings, findings.groups[0])


def test_two_answers_apart_are_no_difference(tmp_path: Path) -> None:
    (fact,) = of_class(answers(with_answers(tmp_path, original=7, reduced=5)), AnswersUndecided)
    assert (fact.num_questions, fact.worst, fact.best) == (10, (REDUCED, 0.5), (LORA, 0.7))
    assert fact.widest is not None
    assert (fact.widest.variant, fact.widest.reference, fact.widest.p) == (REDUCED, LORA, 0.5)


def test_seven_answers_apart_are_one(tmp_path: Path) -> None:
    facts = answers(with_answers(tmp_path, original=8, reduced=1))
    (fact,) = of_class(facts, ScoresDiffer)
    assert fact.num_questions == 10
    assert [(each.variant, each.verdict, each.variant_mean) for each in fact.differences] == [(REDUCED, "worse", 0.1)]
    assert not of_class(facts, AnswersUndecided)


def test_equal_answers_are_said_to_be_equal(tmp_path: Path) -> None:
    (fact,) = of_class(answers(with_answers(tmp_path, original=4, reduced=4)), AnswersUndecided)
    assert fact.worst[1] == fact.best[1] == 0.4
    assert fact.widest is None


def test_answers_that_guessing_gives_are_said_to_be_so(tmp_path: Path) -> None:
    (fact,) = of_class(answers(with_answers(tmp_path, original=9, reduced=3)), LikeGuessing)
    assert (fact.chance, fact.num_questions) == (0.25, 10)
    assert fact.answers == ((REDUCED, 0.3, pytest.approx(0.718, abs=1e-3)),)
    (tmp_path / "known").mkdir()
    assert not of_class(answers(with_answers(tmp_path / "known", original=9, reduced=8)), LikeGuessing)


def test_answers_far_below_chance_are_remarked_on(tmp_path: Path) -> None:
    facts = answers(with_answers(tmp_path, original=9, reduced=0, num=20))
    (fact,) = of_class(facts, BelowChance)
    assert (fact.chance, fact.num_questions) == (0.25, 20)
    assert fact.answers == ((REDUCED, 0.0, pytest.approx(0.75**20)),)
    (tmp_path / "few").mkdir()
    assert not of_class(answers(with_answers(tmp_path / "few", original=9, reduced=0)), BelowChance)  # p = 0.056


TASKS = """tasks: {summary: {completion: "{{ s }}", score: [rouge_l]}, kind: {completion: "{{ k }}", labels: from_train}}"""


def test_the_tasks_of_a_dataset_are_told_with_their_labels(tmp_path: Path) -> None:
    results = make_results(tmp_path, Shape(seeds=(0,), documents=40, evaluations=("perplexity",), epochs=1))
    text = results.study_file.read_text(encoding="utf-8").replace('text: "{{ content }}"', TASKS)
    results.study_file.write_text(text, encoding="utf-8")
    cells = []
    for index, cell in enumerate(results.cells):
        record = replace(cell.evaluations["size"], path=tmp_path / f"tasks-{index}")
        record = replace(record, metrics={"labels_unseen_kind": 7, "answers_test_kind": 40, "answers_test_summary": 40})
        record.path.mkdir()
        gain = 0.3 if cell.variant == "full" else 0.0
        rows = [
            {"split": "test", "weight": 1.0, "document": str(number), "example": f"{number}-{task}", "task": task}
            | {"metric": metric, "value": value}
            for number in range(40)
            for task, metric, value in (
                ("summary", "rouge_l", 0.2 + gain + 0.01 * ((number + 3 * index) % 7)),
                ("kind", "accuracy", float(number % 10 < 3 + 20 * gain)),
                ("kind", "accuracy_generated", float(number % 10 < 30 * gain)),
            )
        ]
        write_scores(record.path, rows)
        written = [{"task": "kind", "document": "", "prompt": "", "text": "", "reference": f" kind {n % 3}"} for n in range(3)]
        ends = {"base": ("max_new_tokens", "context", "stop"), "original": ("max_new_tokens", "eos", "eos")}
        written = [row | {"stopped_by": ends.get(cell.variant, ("eos",) * 3)[n]} for n, row in enumerate(written)]
        (record.path / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
        cells.append(replace(cell, evaluations={**cell.evaluations, "tasks": record}))
    findings = measure(replace(results, study=load_study(results.study_file), cells=tuple(cells)))
    facts, (group,) = answers(findings), findings.groups
    # The study asks for answers, so the score of the first task decides.
    assert (group.headline, group.decided_by) == (Quantity("summary", "test", "rouge_l"), "answers")
    differences = [findings.difference(entrant, group.baseline, group.headline) for entrant in (BASE, LORA, REDUCED)]
    assert {each.verdict for each in differences if each is not None} == {"worse"}
    (form,) = of_class(facts, WrittenWorse)
    assert form == WrittenWorse("kind", tuple((entrant, 0.3, 0.0) for entrant in (BASE, LORA, REDUCED)))  # but not `full`
    (unended,) = of_class(facts, AnswersUnended)
    assert unended.answers == ((BASE, 2, 3),)
    assert of_class(facts, LabelsUnseen) == [LabelsUnseen("kind", 7, 40, listed=False)]
    (commonest,) = of_class(facts, LikeCommonest)
    assert (commonest.label, commonest.share) == ("kind 0", pytest.approx(1 / 3))
    assert [entrant for entrant, _ in commonest.accuracies] == [BASE, LORA, REDUCED]


RISE = {"base": 0.0, "full": 0.4, "original": -0.1}
"""True forgetting in bits per byte."""


def forgetting(root: Path, documents: int) -> Findings:
    """Three variants of two seeds, scored on other text; seeds of a trained variant lie 0.01 bits apart."""
    extra, rng = "  forgetting: {path: other.txt}\n", np.random.default_rng(0)
    variants = {name: VARIANTS[name] for name in RISE}
    results = make_results(root, Shape(variants, documents=12, epochs=1, evaluations=("perplexity",), extra=extra))
    before, cells = 2.5 + rng.normal(0, 0.3, documents), []
    for index, cell in enumerate(results.cells):
        record = replace(cell.evaluations["size"], path=root / f"forgetting-{index}")
        record.path.mkdir()
        rise = np.full(documents, RISE[cell.variant])
        rise += 0 if cell.seed is None else rng.normal(0.01 * cell.seed, 0.02, documents)
        rows = [
            {"split": "", "document": str(one), "example": str(one), "weight": 100.0, "metric": metric, "value": value}
            for one in range(documents)
            for metric, value in (("bits_per_byte", before[one] + rise[one]), ("forgetting", rise[one]))
            if metric == "bits_per_byte" or cell.seed is not None
        ]
        write_scores(record.path, rows)
        cells.append(replace(cell, evaluations={**cell.evaluations, "forgetting": record}))
    return measure(replace(results, cells=tuple(cells)))


def test_what_is_forgotten_is_told_with_what_was_learned(tmp_path: Path) -> None:
    findings = forgetting(tmp_path, documents=20)
    group = findings.groups[0]
    told, kept = forgetting_facts(findings, group)
    assert isinstance(told, Forgotten)
    ((entrant, lost, gained),) = told.changes
    assert (entrant, lost) == (FULL, forgotten(findings, group, FULL, "forgetting"))
    assert lost.mean == pytest.approx(0.4, abs=0.03)
    assert lost.low > 0
    assert gained == learned(findings, group, FULL)
    assert gained is not None
    assert gained.mean > 0
    assert kept == NothingForgotten("forgetting", (LORA,))
    assert learned(findings, group, BASE) is None


def test_few_documents_are_said_to_be_few_and_no_interval_is_made_up(tmp_path: Path) -> None:
    findings = forgetting(tmp_path, documents=4)
    group = findings.groups[0]
    assert forgetting_facts(findings, group) == [ForgettingUnknown("forgetting", 4)]
    change = forgotten(findings, group, FULL, "forgetting")
    assert change is not None
    assert not change.has_interval


PEOPLE, PROMPTS = ("anna", "ben"), 30
GOOD = {"base": 1, "full": 4, "original": 3, "reduced": 3}
OF_PEOPLE = "  ratings: {files: [anna.csv, ben.csv]}\n"
OF_JUDGE = '  judge: {url: "http://localhost/v1", model: m, repeats: 2}\n'


def fair(variant: str, prompt: int, rater: str, criterion: str, occasion: int) -> int:
    """By quality and prompt; the raters differ on one prompt of ten."""
    return min(5, GOOD[variant] + prompt % 2 + (prompt % 10 == 0 and rater == "ben"))


def mixed(variant: str, prompt: int, rater: str, criterion: str, occasion: int) -> int:
    """Fair in coherence, guessed in relevance."""
    draw = np.random.default_rng([sum(map(ord, f"{variant}{rater}{criterion}")), prompt, occasion])
    return fair(variant, prompt, rater, criterion, occasion) if criterion == "coherence" else int(draw.integers(1, 6))


def rated(tmp_path: Path, extra: str = OF_PEOPLE, sheet: int = 4 * PROMPTS, **rates: Rate) -> Results:
    """A study with one seed whose evaluations in `rates` have rated all texts: the people, or the judge."""
    results = make_results(tmp_path, Shape(evaluations=("perplexity", "generate"), seeds=(0,), epochs=1, extra=extra))
    cells = []
    for cell in results.cells:
        evaluations = dict(cell.evaluations)
        for name, rate in rates.items():
            raters = PEOPLE if name == "ratings" else (name,)
            metrics = {f"items_{rater}": sheet for rater in raters} if name == "ratings" else {}
            record = _record(tmp_path, f"evaluate.{name}", {}, metrics)
            found = [
                (text, Rating(text.item(), rater, occasion, criterion, rate(cell.variant, n, rater, criterion, occasion)))
                for n in range(PROMPTS)
                for text in [Text("generate", f"generate {n}", f"generate {n}", "", f"p{n}", f"{cell.variant} {n}")]
                for rater in raters
                for occasion in range(2 if name == "judge" else 1)
                for criterion in ("coherence", "relevance")
            ]
            write_ratings(found, record.path)
            evaluations[name] = record
        cells.append(replace(cell, evaluations=evaluations))
    return replace(results, cells=tuple(cells))


def ratings(results: Results) -> list[Fact]:
    findings = measure(results)
    return rating_facts(findings, findings.groups[0])


def test_ratings_that_raters_agree_on_are_told_and_the_others_withheld(tmp_path: Path) -> None:
    coherence, relevance = ratings(rated(tmp_path, ratings=mixed))
    assert isinstance(coherence, ScoresDiffer)
    assert {each.variant for each in coherence.differences} == {BASE, LORA, REDUCED}
    assert coherence.trust is not None
    assert coherence.trust.reliable
    assert isinstance(relevance, RatersDisagree)
    assert (relevance.quantity.metric, relevance.trust.withheld) == ("relevance", True)


def test_a_judge_is_held_to_what_people_say(tmp_path: Path) -> None:
    facts = ratings(rated(tmp_path, OF_PEOPLE + OF_JUDGE, ratings=fair, judge=mixed))
    assert [type(fact) for fact in facts] == [ScoresDiffer, ScoresDiffer, ScoresDiffer, RatersDisagree]
    assert [fact.trust.between for fact in facts[2:]] == ["judge and people"] * 2  # type: ignore[attr-defined]


def test_a_judge_alone_and_equal_ratings_are_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    alone = ratings(rated(tmp_path / "judge", OF_JUDGE, judge=fair))
    assert [fact.trust.between for fact in of_class(alone, ScoresDiffer) if fact.trust] == ["judge alone"] * 2
    equal = of_class(ratings(rated(tmp_path, ratings=lambda *_: 3)), ScoresUndecided)
    assert [(fact.widest.mean, fact.trust is not None) for fact in equal] == [(0.0, True)] * 2
    (tmp_path / "none").mkdir()
    assert ratings(rated(tmp_path / "none", "")) == []


@pytest.mark.parametrize(
    ("table", "together"),
    [
        # Kinds of question by difficulty in a set of press questions: every easy one is a choice.
        ([[10, 0, 0], [0, 7, 3]], False),
        ([[10, 0], [0, 10]], False),
        # 0-a, a-1, 1-b, b-2, 2-c: a chain, with an empty cell in every row.
        ([[4, 0, 0], [4, 4, 0], [0, 4, 4]], True),
        ([[4, 4, 0, 0], [4, 4, 0, 0], [0, 0, 4, 4]], False),
        ([[2, 0, 0, 0], [2, 2, 0, 0], [0, 2, 2, 0], [0, 0, 2, 2]], True),
        ([[0, 0, 0, 2], [0, 0, 2, 2], [0, 2, 2, 0], [2, 2, 0, 0]], True),
    ],
)
def test_effects_are_separable_where_the_cells_hang_together(tmp_path: Path, table: list[list[int]], together: bool) -> None:
    findings = with_answers(tmp_path, original=7, reduced=5)
    cells = [(row, column) for row, counts in enumerate(table) for column, num in enumerate(counts) for _ in range(num)]
    for first, second in ((0, 1), (1, 0)):
        values = {
            name: {example: str(cell[index]) for example, cell in enumerate(cells)}
            for name, index in (("kind", first), ("topic", second))
        }
        group = replace(findings.groups[0], slice_values={"qa": values})
        assert bool(confounded_facts(findings, group)) is not together


def test_confounded_fields_are_told(tmp_path: Path) -> None:
    results = make_results(tmp_path, Shape(seeds=(0,)))
    for cell in results.cells:
        file = cell.evaluations["qa"].path / "scores.parquet"
        scores = pd.read_parquet(file)
        number = scores.example.str.extract(r"(\d+)", expand=False).astype(int)
        scores["slice.kind"] = number.mod(2).map({0: "choice", 1: "fact"})
        scores["slice.topic"] = number.floordiv(2).mod(2).map({0: "cars", 1: "people"})
        # As good as the kind: one question of it is otherwise.
        scores["slice.length"] = scores["slice.kind"].mask(number == number.min(), "fact")
        scores.to_parquet(file)
    findings = measure(results)
    facts = confounded_facts(findings, findings.groups[0])["qa"]
    assert [(fact.fields, fact.num_empty, fact.num_combinations) for fact in facts if isinstance(fact, Confounded)] == [
        (("difficulty", "kind"), 2, 4),
        (("difficulty", "length"), 1, 4),
        (("kind", "length"), 1, 4),
    ]
