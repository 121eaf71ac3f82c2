"""What the report says of tuning: trials, the cost beside the training, unequal amounts, and choices at the end of a list."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.analysis.caveats import chosen_on_validation, untuned
from paretune.analysis.conclude import export_command, remarks
from paretune.analysis.deviations import deviations
from paretune.analysis.document import Bullets, Table
from paretune.analysis.measured import Measured, headline, measure
from paretune.analysis.scores import Place
from paretune.analysis.tables import results_table
from paretune.analysis.tuning import tuning_section, unequal_tuning
from paretune.pipeline.records import Cell, Divergence, Trial, Tuning
from tests.analysis.synthetic import VARIANTS, Shape, make_results

TUNE = "learning_rate: {tune: [1.0e-4, 3.0e-4, 1.0e-3]}"


def studied(root: Path, *, full: bool = True, lora: bool = True, **shape: object) -> Measured:
    """The synthetic study with tuned learning rates, whose trials are not there yet."""
    variants = dict(VARIANTS)
    if full:
        variants["full"] = replace(variants["full"], methods=f"[{{train.full: {{{TUNE}}}}}]")
    if lora:
        for name in ("original", "reduced"):
            variants[name] = replace(variants[name], methods=variants[name].methods.replace("r: 8", f"r: 8, {TUNE}"))
    root.mkdir(exist_ok=True)
    return measure(
        make_results(root, Shape(**{"variants": variants, "documents": 12, "evaluations": ("perplexity",), **shape}))
    )


def with_trials(measured: Measured, variant: str, scores: Sequence[float | None], chosen: int | None) -> Measured:
    """The trials of `variant`, each with the records of another seed, or diverged after 3 steps where it has no score."""
    cells = [cell for cell in measured.results.cells if cell.variant == variant]
    values = ("learning_rate=1e-4", "learning_rate=3e-4", "learning_rate=1e-3")
    trials = tuple(
        Trial(name, divergence=Divergence("step 3: the loss is nan", 3, 0.5))
        if score is None
        else Trial(name, cells[index % len(cells)].methods, score)
        for index, (name, score) in enumerate(zip(values, scores, strict=True))
    )
    tuning = Tuning("novels", "news", variant, 0, trials, chosen)
    return measure(replace(measured.results, tunings=(*measured.results.tunings, tuning)))


def bullets(measured: Measured) -> list[str]:
    section = tuning_section(measured, measured.groups[0])
    assert section is not None
    return [text for block in section.blocks if isinstance(block, Bullets) for text in block.items]


def test_the_section_shows_each_trial_and_the_cost_beside_the_training(tmp_path):
    measured = with_trials(studied(tmp_path, seeds=(0, 1, 2)), "original", [4.2, 4.1, 4.3], 1)
    section = tuning_section(measured, measured.groups[0])
    assert section is not None
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert [(row[1], row[2], row[-1]) for row in table.rows] == [
        ("learning_rate=1e-4", "4.200", ""),
        ("learning_rate=3e-4", "4.100", "chosen"),
        ("learning_rate=1e-3", "4.300", ""),
    ]
    seconds = [trial.methods[-1].metrics["train_seconds"] for trial in measured.results.tunings[0].trials]
    costs = measured.costs[Place("novels", "news", "original")]
    assert costs["tuning_seconds"].by_seed == {0: pytest.approx(seconds[0] + seconds[2])}
    assert costs["tuning_steps"].mean == 72
    assert "`original` is trained with learning_rate=3e-4. Trials that were not chosen took" in bullets(measured)[0]
    table = results_table(measured)
    assert set(table[table["trial"].notna()]["metric"]) == {"loss", "train_seconds", "steps"}
    assert not any("edge" in text for text in bullets(measured))


@pytest.mark.parametrize(
    ("scores", "chosen", "said"),
    [
        ([4.1, 4.2, 4.3], 0, "learning_rate 1e-4, the smallest that was tried; the optimum may lie beyond"),
        ([4.3, 4.2, 4.1], 2, "learning_rate 1e-3, the largest that was tried; the optimum may lie beyond"),
        ([4.3, 4.2, None], 1, None),  # beyond it lies one that diverged
    ],
)
def test_a_choice_at_the_end_of_its_list_is_told(tmp_path, scores, chosen, said):
    measured = with_trials(studied(tmp_path), "original", scores, chosen)
    found = [text for text in remarks(measured) if text.startswith("At the edge of its list: `original`")]
    assert [said in text for text in found] == ([True] if said else [])
    assert said is None or found[0] in bullets(measured)


def test_a_trial_that_diverged_is_told_and_its_time_counted(tmp_path):
    measured = with_trials(studied(tmp_path), "original", [4.2, 4.1, None], 1)
    assert "`original` with learning_rate=1e-3 diverged (step 3: the loss is nan) and has lost." in bullets(measured)
    first = measured.results.tunings[0].trials[0].methods[-1].metrics
    costs = measured.costs[Place("novels", "news", "original")]
    assert costs["tuning_seconds"].mean == pytest.approx(first["train_seconds"] + 0.5)
    assert costs["tuning_steps"].mean == first["steps"] + 3


def test_before_the_choice_nothing_is_said_of_it(tmp_path):
    measured = with_trials(studied(tmp_path), "original", [4.2, 4.1, 4.3], None)
    assert "tuning_seconds" not in measured.costs[Place("novels", "news", "original")]
    assert bullets(measured) == []
    untried = studied(tmp_path / "untried")
    assert tuning_section(untried, untried.groups[0]) is None


def test_unequal_tuning_is_a_deviation_and_equal_is_not(tmp_path):
    unequal, equal = studied(tmp_path / "a", full=False), studied(tmp_path / "b")
    said = "Tuned unequally: `original` and `reduced` over 3 trials and `full` not at all; a difference between them may be"
    for told in (deviations(unequal), remarks(unequal)):
        assert [text.startswith(said) for text in told if "uned" in text] == [True]
    assert list(unequal_tuning(equal)) == []
    assert not any("uned unequally" in text for text in deviations(equal))


def test_the_caveat_of_untuned_rates_knows_tuned_ones(tmp_path):
    assert "not tuned" in next(untuned(studied(tmp_path / "none", full=False, lora=False)))
    assert list(untuned(studied(tmp_path / "lora", full=False))) == []  # told as tuned unequally
    assert list(untuned(studied(tmp_path / "all"))) == []


def test_ranked_on_validation_the_tuning_is_named(tmp_path):
    measured = studied(tmp_path, splits=("validation",))
    (said,) = chosen_on_validation(measured, headline(measured, measured.groups[0]))
    assert "which also chose the weights that were kept and the values that were tuned" in said


def test_the_export_of_a_grid_member_can_be_pasted_into_a_shell(tmp_path):
    measured = studied(tmp_path)
    command = export_command(measured, Place("novels", "news", "rank[r=4]"))
    assert "'rank[r=4]' --to rank-r-4-exported" in command


def changed(measured: Measured, variant: str, change: Mapping[str, float], *, twice: bool = False) -> Measured:
    """The same with other metrics of a variant's training, or two trainings in a row."""

    def other(cell: Cell) -> Cell:
        if cell.variant != variant:
            return cell
        last = cell.methods[-1]
        last = replace(last, metrics={**last.metrics, **change})
        return replace(cell, methods=(*cell.methods[:-1], last, *([last] if twice else [])))

    return measure(replace(measured.results, cells=tuple(map(other, measured.results.cells))))


def test_the_budget_of_a_variant_is_that_of_all_its_trainings(tmp_path):
    measured = studied(tmp_path)
    assert not any("unequal" in text for text in deviations(measured))
    told = " ".join(deviations(changed(measured, "full", {}, twice=True)))
    for word in ("tokens", "optimizer steps", "passes over the examples"):
        assert f"trained with unequal {word}: " in told
    assert "72 (`full`) and 36 (`original` and `reduced`)" in told
    told = " ".join(deviations(changed(measured, "full", {"train_tokens_read": 5})))
    assert "unequal" not in told  # the others do not tell


def test_bases_are_held_to_the_same_steps(tmp_path):
    measured = studied(tmp_path, bases=("novels", "other"))
    assert not any("bases" in text for text in deviations(measured))
    cells = tuple(
        replace(cell, methods=tuple(replace(one, metrics={**one.metrics, "steps": 7}) for one in cell.methods))
        if cell.base == "other" and cell.variant in ("full", "original", "reduced")
        else cell
        for cell in measured.results.cells
    )
    told = deviations(measure(replace(measured.results, cells=cells)))
    assert [text for text in told if "bases trained" in text] == [
        "`news`: bases trained with unequal optimizer steps: 36 (`novels`) and 7 (`other`)."
    ]
