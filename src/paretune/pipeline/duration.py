"""How long a stage takes: passes and tokens of its work, times what they take on this machine (`paretune.train.probe`).

The sum is corrected by what finished stages of the kind took against what would have been said of them. What cannot be known
before is counted as far as it may go, and said: a training that may stop early to its last step, an answer of a model that was
never taught to end to its `max_new_tokens`.
"""

import contextlib
import functools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretune.errors import ParetuneError
from paretune.pipeline.block_search import LEAST_DOCUMENTS, SHARES, num_removed, search_passes
from paretune.pipeline.config_json import num_blocks
from paretune.pipeline.lock import Lock
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.plan import ANSWERS, TEACHER, Plan, first_tokens
from paretune.pipeline.records import Record
from paretune.pipeline.resources import Resource, count_weights
from paretune.pipeline.sample import Amount, Sample, count_tokens
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.study.registry import evaluations, load_function, methods

Rates = Mapping[str, tuple[float, float, float, float]]
"""Of a base, by kind of work: seconds of a pass and of a token of it in a block, and the same of all that is no block."""

_START = 0.6
"""Seconds of any stage: its process, its files, and what its body imports."""
_BY_TEXT = {"data": (0.3, 0.25), "leakage": (0.4, 0.7), "audit": (0.5, 1.3)}
"""Seconds of a stage, and of each MB of text that it looks at."""
_ROWS_TOGETHER = 64
"""Answers that are written together: `paretune.evaluate.answers.MAX_ANSWERS`."""
_WALK_TOKENS = 1024
"""Of a pass of a search for blocks: `paretune.variants.walk`."""
_PROMPT = 64
"""Tokens of the prompt that `decode` was timed with."""
_NO_TEXT = Sample((), {}, True, 0.0, 0.0, 0.0)
_KEPT_WORDS = 3.0
"""What a teacher's words at a target take beside scoring it, as a multiple of the head's part of that: with 49,152 words on one
core 1.4 ms against 0.5 ms."""
_PER_RECORD = 2
"""Encoding a text, decoding it to see whether it comes back, and writing it, as a multiple of encoding."""


@dataclass(frozen=True)
class Duration:
    """Of a stage, in seconds."""

    seconds: float
    at_most: str = ""
    """Why it may be less."""


@dataclass(frozen=True)
class Work:
    """What the durations of a plan's stages are made from."""

    lock: Lock
    options: RunOptions
    rates: Mapping[str, Rates]
    """By the digest of the base."""
    samples: Mapping[str, Sample]
    """By the key of the tokenize stage."""
    amounts: Mapping[str, Amount]
    """The same, of training."""
    data: Mapping[str, Sample] = field(default_factory=dict)
    """By the key of the data stage."""

    def duration(self, stage: Stage) -> Duration | None:
        """Without what was learned from finished stages; None where a part of it is not known."""
        if stage.kind in _BY_TEXT:
            sample = self.data.get(stage.key if stage.kind == "data" else stage.inputs["data"].key)
            fixed, each = _BY_TEXT[stage.kind]
            if sample is None:
                return None
            return Duration(fixed + each * (sample.num_bytes if stage.kind == "data" else sample.kept_bytes) / 1e6)
        if stage.kind == "tokenize":
            sample = self.samples.get(first_tokens(stage).key)
            return Duration(_START + _PER_RECORD * sample.encoding * sample.kept_bytes) if sample else None
        if not stage.runs:
            return Duration(0.0)
        base = next((base for base in self.lock.bases.values() if base.digest == _digest(stage)), None)
        if base is None or base.digest not in self.rates:
            return None
        model = _Model(self.rates[base.digest], blocks_of(stage, num_blocks(base.config) or 1), self.options.forward_tokens)
        tokens = stage.inputs.get("tokens")
        first = first_tokens(tokens).key if tokens else ""
        sample = self.samples.get(first)
        if tokens and sample is None:
            return None
        made = _START + model.load
        if "train" in stage.config:
            return _training(stage, model, sample, self.amounts.get(first), made) if tokens and sample else None
        if stage.kind in ("prune.blocks", "skip.blocks"):
            # Saved, and loaded again to show that it is the same.
            found = search_seconds(stage, model, sample) if sample else Duration(0.0)
            return Duration(made + model.load + found.seconds, found.at_most)
        if stage.kind == "exit.early":
            method = stage.config["method"]
            read = min(method["calibration"]["tokens"], _read(sample, "validation")) if sample else 0.0
            return Duration(made + model.load + (1 + len(method["thresholds"])) * model.reading(read))
        if stage.kind in ("prune.heads", "prune.mlp"):
            # Read once to measure; a slope of the loss takes a pass back as well, which is two more.
            read = min(stage.config["method"]["calibration"]["tokens"], _read(sample, "train")) if sample else 0.0
            passes = 4 if stage.config["method"]["by"] == "taylor" else 1
            return Duration(made + model.load + passes * model.reading(read))
        if stage.kind == "prune.vocabulary":
            return Duration(made + model.load)
        if stage.kind == TEACHER:
            amount = self.amounts.get(first)
            # Of each target besides what scoring it takes: all words sorted by likelihood, rounded and written.
            kept = _KEPT_WORDS * self.rates[base.digest]["score"][3] * amount.tokens if amount else 0.0
            return Duration(made + model.reading(_read(sample, "train")) + kept) if amount and sample else None
        if stage.kind == ANSWERS:
            return _written(stage, model, sample, made) if sample else None
        row = evaluations().get(stage.kind.removeprefix("evaluate."))
        measured = _EVALUATIONS.get(stage.kind)
        if row is None or measured is None:
            return Duration(made) if stage.kind in _ONLY_LOADED else None
        with contextlib.suppress(ParetuneError, OSError, KeyError):
            found = measured(stage, model, sample or _NO_TEXT, self)
            return Duration(made + found.seconds, found.at_most)
        return None


