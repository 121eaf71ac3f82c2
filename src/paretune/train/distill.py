"""Distillation: a student is trained on what a teacher says, of every word at every target, or as answers to prompts."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretune.data.examples import examples_of
from paretune.data.tokenizer import TextTokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import Examples
from paretune.errors import StageError
from paretune.model.soft_loss import SoftLoss
from paretune.pipeline.records import read_lines
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import TrainConfig
from paretune.study.methods import DistillLogits, DistillText
from paretune.study.train import Train
from paretune.train.loop import plain_loss
from paretune.train.stages import Teaching, adapters, all_weights, train
from paretune.train.teacher import read_teacher


def distill_logits(context: StageContext) -> dict[str, Any]:
    """Stage body: as `train.full`, or `train.lora`, with the input `teacher` in the loss.

    `train_loss` of the curves is that of the text, as in every training. Of the record, `teacher` holds what its stage says of
    itself, and the name, share and temperature that it was used with.
    """
    config = context.parse(TrainConfig[DistillLogits])
    method, teacher = config.method, read_teacher(context.inputs["teacher"], config.device)
    trained = adapters(context, method.lora, config.seed) if method.lora else all_weights(context)
    loss = SoftLoss(teacher.read, method.alpha, method.temperature)
    assert method.learning_rate is not None, "settled as the config is read"
    teaching = Teaching(teacher.numbered, lambda head, _: loss.of(head))
    numbers = train(context, config, method.learning_rate, trained, teaching)
    used = {"name": method.teacher, "alpha": method.alpha, "temperature": method.temperature, "cache": method.cache}
    return numbers | {"teacher": used | teacher.metrics}


def distill_text(context: StageContext) -> dict[str, Any]:
    """Stage body: as `train.full`, or `train.lora`, with the answers of the input `teacher` as completions; validation stays.

    Of the record, `teacher_answers` holds what its stage says of itself, the teacher's name, and of the examples how many were
    `learned`, `cut` among them, how many answers were `left_out` (without an end, too long, or empty), and how many examples
    had none (`unanswered`), as the teacher read no such example.
    """
    config = context.parse(TrainConfig[DistillText])
    method, teacher = config.method, context.inputs["teacher"]
    rows = read_tokens(context.inputs["tokens"].path, "train")
    answers = {_identity(answer): answer for answer in read_lines(teacher.path / "answers.jsonl")}
    counts: Counter[str] = Counter()

    def answered(_: Examples, tokenizer: TextTokenizer) -> Examples:
        kept = list(_with_answers(rows, answers, tokenizer, config.train.max_length, method.keep, counts))
        if not kept:
            raise StageError(
                f"none of the {len(answers):,} answers of the teacher came to an end within `max_new_tokens: "
                f"{method.max_new_tokens}` and `train.max_length`; raise these, name a `stop`, take a teacher that was trained "
                "on such answers, or write `keep: all`"
            )
        return examples_of(kept, tokenizer, config.train.max_length)

    trained = adapters(context, method.lora, config.seed) if method.lora else all_weights(context)
    settings = config.model_copy(update={"train": _steps_of(config.train, len(rows))})
    assert method.learning_rate is not None, "settled as the config is read"
    numbers = train(context, settings, method.learning_rate, trained, Teaching(answered, plain_loss))
    told = {"name": method.teacher, **teacher.record.metrics}
    return numbers | {"teacher_answers": told | {name: counts[name] for name in ("learned", "cut", "left_out", "unanswered")}}


def _with_answers(
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[tuple[str, ...], Mapping[str, Any]],
    tokenizer: TextTokenizer,
    max_length: int,
    keep: str,
    counts: Counter[str],
) -> Iterator[Mapping[str, Any]]:
    """The rows with what was answered in the place of their completions, without those that are not learned."""
    for row in rows:
        answer = answers.get(_identity(row))
        if answer is None:
            counts["unanswered"] += 1
            continue
        before = len(row["context"]) + len(row["prompt"])
        encode = tokenizer.encode_continuation if before else tokenizer.encode
        ids, room = encode(answer["answer"]), max_length - 1 - before
        if answer["ended"] and len(ids) + len(row["end"]) <= room:
            counts["learned"] += 1
            yield {**row, "completion": ids}
        elif keep == "all" and ids:
            counts.update(("learned", "cut"))
            yield {**row, "completion": ids[:room], "end": []}
        else:
            counts["left_out"] += 1


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("document", "example", "task"))


def _steps_of(settings: Train, num_examples: int) -> Train:
    """The same with as many steps, and as often a validation, as of so many examples."""
    in_epoch = math.ceil(num_examples / settings.batch_size)
    steps = settings.max_steps or in_epoch * (settings.num_epochs or 0)
    every = in_epoch if settings.evaluate_every == "epoch" else settings.evaluate_every
    return settings.model_copy(update={"epochs": None, "max_steps": steps, "evaluate_every": every})
