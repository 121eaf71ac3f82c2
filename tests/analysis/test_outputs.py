import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from paretune.analysis.measure import measure
from paretune.report.outputs import comparisons, csv_tables, generations
from tests.analysis.synthetic import Shape, make_results

SMALL = Shape(documents=8, epochs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tables")
    findings = measure(make_results(root, SMALL))
    for name, text in csv_tables(findings).items():
        (root / f"{name}.csv").write_text(text, encoding="utf-8")
    (root / "generations.jsonl").write_text("".join(generations(findings)), encoding="utf-8")
    return root


def test_the_columns_are_those_of_the_documentation(folder: Path) -> None:
    headers = {
        name: (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()[0]
        for name in ("results", "estimates", "comparisons", "curves")
    }
    assert headers["results"] == "base,dataset,variant,seed,trial,split,task,slice,metric,value,n"
    assert headers["estimates"] == (
        "base,dataset,variant,split,task,slice,metric,mean,ci_low,ci_high,n_examples,n_documents,n_seeds"
    )
    assert headers["comparisons"] == (
        "base,dataset,variant,baseline,split,task,slice,metric,difference,ci_low,ci_high,level,p,p_adjusted,mde,verdict"
    )
    assert headers["curves"] == (
        "base,dataset,variant,seed,trial,epoch,step,train_loss,validation_loss,train_token_accuracy,validation_token_accuracy,"
        "learning_rate,seconds,tokens"
    )


def test_results_have_a_row_for_every_seed_and_costs_are_whole(folder: Path) -> None:
    table = pd.read_csv(folder / "results.csv", keep_default_na=False, dtype=str)
    assert not table.duplicated(["base", "dataset", "variant", "seed", "split", "task", "slice", "metric"]).any()
    loss = table[(table.variant == "original") & (table.metric == "loss") & (table.split == "test")]
    assert loss.seed.tolist() == ["0", "1"]
    assert loss.n.tolist() == ["8", "8"]
    assert set(table[table.variant == "base"].seed) == {""}
    row = table[(table.variant == "original") & (table.metric == "trainable_parameters")].iloc[0]
    assert (row.task, row.value, row.n, row.split) == ("cost", "73728", "", "")


def test_perplexity_is_exp_of_the_loss_in_both_tables(folder: Path) -> None:
    results, estimates = (pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in ("results", "estimates"))
    for keys in (["variant", "seed", "split"], ["variant", "split"]):
        table, value = (results, "value") if "seed" in keys else (estimates, "mean")
        scored = table[table.task == "perplexity"]
        pivot = scored.pivot_table(index=keys, columns="metric", values=value)
        assert len(pivot) >= 8
        assert [math.exp(loss) for loss in pivot["loss"]] == pytest.approx(pivot["perplexity"].tolist())


def test_an_estimate_is_the_mean_of_its_seeds_inside_its_interval(folder: Path) -> None:
    results, estimates = (pd.read_csv(folder / f"{name}.csv") for name in ("results", "estimates"))
    keys = {"variant": "full", "task": "perplexity", "split": "validation", "metric": "bits_per_byte"}

    def rows(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table[list(keys)] == pd.Series(keys)).all(axis=1)]

    found = rows(estimates).iloc[0]
    assert found["mean"] == pytest.approx(rows(results)["value"].mean())
    assert found.ci_low < found["mean"] < found.ci_high
    assert (found.n_examples, found.n_documents, found.n_seeds) == (8, 8, 2)


def test_comparisons_are_of_every_variant_with_the_baseline_and_of_whatever_is_asked_for(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    findings = measure(results, also_against="base")
    table = comparisons(findings)
    # The baseline is the first trained variant.
    assert set(table.variant) == {"base", "original", "reduced"}
    assert set(table.baseline) == {"full"}
    assert not set(table.metric) & {"new_tokens"}
    estimates = pd.read_csv(io.StringIO(csv_tables(findings)["estimates"]), keep_default_na=False)
    keys = ["base", "dataset", "split", "task", "slice", "metric"]
    means = estimates[estimates.metric.isin(set(table.metric) - {"log_likelihood"})].set_index([*keys, "variant"])["mean"]
    for row in table[table.metric != "log_likelihood"].itertuples():
        place = (row.base, row.dataset, row.split, row.task, row.slice, row.metric)
        assert row.difference == pytest.approx(means[(*place, row.variant)] - means[(*place, "full")], abs=1e-9)
    assert (table.p_adjusted >= table.p - 1e-12).all()
    other = comparisons(findings, "base")
    assert set(other.variant) == {"full", "original", "reduced"}
    assert (other.p_adjusted >= other.p - 1e-12).all()


def test_curves_have_a_row_for_every_step_of_every_seed(folder: Path) -> None:
    table = pd.read_csv(folder / "curves.csv")
    assert table.groupby(["variant", "seed"]).size().to_dict() == {
        (name, seed): 8 for name in ("full", "original", "reduced") for seed in (0, 1)
    }
    assert table.validation_loss.notna().sum() == 6


def test_generations_carry_their_owner(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]) == [
        *("base", "dataset", "variant", "seed", "task", "prompt"),
        *("text", "reference", "new_tokens", "seconds", "stopped_by"),
        *("document", "example", "references", "filtered"),
    ]
    assert len(rows) == 2 * 7
    assert {(row["variant"], row["seed"]) for row in rows} >= {("base", None), ("full", 0), ("full", 1)}