def durations(work: Work, plan: Plan, store: Store) -> dict[Stage, Duration]:
    """Of the stages of a plan as far as they are known, learned from all that this machine has finished in the store."""
    records = {record.key: record for record in store.records()}
    ratios: dict[tuple[str, str | None], list[float]] = {}
    for record in records.values():
        stage = _stage_of(record, records, plan)
        known = work.duration(stage) if stage and record.machine == fingerprint() else None
        if known and known.seconds and not record.metrics.get("resumed_from"):
            # The CPU time where it is less: other work on the machine has held the stage up.
            seconds = min(record.seconds, record.cpu_seconds or record.seconds) if record.device == "cpu" else record.seconds
            ratios.setdefault((record.kind, _digest(record)), []).append(seconds / known.seconds)
    found = {}
    for stage in plan.stages:
        known = work.duration(stage)
        if known is not None:
            learned = ratios.get((stage.kind, _digest(stage)))
            factor = statistics.median(learned) if learned else 1.0
            found[stage] = Duration(known.seconds * factor, known.at_most)
    return found


def search_seconds(stage: Stage, model: "_Model", sample: Sample) -> Duration:
    """Of a choice of blocks that is measured."""
    method = stage.config["method"]
    if not method.get("calibration"):
        return Duration(0.0)
    num = model.blocks
    share = sum(b.completion for t in sample.texts for b in t.branches) / max(1, sum(t.read for t in sample.texts))
    tokens = min(method["calibration"]["tokens"], _read(sample, "train"))
    of_pass, of_token, rest_pass, rest_token = model.rates["score"]
    passes = math.ceil(tokens / _WALK_TOKENS)
    of_call = passes * of_pass + tokens * of_token
    of_head = passes * rest_pass + (1.0 if sample.plain else share) * tokens * rest_token
    if method["choose"] != "loss":
        return Duration((4 if method["choose"] == "taylor" else 1) * num * of_call)
    window = min(stage.config["max_length"], sum(text.read for text in sample.texts) / max(1, len(sample.texts)))
    first = min(1.0, max(SHARES[0], LEAST_DOCUMENTS * window / max(1, tokens)))
    way, most = search_passes(num, method, of_head / of_call, first)
    if way != "race":
        return Duration(most * of_call)
    minutes = (method["budget"] or {}).get("minutes")
    return Duration(60 * minutes if minutes else most * of_call, "candidates may soon be told apart")


def blocks_of(stage: Stage, num: int) -> int:
    """Of the model that a stage is given, of a base of `num` blocks."""
    before = stage.inputs.get("model") or stage.inputs.get("choice")
    while before is not None:
        if before.kind in ("prune.blocks", "skip.blocks"):
            method = before.config["method"]
            num -= num_removed(method, num)
        # What a choice is made from differs in other things.
        before = before.inputs.get("model") if before.runs else next(iter(before.inputs.values()))
    return max(1, num)


@dataclass(frozen=True)
class _Model:
    """A model that a stage is given, by what it takes."""

    rates: Rates
    blocks: int
    pass_tokens: int

    @property
    def load(self) -> float:
        return self.rates["load"][2]

    def seconds(self, kind: str, passes: float, tokens: float) -> float:
        of_pass, of_token, rest_pass, rest_token = self.rates[kind]
        return passes * (self.blocks * of_pass + rest_pass) + tokens * (self.blocks * of_token + rest_token)

    def reading(self, tokens: float) -> float:
        return self.seconds("score", math.ceil(tokens / self.pass_tokens), tokens)

    def writing(self, tokens: float, longest: float) -> float:
        """Answers of so many tokens in all, side by side; the longest takes a pass for each of its own."""
        if "write" not in self.rates:  # padded, through transformers' own cache
            return self.seconds("decode", 0, max(longest, tokens / 16))
        return self.seconds("write", max(longest, tokens / _ROWS_TOGETHER), tokens)


