"""What a teacher answers to the prompts of the training split: written once, for all of its students."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from paretune.data.tokens import read_tokens
from paretune.evaluate.answers import Decoding, write_answers
from paretune.evaluate.tasks import Question, prompts_of
from paretune.model.load import load_model
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import AnswersConfig


def write_teacher_answers(context: StageContext) -> dict[str, Any]:
    """Stage body: `answers.jsonl`, an object for each example of the training split, in their order.

    Of the record: `answers`, `ended` (by their end or a stop text) and `answer_tokens`, all by the tokenizer of the teacher.
    """
    config = context.parse(AnswersConfig)
    loaded = load_model(context, fused=True)
    rows = read_tokens(context.inputs["tokens"].path, "train")
    questions = [Question(row, (row["reference"],)) for row in rows]
    how = {"max_new_tokens": config.max_new_tokens, "stop": config.stop}
    prompts = prompts_of(questions, dict.fromkeys((question.task for question in questions), how), loaded)
    for number, question in enumerate(questions):
        drawn_by = hashlib.sha256("\0".join(question.row[name] for name in ("document", "example", "task")).encode())
        prompts[number] = replace(prompts[number], seed=int.from_bytes(drawn_by.digest()[:7]))
    decoding = Decoding(temperature=config.temperature)
    answers = write_answers(loaded, prompts, decoding, emit=partial(context.emit, part="answers of the teacher"))
    with (context.draft / "answers.jsonl").open("w", encoding="utf-8") as file:
        for question, answer in zip(questions, answers, strict=True):
            row = {name: question.row[name] for name in ("document", "example", "task")}
            row |= {"prompt": loaded.tokenizer.decode(question.row["prompt"]), "answer": answer.text}
            row |= {"ended": answer.stopped_by in ("eos", "stop"), "reference": question.references[0]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    stops = Counter(answer.stopped_by for answer in answers)
    return {
        "answers": len(answers),
        "ended": stops["eos"] + stops["stop"],
        "answer_tokens": sum(len(answer.ids) for answer in answers),
    }
