"""Which trial a tuned variant becomes: the one whose kept weights are best on validation, as soon as all trials are settled.

A cheap, deterministic function of records, so no artifact of its own: a choice is made again from the store by every command,
and gives the plan in which the chosen value stands as if the study had named it.
"""

import math
from dataclasses import replace

from paretune.pipeline.plan import Plan, PlannedCell, PlannedTuning
from paretune.pipeline.records import Trial, Tuning, read_lines
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store


def decide(plan: Plan, store: Store) -> Plan:
    """`plan` with every choice that the records of `store` allow; the very same where they allow no new one."""
    index = 0
    while index < len(plan.tunings):
        chosen = read_tuning(plan.tunings[index], store).chosen if plan.tunings[index].chosen is None else None
        if chosen is not None:
            plan, index = with_choice(plan, index, chosen), -1  # which may settle what stood before it
        index += 1
    return plan


def with_choice(plan: Plan, index: int, chosen: int) -> Plan:
    """`plan` with trial `chosen` of `plan.tunings[index]` in the place of the choice, in all that hangs on it."""
    tuning = plan.tunings[index]
    trial = tuning.trials[chosen].methods
    by: dict[Stage, Stage] = {tuning.choice: trial[-1]}

    def resolved(stage: Stage) -> Stage:
        if stage not in by:
            inputs = {role: resolved(parent) for role, parent in stage.inputs.items()}
            by[stage] = stage if inputs == stage.inputs else replace(stage, inputs=inputs)
        return by[stage]

    heads: dict[int, tuple[Stage, ...]] = {}
    for number, cell in enumerate(plan.cells):
        if (cell.base, cell.dataset, cell.variant) == (tuning.base, tuning.dataset, tuning.variant):
            if cell.seed == tuning.seed:
                heads[number] = trial
                continue
            stages: list[Stage] = []
            for stage, own in zip(trial, cell.methods, strict=False):
                seed = {"seed": cell.seed} if "seed" in stage.config else {}
                given = {"model": stages[-1]} if stages else {}
                given |= {"teacher": own.inputs["teacher"]} if "teacher" in own.inputs else {}  # of this seed
                stages.append(replace(stage, config={**stage.config, **seed}, inputs={**stage.inputs, **given}))
            heads[number] = tuple(stages)
            by[cell.methods[len(trial) - 1]] = stages[-1]

    def resolved_cell(number: int, cell: PlannedCell) -> PlannedCell:
        rest = cell.methods
        if number in heads:
            rest = cell.methods[1 if cell.seed == tuning.seed else len(trial) :]
        methods = (*heads.get(number, ()), *map(resolved, rest))
        return replace(cell, methods=methods, evaluations={name: resolved(stage) for name, stage in cell.evaluations.items()})

    tunings = [
        replace(
            other,
            trials=tuple(replace(each, methods=tuple(map(resolved, each.methods))) for each in other.trials),
            choice=other.choice if other is tuning else resolved(other.choice),
            chosen=chosen if other is tuning else other.chosen,
        )
        for other in plan.tunings
    ]
    cells = tuple(resolved_cell(number, cell) for number, cell in enumerate(plan.cells))
    return replace(plan, cells=cells, tunings=tuple(tunings))


def read_tuning(tuning: PlannedTuning, store: Store) -> Tuning:
    """The trials with their records and scores, and which is chosen: the best, of equals the first."""
    by, trials = tuning.choice.config["by"], []
    for trial in tuning.trials:
        records = [record for stage in trial.methods if (record := store.find(stage))]
        if len(records) < len(trial.methods):
            divergence = next((end for stage in trial.methods if (end := store.divergence(stage))), None)
            trials.append(Trial(trial.name, divergence=divergence))
            continue
        # The loss or token accuracy, on validation, of the weights that were kept.
        key, worst = f"validation_{by}", math.inf if by == "loss" else -math.inf
        values = [float(row[key]) for row in read_lines(records[-1].path / "curves.jsonl") if key in row]
        finite = [value if math.isfinite(value) else worst for value in values]
        best = min(finite) if by == "loss" else max(finite)
        keeps_last = trial.methods[-1].config["train"]["keep"] == "last"
        trials.append(Trial(trial.name, tuple(records), finite[-1] if keeps_last else best))
    scores = {index: trial.score for index, trial in enumerate(trials) if trial.score is not None}
    settled = all(trial.score is not None or trial.divergence for trial in trials)
    sign = 1 if by == "loss" else -1
    chosen = min(scores, key=lambda index: sign * scores[index]) if settled and scores else None
    return Tuning(tuning.base, tuning.dataset, tuning.variant, tuning.seed, tuple(trials), chosen)


def all_diverged(tuning: PlannedTuning, store: Store) -> str | None:
    """What to say where no trial came to an end; None where one did, or may."""
    trials = read_tuning(tuning, store).trials
    ends = [f"{trial.name} ({trial.divergence.message})" for trial in trials if trial.divergence]
    if len(ends) < len(trials):
        return None
    return f"{tuning.name}: nothing to choose from, every trial diverged: {', '.join(ends)}; name other values to `tune`"


def lost(plan: Plan, store: Store) -> set[Stage]:
    """Stages that need not run: of trials that diverged, in them or before, and of nothing else."""
    wanted = {stage for cell in plan.cells for stage in cell.methods}
    stages: set[Stage] = set()
    for stage in plan.stages if plan.tunings else ():
        is_lost = store.divergence(stage) is not None or not stages.isdisjoint(stage.inputs.values())
        if is_lost and stage.runs and stage not in wanted and not store.find(stage):
            stages.add(stage)
    return stages


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