def _training(stage: Stage, model: _Model, sample: Sample, amount: Amount | None, made: float) -> Duration | None:
    settings = stage.config["train"]
    kind = stage.kind if stage.kind in model.rates else next((k for k in model.rates if k in methods()), None)
    if amount is None or kind is None:
        return None
    per_epoch = max(1, math.ceil(amount.windows / settings["batch_size"]))
    steps = settings["max_steps"] or per_epoch * (settings["epochs"] or 3)
    every = per_epoch if settings["evaluate_every"] == "epoch" else settings["evaluate_every"]
    if sample.plain:
        epoch, validation = amount.tokens + amount.windows, _read(sample, "validation")
    else:
        # A context once for all of its tasks, as far as a step holds them together.
        shared = settings.get("layout", "trees") == "trees"
        read = [t.read if shared else sum(1 + t.context + b.prompt + b.completion for b in t.branches) for t in sample.texts]
        epoch = sum(read) * sample.shares["train"]
        validation = _read(sample, "validation")
    in_step = epoch / per_epoch
    work = model.seconds(kind, steps * math.ceil(in_step / model.pass_tokens), steps * in_step)
    measuring = math.ceil(steps / every) * model.reading(validation)
    return Duration(made + model.load + work + measuring, "may stop early" if settings.get("early_stopping") else "")


def _read(sample: Sample, split: str) -> float:
    """Tokens of a split, each read once."""
    return sum(text.read for text in sample.texts) * sample.shares[split]


def _perplexity(stage: Stage, model: _Model, sample: Sample, work: Work) -> Duration:
    settings, length = stage.config["evaluation"], stage.config["max_length"]
    tokens = sum(
        sample.shares[split] * (_in_windows(text.read - 1, length, settings["stride"]) if sample.plain else text.read)
        for split in settings["splits"]
        for text in sample.texts
    )
    return Duration(model.reading(tokens))


