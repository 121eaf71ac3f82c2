"""Which trial a tuned variant becomes: the one whose kept weights are best on validation, as soon as all trials are settled.

A cheap, deterministic function of records, so no artifact of its own: a choice is made again from the store by every command,
and gives the plan in which the chosen value stands as if the study had named it.
"""

import math

from paretune.pipeline.plan import CHOICE, Plan, PlannedTrial, PlannedTuning
from paretune.pipeline.records import Record, Trial, Tuning, read_lines
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store


def decide(plan: Plan, store: Store) -> Plan:
    """`plan` with every choice that the records of `store` allow."""
    while True:
        made = {tuning.choice.key: read_tuning(tuning, store).chosen for tuning in plan.tunings if tuning.chosen is None}
        new = {key: chosen for key, chosen in made.items() if chosen is not None}
        if not new:
            return plan
        assert plan.remake is not None, "a plan with trials can be made again"
        plan = plan.remake({**plan.choices, **new})


def read_tuning(tuning: PlannedTuning, store: Store) -> Tuning:
    """The trials with their records and scores, and which is chosen: the best, of equals the first."""
    trials = tuple(_trial(trial, tuning.choice, store) for trial in tuning.trials)
    scores = {index: trial.score for index, trial in enumerate(trials) if trial.score is not None}
    settled = all(trial.score is not None or trial.divergence for trial in trials)
    sign = 1 if tuning.choice.config["by"] == "loss" else -1
    chosen = min(scores, key=lambda index: sign * scores[index]) if settled and scores else None
    return Tuning(tuning.base, tuning.dataset, tuning.variant, tuning.seed, trials, chosen)


def all_diverged(tuning: PlannedTuning, store: Store) -> str | None:
    """What to say where no trial came to an end; None where one did, or may."""
    trials = read_tuning(tuning, store).trials
    told = [f"{trial.name} ({trial.divergence.message})" for trial in trials if trial.divergence]
    if len(told) < len(trials):
        return None
    return f"{tuning.name}: nothing to choose from, every trial diverged: {', '.join(told)}; name other values to `tune`"


def lost(plan: Plan, store: Store) -> set[Stage]:
    """Stages that need not run: of trials that diverged, in them or before, and of nothing else."""
    wanted = {stage for cell in plan.cells for stage in cell.methods}
    found: set[Stage] = set()
    for stage in plan.stages if plan.tunings else ():
        is_lost = store.divergence(stage) is not None or not found.isdisjoint(stage.inputs.values())
        if is_lost and stage.kind != CHOICE and stage not in wanted and not store.find(stage):
            found.add(stage)
    return found


def describe_tunings(plan: Plan) -> list[str]:
    """For each tuned variant what is tried, and what has been chosen as far as that is known."""
    lines = []
    for variant in dict.fromkeys(tuning.variant for tuning in plan.tunings):
        here = [tuning for tuning in plan.tunings if tuning.variant == variant]
        names = ", ".join(trial.name for trial in here[0].trials)
        made = [f"{one.base}/{one.dataset} {one.trials[one.chosen].name}" for one in here if one.chosen is not None]
        chosen = f"; chosen: {', '.join(made)}" if made else ""
        each = " on each base and dataset" if len(here) > 1 else ""
        lines.append(f"tuning of {variant}: {len(here[0].trials)} trials{each} with seed {here[0].seed} ({names}){chosen}")
    return lines


def _trial(trial: PlannedTrial, choice: Stage, store: Store) -> Trial:
    divergence = next((found for stage in trial.methods if (found := store.divergence(stage))), None)
    records = [store.find(stage) for stage in trial.methods]
    methods = tuple(record for record in records if record is not None)
    if len(methods) < len(records):
        return Trial(trial.name, divergence=divergence)
    score = _score(methods[-1], choice.config["by"], trial.methods[-1].config["train"]["keep"])
    return Trial(trial.name, methods, score)


def _score(record: Record, by: str, keep: str) -> float:
    """The loss or token accuracy of the kept weights on validation."""
    values = [float(row[f"validation_{by}"]) for row in read_lines(record.path / "curves.jsonl") if f"validation_{by}" in row]
    worst = math.inf if by == "loss" else -math.inf
    finite = [value if math.isfinite(value) else worst for value in values]
    if keep == "last":
        return finite[-1]
    return min(finite) if by == "loss" else max(finite)
