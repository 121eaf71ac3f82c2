"""What tuning tried, chose and cost; and where variants were tuned unequally, or chosen at the edge of what was tried."""

from collections.abc import Iterator, Mapping, Sequence

from paretune.analysis import wording
from paretune.analysis.costs import tuning_cost
from paretune.analysis.document import Block, Bullets, Section, Table
from paretune.analysis.measured import Group, Measured
from paretune.pipeline.records import Trial, Tuning

_WORDS = {"loss": ("validation loss", "lowest"), "token_accuracy": ("validation token accuracy", "highest")}


def tuning_section(measured: Measured, group: Group) -> Section | None:
    """Every trial of the tuned variants of a group with what it was judged by; None if nothing was tuned."""
    here = [one for one in measured.results.tunings if (one.base, one.dataset) == (group.base, group.dataset)]
    if not here:
        return None
    what, best = _WORDS[measured.study.train.chosen_by]
    header = ("variant", "trial", what, "steps", "training", "")
    rows = [_row(tuning, index) for tuning in here for index in range(len(tuning.trials))]
    caption = f"Trials, all with seed {here[0].seed}; the {best} {what} is chosen and trained with every seed"
    blocks: list[Block] = [Table(header, rows, caption, words=2, grouped=True)]
    said = [_cost(tuning) for tuning in here if tuning.chosen is not None] + _diverged(here) + _edges(here)
    return Section("Tuning", [*blocks, *([Bullets(said)] if said else [])], level=3)


def unequal_tuning(measured: Measured) -> Iterator[str]:
    """Said where of the variants that train some were tuned more than others."""
    tried: dict[int, list[str]] = {}
    for name, variant in measured.study.variants.items():
        if any(use.row.trains for use in variant.methods):
            tried.setdefault(len(variant.trials), []).append(wording.code(name))
    if len(tried) > 1:
        much = {number: f"over {wording.plural(number, 'trial')}" if number else "not at all" for number in tried}
        shares = [f"{wording.listed(names)} {much[number]}" for number, names in sorted(tried.items(), reverse=True)]
        yield f"Tuned unequally: {wording.listed(shares)}; a difference between them may be that of the tuning."


def edge_choices(measured: Measured) -> list[str]:
    """Said of the choices that a longer list of values could have improved."""
    return _edges(measured.results.tunings)


def _row(tuning: Tuning, index: int) -> list[str]:
    trial = tuning.trials[index]
    score = wording.UNKNOWN if trial.score is None else wording.number(trial.score, 4)
    state = "chosen" if index == tuning.chosen else "diverged" if trial.divergence else "" if trial.methods else "has not run"
    seconds, steps = _spent(trial)
    cells = [wording.count(steps), wording.seconds(seconds)] if steps else [wording.UNKNOWN] * 2
    return [tuning.variant, trial.name, score, *cells, state]


def _spent(trial: Trial) -> tuple[float, int]:
    """Seconds and optimizer steps of a trial."""
    if trial.divergence:
        return trial.divergence.seconds, trial.divergence.steps
    trained = [record.metrics for record in trial.methods if "train_seconds" in record.metrics]
    return sum(one["train_seconds"] for one in trained), sum(one["steps"] for one in trained)


def _cost(tuning: Tuning) -> str:
    assert tuning.chosen is not None
    chosen, (seconds, steps, _) = tuning.trials[tuning.chosen], tuning_cost(tuning)
    own_seconds, own_steps = _spent(chosen)
    return (
        f"{wording.code(tuning.variant)} is trained with {chosen.name}. Trials that were not chosen took "
        f"{wording.seconds(seconds)} and {wording.plural(steps, 'step')}, beside {wording.seconds(own_seconds)} and "
        f"{wording.plural(own_steps, 'step')} of its training with seed {tuning.seed}."
    )


def _diverged(tunings: Sequence[Tuning]) -> list[str]:
    return [
        f"{wording.code(tuning.variant)} with {trial.name} diverged ({trial.divergence.message}) and has lost."
        for tuning in tunings
        for trial in tuning.trials
        if trial.divergence and trial.score is None
    ]


def _edges(tunings: Sequence[Tuning]) -> list[str]:
    found: dict[str, list[str]] = {}
    for tuning in tunings:
        if tuning.chosen is None:
            continue
        tried = [_values(trial) for trial in tuning.trials]
        for field, text in tried[tuning.chosen].items():
            values = sorted({float(one[field]) for one in tried})
            for side, end in (("smallest", values[0]), ("largest", values[-1])):
                if len(values) > 1 and float(text) == end:
                    where = f"{wording.code(tuning.variant)} of {wording.code(tuning.base)} on {wording.code(tuning.dataset)}"
                    found.setdefault(f"{field} {text}, the {side} that was tried", []).append(where)
    return [
        f"At the edge of its list: {wording.listed(places)} with {what}; the optimum may lie beyond."
        for what, places in found.items()
    ]


def _values(trial: Trial) -> Mapping[str, str]:
    """The tuned values of a trial by field; all are numbers, so that its name can be taken apart."""
    pairs = (part.rpartition("=") for part in trial.name.split(","))
    return {field: value for field, _, value in pairs}
