"""The reference of the study file is generated from the config classes, so every field says what it is for."""

import pytest

from paretune.study.base import Spec
from paretune.study.compare import Bound, Compare
from paretune.study.data import Dataset, Source, Split, SplitSources
from paretune.study.methods import Calibration
from paretune.study.reference import markdown, methods_text
from paretune.study.registry import evaluations, load_function, methods
from paretune.study.study import Base, Precision
from paretune.study.train import EarlyStopping, Train

SECTIONS = [Base, Dataset, Source, SplitSources, Split, Train, EarlyStopping, Precision, Compare, Bound, Calibration]
ROWS = {**methods(), **evaluations()}


@pytest.mark.parametrize("model", [*SECTIONS, *(row.config for row in ROWS.values())], ids=lambda model: model.__name__)
def test_every_class_and_field_says_what_it_is_for(model: type[Spec]) -> None:
    assert model.__doc__
    assert model.__doc__.strip().endswith(".")
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no docstring"
        assert field.description.rstrip()[-1] in ".?!", f"{model.__name__}.{name}: a sentence ends with a full stop"


def test_every_field_stands_in_the_reference() -> None:
    text = markdown()
    for model in (*SECTIONS, *(row.config for row in ROWS.values())):
        for name in model.model_fields:
            assert f"| `{name}` |" in text, name
    for name in ROWS:
        assert f"### `{name}`" in text
        assert f"\n{name}: " in methods_text()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_can_be_used_as_it_stands(name: str) -> None:
    row = ROWS[name]
    assert row.name == name
    for need in row.needs:
        pytest.importorskip(need)
    assert callable(load_function(row.body))
    assert row.revision >= 1
    required = [field for field, info in row.config.model_fields.items() if info.is_required()]
    assert required in ([], ["prompts"], ["path"], ["tasks"], ["files"], ["url", "model"])


def test_the_rows_stand_in_alphabetical_order() -> None:
    from paretune.study.evaluations import EVALUATIONS
    from paretune.study.methods import METHODS

    for rows in (METHODS, EVALUATIONS):
        assert [row.name for row in rows] == sorted(row.name for row in rows)
