import pytest

from paretune.analysis.compare import Difference
from paretune.analysis.estimate import Errors
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import interval_of


def between(metric: str, low: float, high: float) -> Difference:
    places = (Place("novels", "news", name) for name in ("full", "base"))
    errors = Errors(0.01, 20, 0.0, 1.0)
    return Difference(
        *places, Quantity("title", "test", metric), 0.2, 0.1, 0.1, low, high, 0.2, 0.2, errors, 20, n_seeds=1, level=0.95
    )


@pytest.mark.parametrize(
    ("metric", "low", "high", "text"),
    [
        ("rouge_l", -0.000000049, 0.017, "0 to +0.017"),
        ("rouge_l", -0.00038, 0.053, "-0.0004 to +0.053"),
        ("rouge_l", -0.71, -0.0275, "-0.71 to -0.028"),
        ("log_likelihood", -2.2, -0.98, "-2.2 to -0.98 nats per token"),
    ],
)
def test_an_end_near_zero_has_no_more_digits_than_the_other_calls_for(metric, low, high, text) -> None:
    assert interval_of(between(metric, low, high)) == f"95 % interval {text}"
