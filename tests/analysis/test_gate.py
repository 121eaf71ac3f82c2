"""`paretune gate`: bounds whose answer is known, what the verdict rests on, and the exit code of the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.analysis.gate import EXIT_CODES, Gate, as_json, judge, read_json, verify, write_json
from paretune.analysis.scores import entrant_of
from paretune.errors import SpecError, StoreError
from paretune.pipeline.records import Results
from paretune.pipeline.store import describe_files
from paretune.report.words import say
from paretune.study.compare import parse_bounds
from tests.analysis.synthetic import VARIANTS, Shape, make_results, write_scores

ZIGZAG = np.array([1.0, -1.0])


def results_of(root: Path, worse_by: np.ndarray, seeds: int = 1, apart: float = 0.0) -> Results:
    """`original` and `full` on as many test documents as `worse_by` has: bits per byte 1 and 1 + worse_by, each of one weight.

    With several seeds, `original` of the last is worse by `apart` besides.
    """
    shape = Shape(
        variants={name: VARIANTS[name] for name in ("full", "original")},
        seeds=range(seeds),
        documents=len(worse_by),
        evaluations=("perplexity", "latency"),
        splits=("test",),
    )
    root.mkdir(exist_ok=True)
    results = make_results(root, shape)
    cells = []
    for cell in results.cells:
        more = worse_by + (apart if cell.seed == seeds - 1 else 0) if cell.variant == "original" else np.zeros(len(worse_by))
        common = {"split": "test", "weight": 1.0}
        rows = [
            common | {"document": f"d{i}", "example": f"d{i}", "metric": metric, "value": (1 + value) * scale}
            for i, value in enumerate(more)
            for metric, scale in (("bits_per_byte", 1.0), ("loss", math.log(2)))
        ]
        record = cell.evaluations["perplexity"]
        write_scores(record.path, rows)
        record = replace(record, files={name: f for name, f in describe_files(record.path).items() if name != "record.json"})
        cells.append(replace(cell, evaluations={**cell.evaluations, "perplexity": record}))
    return replace(results, cells=tuple(cells))


def gate_of(results: Results, bounds: dict[str, dict[str, object]]) -> Gate:
    original = next(cell for cell in results.cells if cell.variant == "original")
    return judge(results, entrant_of(original), "full", parse_bounds(bounds))


def spread(num: int, mean: float, scale: float) -> np.ndarray:
    """`num` differences of exactly this mean and of standard deviation `scale` (of the sample)."""
    values = np.random.default_rng(3).normal(size=num)
    values = (values - values.mean()) / values.std(ddof=1)
    return mean + scale * values


# Standard errors are scale / sqrt(num): of 100 documents a tenth of the scale; the interval some two of them to each side.
CASES = [
    ("no worse at all", spread(100, 0.0, 0.01), {"bits_per_byte": {"within": 0.02}}, "holds"),
    ("better", spread(100, -0.1, 0.01), {"bits_per_byte": {"within": 0.0}}, "holds"),
    ("worse, far inside the bound", spread(100, 0.01, 0.01), {"bits_per_byte": {"within": 0.02}}, "holds"),
    ("worse, far outside", spread(100, 0.05, 0.01), {"bits_per_byte": {"within": 0.02}}, "broken"),
    ("mean inside, interval not", spread(100, 0.015, 0.05), {"bits_per_byte": {"within": 0.02}}, "open"),
    ("mean outside, interval not", spread(100, 0.025, 0.05), {"bits_per_byte": {"within": 0.02}}, "open"),
    ("the same with 100 times the documents", spread(10_000, 0.015, 0.05), {"bits_per_byte": {"within": 0.02}}, "holds"),
    ("underpowered: four documents, all better", spread(4, -0.1, 0.01), {"bits_per_byte": {"within": 0.02}}, "open"),
    ("underpowered: one document", spread(2, 0.0, 0.01)[:1], {"bits_per_byte": {"within": 0.02}}, "open"),
    ("part of the figure", spread(100, 0.01, 0.01), {"bits_per_byte": {"within": "2%"}}, "holds"),
    ("part of the figure, exceeded", spread(100, 0.05, 0.01), {"bits_per_byte": {"within": "2 %"}}, "broken"),
    ("a view: perplexity 2 against 2.014", spread(100, 0.01, 0.01), {"perplexity": {"within": "2%"}}, "holds"),
    ("a view, exceeded: 2 against 2.14", spread(100, 0.1, 0.01), {"perplexity": {"within": 0.05}}, "broken"),
    ("figure itself below its limit", spread(100, 0.01, 0.01), {"bits_per_byte": {"at_most": 1.02}}, "holds"),
    ("figure itself above its limit", spread(100, 0.05, 0.01), {"bits_per_byte": {"at_most": 1.02}}, "broken"),
    ("figure itself near its limit", spread(100, 0.02, 0.05), {"bits_per_byte": {"at_most": 1.021}}, "open"),
    ("figure itself above its floor", spread(100, 0.02, 0.01), {"bits_per_byte": {"at_least": 1.0}}, "holds"),
    ("size below", spread(100, 0.0, 0.01), {"model_bytes": {"at_most": 1e9}}, "holds"),
    ("size above", spread(100, 0.0, 0.01), {"model_bytes": {"at_most": 1e6}}, "broken"),
    ("time far below", spread(100, 0.0, 0.01), {"ms_per_token": {"at_most": 30}}, "holds"),
    ("time far above", spread(100, 0.0, 0.01), {"ms_per_token": {"at_most": 1}}, "broken"),
    ("time within what equal runs differ in", spread(100, 0.0, 0.01), {"ms_per_token": {"at_most": 4.0}}, "open"),
    (
        "one of two broken",
        spread(100, 0.0, 0.01),
        {"bits_per_byte": {"within": 0.02}, "ms_per_token": {"at_most": 1}},
        "broken",
    ),
    ("one of two open", spread(100, 0.015, 0.05), {"bits_per_byte": {"within": 0.02}, "model_bytes": {"at_most": 1e9}}, "open"),
]


@pytest.mark.parametrize(("worse_by", "bounds", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_known_answers(tmp_path, worse_by, bounds, verdict):
    gate = gate_of(results_of(tmp_path, worse_by), bounds)
    assert gate.verdict == verdict
    assert len(gate.checks) == sum(map(len, bounds.values()))
    assert all(say(check) for check in gate.checks)


def test_an_open_bound_says_how_much_more_would_settle_it(tmp_path):
    gate = gate_of(results_of(tmp_path, spread(100, 0.015, 0.05)), {"bits_per_byte": {"within": 0.02}})
    # 1.96 x 0.05 / sqrt(n) <= 0.005 from n = 385 on, and a little more by Student's t.
    assert gate.checks[0].needed == pytest.approx(387, abs=3)
    again = gate_of(results_of(tmp_path, spread(gate.checks[0].needed + 40, 0.015, 0.05)), {"bits_per_byte": {"within": 0.02}})
    assert again.verdict == "holds"


def test_seeds_that_lie_apart_leave_open_what_documents_alone_would_show(tmp_path):
    bounds = {"bits_per_byte": {"within": 0.02}}
    assert gate_of(results_of(tmp_path / "a", spread(100, 0.0, 0.01), seeds=2), bounds).verdict == "holds"
    apart = gate_of(results_of(tmp_path / "b", spread(100, -0.01, 0.01), seeds=2, apart=0.02), bounds)
    assert apart.verdict == "open"
    assert apart.checks[0].value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"rouge_l": {"within": 0.01}}, "the study does not measure it"),
        ({"perplxity": {"within": 0.01}}, "did you mean `perplexity`"),
        ({"ms_per_token": {"within": 0.01}}, "takes `--at-most`"),
        ({"bits_per_byte": {"at_most": "fast"}}, "expected a number, got `fast`"),
        ({"bits_per_byte": {"within": -1}}, "number from 0"),
        ({}, "no bound"),
    ],
)
def test_bad_bounds(tmp_path, bounds, message):
    results = results_of(tmp_path, spread(10, 0.0, 0.01))
    with pytest.raises(SpecError, match=message):
        gate_of(results, bounds)


def test_a_variant_is_not_compared_with_itself(tmp_path):
    results = results_of(tmp_path, spread(10, 0.0, 0.01))
    full = next(entrant_of(cell) for cell in results.cells if cell.variant == "full")
    with pytest.raises(SpecError, match="compares `full` with itself"):
        judge(results, full, "full", parse_bounds({"perplexity": {"within": "2%"}}))
    assert judge(results, full, "full", parse_bounds({"perplexity": {"at_most": "100"}})).verdict == "holds"


def test_a_verdict_is_checked_again_from_the_store(tmp_path):
    results = results_of(tmp_path, spread(100, 0.0, 0.01))
    gate = gate_of(results, {"bits_per_byte": {"within": "2%"}})
    file = tmp_path / "gate.json"
    write_json(as_json(gate, results), results.study_file, file)
    content = read_json(file)
    assert Path(content["study_file"]).resolve() == results.study_file.resolve()
    verify(content, as_json(gate, results), results, file)

    with pytest.raises(StoreError, match="`verdict` is 'broken' there"):
        verify(content | {"verdict": "broken"}, as_json(gate, results), results, file)
    scores = (
        next(cell for cell in results.cells if cell.variant == "original").evaluations["perplexity"].path / "scores.parquet"
    )
    scores.write_bytes(scores.read_bytes() + b" ")
    with pytest.raises(StoreError, match=r"scores\.parquet: not what the verdict"):
        verify(content, as_json(gate, results), results, file)
    file.write_text(json.dumps({"schema": 1}), encoding="utf-8")
    with pytest.raises(SpecError, match="no file of `paretune gate`"):
        read_json(file)


def test_exit_codes_are_those_of_the_manual():
    assert EXIT_CODES == {"holds": 0, "broken": 1, "open": 3}
