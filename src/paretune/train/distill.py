"""Distillation: a student is trained on the text and on what a teacher says of every word at every target."""

from typing import Any

from paretune.model.soft_loss import SoftLoss
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import TrainConfig
from paretune.study.methods import DistillLogits
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