def _in_windows(tokens: int, length: int, stride: int | None) -> int:
    """Tokens that are read of a text whose windows overlap."""
    return tokens if tokens <= length else length * (1 + math.ceil((tokens - length) / (stride or length // 2)))


def _forgetting(stage: Stage, model: _Model, sample: Sample, work: Work) -> Duration:
    settings = stage.config["evaluation"]
    fields = tuple(settings.get(name) for name in ("text", "document", "format", "max_documents"))
    sizes = _outside_sizes(stage.resources["items"], stage.resources["base"], fields)
    return Duration(model.reading(sum(_in_windows(1 + n, settings["max_length"], settings["stride"]) for n in sizes)))


def _qa(stage: Stage, model: _Model, sample: Sample, work: Work) -> Duration:
    settings = stage.config["evaluation"]
    num, factual, tokens = _question_sizes(stage.resources["items"], stage.resources["base"], settings.get("format"))
    limit = settings["max_new_tokens"]
    reading = model.reading(tokens) + (model.reading(tokens * factual / num) if factual else 0.0)
    written = model.writing(factual * limit, limit) if factual else 0.0
    return Duration(reading + written, "answers may end before `max_new_tokens`" if factual else "")


@functools.lru_cache(maxsize=16)
def _question_sizes(items: Resource, base: Resource, form: str | None) -> tuple[int, int, float]:
    """How many questions there are, how many of them are factual, and their tokens with all answers, about."""
    questions = load_function("paretune.data.questions:read_questions")(str(items), form)
    letters = sum(len(q.context) + len(q.question) + sum(map(len, q.options or (q.answer,))) + 20 for q in questions)
    some = [f"{q.context}{q.question} {' '.join(q.options or (q.answer,))}" for q in questions[:200]]
    tokens = letters * sum(count_tokens(some, base)) / max(1, sum(map(len, some)))
    return len(questions), sum(not question.options for question in questions), tokens


@functools.lru_cache(maxsize=16)
def _outside_sizes(items: Resource, base: Resource, fields: tuple[Any, ...]) -> list[int]:
    """Tokens of each document."""
    documents = load_function("paretune.data.outside:outside_documents")(str(items), *fields)
    return count_tokens([text for _, text in documents], base)


def _generate(stage: Stage, model: _Model, sample: Sample, work: Work) -> Duration:
    settings = stage.config["evaluation"]
    num, limit = len(settings["prompts"]), settings["max_new_tokens"]
    read = sum(1 + n for n in count_tokens(settings["prompts"], stage.resources["base"]))
    return Duration(model.reading(read) + model.writing(num * limit, limit), "texts may end before `max_new_tokens`")


def _latency(stage: Stage, model: _Model, sample: Sample, work: Work) -> Duration:
    settings = stage.config["evaluation"]
    runs = settings["warmup"] + settings["repeats"]
    prompts = runs * max(1.0, settings.get("batch_size", 1) * settings["prompt_tokens"] / _PROMPT)
    return Duration(model.seconds("decode", prompts, runs * (settings["new_tokens"] - 1)))


def _tasks(stage: Stage, model: _Model, sample: Sample, work: Work) -> Duration:
    settings, tasks = stage.config["evaluation"], stage.config["evaluation"]["tasks"]
    taught = _is_trained(stage.inputs.get("model"))
    labels = {name: _label_tokens(sample, name) for name, task in tasks.items() if task.get("labels")}
    read = written = answers = longest = 0.0
    for split in settings["splits"]:
        share = sample.shares[split]
        if settings["max_documents"]:
            share = min(share, settings["max_documents"] / max(1, len(sample.texts)))
        for text in sample.texts:
            asked = [branch for branch in text.branches if branch.task in tasks]
            read += share * (1 + text.context + sum(branch.prompt for branch in asked))
            for branch in asked:
                limit = tasks[branch.task]["max_new_tokens"]
                new = min(limit, branch.completion + 1) if taught else limit
                written, answers, longest = written + share * new, answers + share * new, max(longest, new)
                of_labels, num_labels = labels.get(branch.task, (0, 0))
                read += share * ((1 + text.context if num_labels else 0) + of_labels + num_labels * branch.prompt)
    seconds = model.reading(read) + model.writing(written, longest)
    if encoder := settings.get("encoder"):
        locked = next((m for m in work.lock.models.values() if m.digest == encoder["digest"]), None)
        directory = locked.resource.directory() if locked else None
        base = stage.resources["base"].directory()
        if directory is None or base is None:
            raise KeyError("encoder")
        # Answer and reference are read by it, at the speed of the base for each weight.
        seconds += model.reading(2 * answers) * count_weights(directory) / count_weights(base)
    return Duration(seconds, "" if taught else "answers may end before `max_new_tokens`")


def _written(stage: Stage, model: _Model, sample: Sample, made: float) -> Duration:
    """Of a teacher's answers to the prompts of the training split."""
    taught, limit = _is_trained(stage.inputs.get("model")), stage.config["max_new_tokens"]
    share, branches = sample.shares["train"], [branch for text in sample.texts for branch in text.branches]
    read = share * sum(1 + text.context + sum(branch.prompt for branch in text.branches) for text in sample.texts)
    lengths = [min(limit, branch.completion + 1) if taught else limit for branch in branches]
    writing = model.writing(share * sum(lengths), max(lengths, default=0))
    return Duration(made + model.reading(read) + writing, "" if taught else "answers may end before `max_new_tokens`")


def _label_tokens(sample: Sample, task: str) -> tuple[int, int]:
    """Of all labels of a task together, about, and how many there are: their lengths tell some of them apart."""
    lengths = {b.completion for text in sample.texts for b in text.branches if b.task == task}
    num = max(2, 2 * len(lengths))
    return round(num * statistics.mean(lengths or {2})) + num, num


def _is_trained(stage: Stage | None) -> bool:
    if stage is None:
        return False
    return "train" in stage.config or not stage.runs or _is_trained(stage.inputs.get("model"))


def _digest(of: Stage | Record) -> str | None:
    base = of.config.get("base")
    return base["digest"] if isinstance(base, Mapping) else None


def _stage_of(record: Record, records: Mapping[str, Record], plan: Plan) -> Stage | None:
    """The stage that left a record; of the plan, or as far as its parents are known."""
    known = {stage.key: stage for stage in plan.stages}
    if record.key in known:
        return known[record.key]
    inputs = {}
    for role, key in record.inputs.items():
        parent = known.get(key) or (_stage_of(records[key], records, plan) if key in records else None)
        if parent is None:
            return None
        inputs[role] = parent
    twins = _twins(record, plan)
    return Stage(record.kind, record.config, "recorded", inputs, (), next(twins, {}), record.revision)


def _twins(record: Record, plan: Plan) -> Iterator[Mapping[str, Any]]:
    """Where stages of the same kind and base find what lies outside."""
    return (stage.resources for stage in plan.stages if stage.kind == record.kind and _digest(stage) == _digest(record))


_EVALUATIONS = {
    "evaluate.perplexity": _perplexity,
    "evaluate.forgetting": _forgetting,
    "evaluate.qa": _qa,
    "evaluate.generate": _generate,
    "evaluate.latency": _latency,
    "evaluate.tasks": _tasks,
}
_ONLY_LOADED = ("evaluate.size",)
