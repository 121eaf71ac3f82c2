"""What other tools call things, and where our own fields belong."""

import pytest
import typer

from paretune.cli import app
from paretune.errors import SpecError
from paretune.study.base import Spec
from paretune.study.foreign import COMMAND, _addresses_in, addresses, belongs, called, foreign, unknown
from paretune.study.methods import PruneBlocks
from paretune.study.registry import find_method
from paretune.study.train import EarlyStopping, Train


def commands() -> set[str]:
    """`$ run`, `$ run --memory`, as the parser has them."""
    group = typer.main.get_command(app)
    flags = {f"$ {name} {flag}" for name, each in group.commands.items() for option in each.params for flag in option.opts}
    return {f"$ {name}" for name in group.commands} | flags


@pytest.mark.parametrize("row", foreign(), ids=lambda row: row.names.split()[0])
def test_what_a_name_is_called_here_is_there_or_said_to_be_missing(row) -> None:
    wanted = _addresses_in(row.ours)
    assert wanted or row.missing, "nothing would be told"
    if not row.missing:
        assert set(wanted) <= {*addresses(), *commands()}
    assert row.names == row.names.lower().replace("-", "_")
    for name in row.names.split():
        told = called(name, commands=commands())
        assert told.startswith("; "), name
        assert len(told) > 10


def test_no_name_of_ours_is_taken_for_one_of_another_tool() -> None:
    """Where a field stands a foreign row would never be asked; a command, a method or a section would hide it."""
    theirs = {name for row in foreign() for name in row.names.split()}
    assert not {f"${each.removeprefix(COMMAND)}" for each in commands()} & theirs


@pytest.mark.parametrize(
    ("name", "where", "told"),
    [
        (
            "learning_rate",
            "train",
            "`learning_rate` belongs in `train.full` (in `variants`), or `train.last_blocks` (in "
            "`variants`), or `train.lora` (in `variants`), or elsewhere",
        ),
        ("batch_size", "variants.a[0].train.lora", "`batch_size` belongs in `train`, or `latency` (in `evaluate`)"),
        ("path", "data.news", "`path` belongs in `data.NAME.source`"),
        (
            "r",
            "",
            "`r` belongs in `train.lora` (in `variants`), or `distill.logits.lora` (in `variants`), or `distill.text.lora` (in "
            "`variants`), or elsewhere",
        ),
        ("patience", "train", "`patience` belongs in `train.early_stopping`"),
        ("nothing", "train", ""),
    ],
)
def test_a_field_is_found_where_it_stands(name: str, where: str, told: str) -> None:
    assert belongs(name, where) == (f"; {told}" if told else "")


def test_a_name_is_answered_by_the_row_of_the_place_it_stands_in() -> None:
    assert called("metric", "compare.metric").startswith("; it is called `family` here, in `compare`")
    assert called("metric") == "; it is called `evaluate` here"
    assert called("quantize.int4", "variants.a[0]") == (
        "; it is called `quantize.int8` and `quantize.nf4` and `quantize.gguf` here, in `variants`"
    )
    assert called("dry_run") == "; it is called `paretune plan` here"


def test_a_field_of_a_new_type_is_known_at_once() -> None:
    class Added(Spec):
        entirely_new: int = 0

    before = addresses.__wrapped__()
    original = Train.model_fields["early_stopping"].annotation
    Train.model_fields["early_stopping"].annotation = Added | None
    try:
        assert set(addresses.__wrapped__()) - set(before) == {"train.early_stopping.entirely_new"}
    finally:
        Train.model_fields["early_stopping"].annotation = original


def test_a_field_of_a_field_is_meant_before_the_word_of_another_tool() -> None:
    assert called("search").startswith("; it is called `variants` here")
    told = unknown("search", PruneBlocks.model_fields, "variants.a[0].prune.blocks")
    assert told.startswith("; `search` belongs in `prune.blocks.budget` (in `variants`)")
    assert "called" not in told


def test_the_nearest_name_and_the_word_of_another_tool_are_told_once() -> None:
    assert unknown("batchsize", Train.model_fields, "train") == "; did you mean `batch_size`?"
    assert unknown("numTrainEpochs", Train.model_fields, "train") == "; it is called `epochs` here, in `train`"
    assert unknown("xyz", EarlyStopping.model_fields, "train.early_stopping") == "; known: `metric`, `patience`"
    with pytest.raises(SpecError, match="unknown method `perplexity`; it is an evaluation"):
        find_method("perplexity", "variants.a[0]")
