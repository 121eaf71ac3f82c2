from dataclasses import replace
from pathlib import Path

import pytest

from paretune.analysis.choose import choose, cost_names, cost_of, cost_sign, frontier, keeps_to, ranked_places
from paretune.analysis.measured import Measured, headline, measure
from paretune.analysis.scores import Place, Quantity
from paretune.study.compare import Bound
from tests.analysis.synthetic import VARIANTS, Shape, make_results

QUIET = Shape(seeds=(0,), seed_effect=0.0, evaluations=("perplexity", "latency"), epochs=1)
LORA, REDUCED = VARIANTS["original"], VARIANTS["reduced"]
BASE, ORIGINAL, CUT = (Place("novels", "news", name) for name in ("base", "original", "reduced"))


def measured_of(tmp_path: Path, reduced_loss: float, extra: str = "compare: {costs: [model_bytes]}\n") -> Measured:
    variants = {"base": VARIANTS["base"], "original": LORA, "reduced": replace(REDUCED, loss=reduced_loss)}
    return measure(make_results(tmp_path, replace(QUIET, variants=variants, extra=extra)))


def headline_of(measured: Measured) -> Quantity:
    found = headline(measured, measured.groups[0])
    assert found is not None
    return found


def test_a_variant_that_is_not_shown_to_be_better_is_beaten_by_a_cheaper_one(tmp_path: Path) -> None:
    measured = measured_of(tmp_path, LORA.loss - 1e-4)
    quantity = headline_of(measured)
    ranked = ranked_places(measured, measured.groups[0], quantity)
    assert choose(measured, ranked, quantity) == CUT
    assert frontier(measured, ranked, quantity, ["model_bytes"]) == {CUT: None, ORIGINAL: CUT, BASE: CUT}


def test_a_variant_that_is_shown_to_be_better_stays_on_the_frontier(tmp_path: Path) -> None:
    measured = measured_of(tmp_path, LORA.loss + 0.1)
    quantity = headline_of(measured)
    ranked = ranked_places(measured, measured.groups[0], quantity)
    assert choose(measured, ranked, quantity) == ORIGINAL
    assert frontier(measured, ranked, quantity, ["model_bytes"]) == {ORIGINAL: None, CUT: None, BASE: ORIGINAL}


def test_the_training_of_what_was_not_trained_costs_nothing(tmp_path: Path) -> None:
    measured = measured_of(tmp_path, 4.2, "")
    assert cost_of(measured, BASE, "train_seconds") == 0
    assert cost_sign(measured, "train_seconds", BASE, ORIGINAL) == -1
    assert cost_sign(measured, "train_seconds", ORIGINAL, BASE) == 1
    assert cost_sign(measured, "adapter_bytes_of_another_name", BASE, ORIGINAL) is None
    assert cost_names(measured, [BASE, ORIGINAL]) == ["model_bytes", "ms_per_token_median", "train_seconds"]


def test_times_of_different_machines_beat_nothing(tmp_path: Path) -> None:
    measured = measured_of(tmp_path, LORA.loss, "")
    name = "ms_per_token_median"
    assert cost_sign(measured, name, CUT, ORIGINAL) == -1
    costs = {
        place: {key: replace(cost, machines=frozenset({place.variant})) for key, cost in found.items()}
        for place, found in measured.costs.items()
    }
    apart = replace(measured, costs=costs)
    assert cost_sign(apart, name, CUT, ORIGINAL) is None
    quantity = headline_of(measured)
    assert frontier(apart, [ORIGINAL, CUT], quantity, [name]) == {ORIGINAL: None, CUT: None}


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"model_bytes": Bound(at_most=26e6)}, [CUT]),
        ({"perplexity": Bound(at_most=66)}, [ORIGINAL]),
        ({"token_accuracy": Bound(at_least=0.1), "model_bytes": Bound(at_least=26e6)}, [BASE, ORIGINAL]),
        ({"bits_per_byte": Bound(within=0.001)}, [ORIGINAL]),
        ({"bits_per_byte": Bound(within=0.1)}, [ORIGINAL, CUT]),
        ({"token_accuracy": Bound(within=0.01)}, [ORIGINAL, CUT]),
        ({"accuracy": Bound(at_least=0)}, []),
        ({"adapter_bytes": Bound(at_most=0)}, [BASE]),
    ],
)
def test_limits_are_kept_by_what_is_shown_to_keep_them(limits: dict[str, Bound], kept: list[Place], tmp_path: Path) -> None:
    measured = measured_of(tmp_path, LORA.loss + 0.1)
    group = measured.groups[0]
    assert [place for place in (BASE, ORIGINAL, CUT) if keeps_to(measured, group, place, limits)] == kept


def test_parameters_are_weighed_as_the_exported_size(tmp_path: Path) -> None:
    measured = measured_of(tmp_path, 4.2, "compare: {costs: [parameters, model_bytes]}\n")
    assert cost_names(measured, [ORIGINAL, CUT]) == ["model_bytes"]
