"""Tasks of lm-evaluation-harness as an evaluation: its prompts, filters and metrics, our engine, one score a document.

What the harness averages over documents is kept document by document, so that variants are compared in pairs: `acc`,
`acc_norm`, `exact_match` ... as they are; `bits_per_byte` weighted by bytes; of a perplexity its logarithm, `word_loss` for
`word_perplexity` (nats a word). Metrics of a whole corpus (BLEU, F1 over classes) stand in the record alone.
"""

import contextlib
import io
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from paretune.errors import DataError, NeedsError
from paretune.evaluate.lm_eval import ParetuneLM
from paretune.evaluate.outputs import Score, write_outputs
from paretune.model.load import load_model
from paretune.pipeline.stage import StageContext
from paretune.study.base import suggestion

_RATIOS = (harness_metrics.bits_per_byte, harness_metrics.weighted_perplexity)
"""Aggregations of pairs (log-likelihood, bytes or words)."""


def evaluate_lm_eval(context: StageContext) -> dict[str, Any]:
    """Stage body: a score for each document and metric in `scores.parquet`, and the harness' own figures in the record."""
    fields = context.config["evaluation"]
    folder = str(context.resources["items"])
    loaded = load_model(context)
    prefix, emit = fields.get("prefix", "tokenizer"), context.emit
    model = ParetuneLM(loaded, forward_tokens=context.options.forward_tokens, prefix=prefix, emit=emit)
    emit(done=0, total=1, part="reading the tasks")
    with _working_in(folder):
        loaded_tasks = _load_tasks(folder, fields["tasks"])
        # As the harness' command does: a task that says 0 keeps it, and the examples are drawn with its seed.
        for task in loaded_tasks["tasks"].values():
            stated = task.get_config("num_fewshot")
            if stated != 0 and (fields["num_fewshot"] is not None or stated is None):
                task.set_config(key="num_fewshot", value=fields["num_fewshot"] or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        results = evaluate(
            model,
            loaded_tasks,
            limit=fields["limit"],
            apply_chat_template=fields["chat_template"],
            fewshot_as_multiturn=fields["chat_template"],
            bootstrap_iters=0,  # intervals are made from the scores, by document
        )
    tasks, samples = loaded_tasks["tasks"], results["samples"]
    write_outputs(context.draft, [score for name in samples for score in document_scores(tasks[name], name, samples[name])])
    metrics: dict[str, Any] = {f"documents_{name}": len({sample["doc_id"] for sample in samples[name]}) for name in samples}
    metrics["prefix"] = loaded.tokenizer.decode(model.prefix_ids)
    for name, figures in results["results"].items():
        numbers = {k: float(v) for k, v in figures.items() if isinstance(v, int | float) and "stderr" not in k}
        metrics[f"harness_{name}"] = numbers
    return metrics


def task_texts(folder: str, tasks: Sequence[str], limit: int | None = None) -> list[str]:
    """Each document's question with its answer, as the text that must not stand in training data."""
    texts: list[str] = []
    with _working_in(folder):
        for name, task in _load_tasks(folder, tasks)["tasks"].items():
            for number, doc in task.doc_iterator(limit=limit):
                try:
                    target = task.doc_to_target(doc)
                    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
                    if choices is not None and isinstance(target, int) and 0 <= target < len(choices):
                        target = choices[target]
                    texts.append(f"{task.doc_to_text(doc)} {target}")
                except (TemplateError, LookupError, TypeError, ValueError) as error:
                    raise DataError(f"task `{name}` does not fit document {number} of its data: {error}; correct it") from None
    return texts


def document_scores(task: Task, name: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[Score]:
    """The scores of a task's documents; of several filters the first gives the metric its name, others add theirs.

    The harness' figure is their weighted mean, or the exp of it; a metric of the whole corpus has no scores.
    """
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    for sample in samples:
        # With what it says, so that documents of a changed dataset are never paired.
        example = f"{sample['doc_id']}:{sample['doc_hash'][:8]}"
        for harness_metric in sample["metrics"]:
            aggregation, value, weight = task.aggregation().get(harness_metric), sample[harness_metric], 1.0
            if aggregation in _RATIOS:
                log_likelihood, size = value
                value = -log_likelihood / size / (math.log(2) if aggregation is harness_metrics.bits_per_byte else 1)
                weight = float(size)
            elif aggregation is harness_metrics.perplexity:
                value = -float(value)
            elif aggregation is not harness_metrics.mean or not (isinstance(value, int | float) or hasattr(value, "item")):
                continue
            metric = harness_metric.replace("perplexity", "loss")
            metric += "" if sample["filter"] == filters[0] else f":{sample['filter']}"
            yield Score(metric, float(value), example, example, weight, task=name)


def _load_tasks(folder: str, names: Sequence[str]) -> TaskDict:
    """The tasks, groups with their members; DataError for an unknown one, NeedsError where data cannot be had."""
    # As the harness' command begins: tasks may draw from their data as they are loaded.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    # The harness' own tasks are 14,000 files: seconds, which a folder that has all of the names needs not wait for.
    manager = TaskManager(include_path=folder or None, include_defaults=not folder)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        manager = TaskManager(include_path=folder or None)
        unknown = [name for name in unknown if not manager.match_tasks([name])]
    if unknown:
        raise DataError(f"lm-evaluation-harness has no task `{unknown[0]}`{suggestion(unknown[0], manager.all_tasks)}")
    asked = f"tasks {', '.join(f'`{name}`' for name in names)} of lm-evaluation-harness"
    try:
        return manager.load(list(names))
    except (TemplateError, LookupError, TypeError) as error:
        raise DataError(f"{asked}: one cannot be asked about the first document of its data: {error}; correct it") from None
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NeedsError(
            f"{asked}: a dataset cannot be loaded ({reason}); the tasks that the harness brings take theirs from the Hugging "
            "Face hub, so run once with a network, or write a task on local files and name its folder in `include_path`"
        ) from None


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """In the folder of the user's tasks, which their `data_files` are relative to; without the harness' bars and notices."""
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.chdir(folder or Path.cwd()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger("lm_eval").setLevel(level)
