import pytest

from paretune.errors import SpecError
from paretune.study.compare import Bound, Compare
from paretune.study.validate import validate

WHOLE = {
    "baseline": "original",
    "interval": 0.9,
    "family": ["bits_per_byte", "rouge_l", "set_f1"],
    "margin": {"bits_per_byte": 0.01},
    "costs": ["model_bytes", "ms_per_token"],
    "require": [{"ms_per_token": {"at_most": 50}}, {"bits_per_byte": {"within": 0.02}, "model_bytes": {"at_most": 3e7}}],
}


def test_the_whole_section_is_read() -> None:
    found = validate(Compare, WHOLE, "compare")
    assert found.family == ("bits_per_byte", "rouge_l", "set_f1")
    assert found.margin == {"bits_per_byte": 0.01}
    assert found.costs == ("model_bytes", "ms_per_token")
    assert found.require == (
        {"ms_per_token": Bound(at_most=50)},
        {"bits_per_byte": Bound(within=0.02), "model_bytes": Bound(at_most=3e7)},
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"family": ["bits_per_byt"]}, "compare.family: no metric `bits_per_byt`; did you mean `bits_per_byte`?"),
        ({"family": ["model_bytes"]}, "compare.family: no metric `model_bytes`"),
        ({"family": ["loss", "loss"]}, "compare.family: names a metric twice"),
        ({"margin": {"loss": 0}}, "compare.margin.loss: expected more than 0, got `0`"),
        ({"margin": {"los": 1}}, "compare.margin: no metric `los`; did you mean `loss`?"),
        ({"costs": ["accuracy"]}, "compare.costs: no metric `accuracy`"),
        ({"require": [{}]}, "compare.require[0]: a limit is empty; write `{METRIC: {at_most: NUMBER}}`"),
        ({"require": [{"ms_per_token": {}}]}, "compare.require[0].ms_per_token: name `at_most`, `at_least` or `within`"),
        ({"require": [{"loss": {"within": "2"}}]}, "expected a number from 0, or a part of the baseline's figure like `2%`"),
        ({"require": [{"ms_per_token": {"within": 1}}]}, "`ms_per_token` is a cost and takes `at_most`"),
        ({"require": [{"speed": {"at_most": 1}}]}, "compare.require[0]: no metric `speed`"),
        ({"interval": 1.0}, "compare.interval: expected less than 1"),
    ],
)
def test_a_mistake_is_told_with_its_place(value: dict, words: str) -> None:
    with pytest.raises(SpecError) as error:
        validate(Compare, value, "compare")
    assert words in str(error.value)
