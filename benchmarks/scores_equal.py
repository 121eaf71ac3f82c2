"""Our scores beside those of the programs that define them: lm-evaluation-harness, rouge-score and bert-score.

    python benchmarks/scores_equal.py --models DIR ... --questions openbookqa.jsonl --text FILE --pairs scitldr/test.jsonl

For each model on OpenBookQA: the evaluation `qa` of a study, and the engine as a model of the harness, each against the
harness' own `hf` model on the same tokens; then the harness' `word_perplexity`, `byte_perplexity` and `bits_per_byte` of a text
in documents and of the whole text as one document, which is longer than the models reach; and bits per byte as a study
measures them (against `hf` with `add_bos_token=False`). ROUGE and BERTScore of pairs of texts (abstract and summary), the
latter with a small encoder of random weights. Needs the extra `score`. Exits with 1 where anything differs by more than 1e-4.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rouge_score import rouge_scorer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from paretune.data.questions import read_questions, request_of
from paretune.data.sources import blocks
from paretune.data.templates import parse_template
from paretune.data.windows import window_examples
from paretune.evaluate.bert_score import bert_score, load_encoder
from paretune.evaluate.likelihood import join_windows
from paretune.evaluate.lm_eval import ParetuneLM
from paretune.evaluate.qa import answer_likelihoods, choices_of
from paretune.evaluate.scorers import rouge
from paretune.model.forward import score
from paretune.pipeline.resources import Resource

LIMIT = 1e-4
CHOICE = {"acc": "accuracy_unnormalised", "acc_bytes": "accuracy"}
"""The harness' metrics of multiple choice, and ours that are defined alike."""
BLOCK_CHARACTERS = 500
_WORST = [0.0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--limit", type=int, default=500, help="questions, and pairs of texts")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_task_data(arguments, folder)
        for directory in arguments.models:
            print(f"\n{Path(directory).name}\n")
            compare_model(directory, arguments, folder)
        print("\nScores of texts\n")
        compare_texts(arguments, folder)
    print(f"\nlargest difference: {_WORST[0]:.1e}")
    return int(_WORST[0] > LIMIT)


def write_task_data(arguments: argparse.Namespace, folder: Path) -> None:
    questions = Path(arguments.questions).read_text(encoding="utf-8").splitlines()[: arguments.limit]
    (folder / "questions.jsonl").write_text("\n".join(questions) + "\n", encoding="utf-8")
    text = Path(arguments.text).read_text(encoding="utf-8")
    for name, parts in (("blocks", blocks(text, BLOCK_CHARACTERS)), ("whole", [text])):
        rows = (json.dumps({"text": part}) for part in parts)
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def compare_model(directory: str, arguments: argparse.Namespace, folder: Path) -> None:
    theirs, engine = HFLM(directory, device="cpu", dtype="float32", batch_size=16), ParetuneLM(directory, device="cpu")
    # A study puts the beginning-of-text token before every text, the harness where the tokenizer does so by itself.
    begins = theirs.tok_encode("a")[0] == engine.prefix_token_id
    prefix = "" if begins else engine.tokenizer.decode(engine.prefix_token_id)
    tasks = [choice_task(folder, "openbookqa", ""), choice_task(folder, "openbookqa_begun", prefix)]
    tasks += [text_task(folder, name) for name in ("blocks", "whole")]
    expected, found = run_tasks(theirs, tasks), run_tasks(engine, tasks)
    print("| what | of | lm-evaluation-harness | Paretune | largest difference |\n|---|---:|---:|---:|---:|")
    for name in ("openbookqa", "blocks", "whole"):
        compare_tasks(name, expected, found)
    compare_questions(engine, folder, expected["samples"]["openbookqa_begun"], expected["results"]["openbookqa_begun"])
    # By itself such a tokenizer gives the harness a second beginning of the text, which is then predicted from the first.
    plain = HFLM(directory, device="cpu", dtype="float32", batch_size=16, add_bos_token=False) if begins else theirs
    compare_bits(engine, folder, run_tasks(plain, [text_task(folder, "blocks")])["results"]["blocks"])
    compare_long(engine, theirs, Path(arguments.text).read_text(encoding="utf-8"))


def compare_long(engine: ParetuneLM, theirs: HFLM, text: str) -> None:
    """Four continuations of each of 40 contexts of 1,000 characters, and the processor time of both sides."""
    pairs = [(text[n * 400 : n * 400 + 1000], f" {text[k * 90 : k * 90 + 30]}") for n in range(40) for k in range(4)]
    asked = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    clock = [time.process_time()]
    sides = []
    for model in (theirs, engine):
        sides.append([value for value, _ in model.loglikelihood(asked, disable_tqdm=True)])
        clock.append(time.process_time())
    compare_lists("4 continuations of 40 contexts: log-likelihoods", *sides)
    print(f"\nprocessor time of these: `hf` in batches of 16 {clock[1] - clock[0]:.1f} s, ours {clock[2] - clock[1]:.1f} s")


def compare_tasks(name: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """The engine as a model of the harness: every log-likelihood, and every figure."""
    sides = ([each["resps"] for each in side["samples"][name]] for side in (expected, found))
    theirs, ours = (np.array(numbers(side), dtype=np.float64) for side in sides)
    # Sums over thousands of tokens: relative to their size, as their rounding is.
    difference = float(np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs) / 100)))
    line(f"{name}: log-likelihoods by the engine in the harness", len(ours), theirs.mean(), ours.mean(), difference)
    for metric, value in expected["results"][name].items():
        if isinstance(value, float):
            mine = found["results"][name][metric]
            size = max(1.0, abs(value) / 100) if "perplexity" in metric else 1.0
            line(f"{name}: {metric.partition(',')[0]}", len(expected["samples"][name]), value, mine, abs(value - mine) / size)


def compare_questions(engine: ParetuneLM, folder: Path, samples: Sequence[Any], results: Mapping[str, float]) -> None:
    """The evaluation `qa` of a study: log-likelihoods of options, and its accuracies."""
    questions = read_questions(folder / "questions.jsonl")
    templates = parse_template("{{ question }}"), parse_template(" {{ answer }}")
    likelihoods = answer_likelihoods(engine.loaded, [request_of(one, *templates) for one in questions], 4096)
    theirs = [[option[0][0] for option in sample["resps"]] for sample in sorted(samples, key=lambda one: one["doc_id"])]
    gaps = [abs(a - b) for mine, other in zip(likelihoods, theirs, strict=True) for a, b in zip(mine.sums, other, strict=True)]
    means = [float(np.mean([value for row in side for value in row])) for side in (theirs, [one.sums for one in likelihoods])]
    line("qa of a study: log-likelihoods of options", len(gaps), *means, max(gaps))
    taken = [choices_of(question, one)[0] for question, one in zip(questions, likelihoods, strict=True)]
    for metric, own in CHOICE.items():
        share = sum(one[own] == q.answer_index for one, q in zip(taken, questions, strict=True)) / len(questions)
        value = results[f"{metric},none"]
        line(f"qa of a study: `{own}` and `{metric}`", len(questions), value, share, abs(share - value))


def compare_bits(engine: ParetuneLM, folder: Path, results: Mapping[str, float]) -> None:
    """Bits per byte as `perplexity` measures them, of documents that fit into one window of both."""
    texts = [json.loads(row)["text"] for row in (folder / "blocks.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer, length = engine.loaded.tokenizer, engine.max_length
    ids = [np.array(tokenizer.encode(text), np.int32) for text in texts]
    assert max(map(len, ids)) < length, "a document does not fit; lower BLOCK_CHARACTERS"
    examples, counts = window_examples(ids, tokenizer, length, length // 2)
    scored = join_windows(score(engine.packed, examples, forward_tokens=4096), counts)
    bits = sum(float(one.nats.sum()) for one in scored) / math.log(2) / sum(len(text.encode()) for text in texts)
    value = results["bits_per_byte,none"]
    line("perplexity of a study: bits per byte", len(texts), value, bits, abs(value - bits))


def compare_texts(arguments: argparse.Namespace, folder: Path) -> None:
    rows = [json.loads(row) for row in Path(arguments.pairs).read_text(encoding="utf-8").splitlines()[: arguments.limit]]
    pairs = [(" ".join(row["source"])[:600], row["target"][0]) for row in rows]
    # rouge-score drops letters that are not ASCII, which count here.
    plain = [pair for pair in pairs if all(text.isascii() for text in pair)]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    print("| what | of | package | Paretune | largest difference |\n|---|---:|---:|---:|---:|")
    for theirs, ours in (("rouge1", "rouge_1"), ("rouge2", "rouge_2"), ("rougeL", "rouge_l")):
        expected = [scorer.score(reference, text)[theirs].fmeasure for text, reference in plain]
        found = [rouge(text, reference)[ours] for text, reference in plain]
        compare_lists(f"{ours}, rouge-score", expected, found)
    compare_bert_scores(write_encoder(folder / "encoder", [text for pair in plain for text in pair]), plain[:100])


def compare_bert_scores(encoder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    import bert_score as package

    texts, references = ([pair[side] for pair in pairs] for side in (0, 1))
    with contextlib.redirect_stdout(io.StringIO()):
        expected = package.score(
            texts, references, model_type=str(encoder), num_layers=2, device="cpu", use_fast_tokenizer=True
        )
    found = bert_score(load_encoder({"layer": 2}, Resource(path=encoder), torch.device("cpu")), texts, references)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=True):
        compare_lists(f"bert_score_{name}, bert-score", values.tolist(), [one[f"bert_score_{name}"] for one in found])


def write_encoder(directory: Path, texts: Sequence[str]) -> Path:
    """A BERT of two layers with random weights, and the words of `texts` as its vocabulary."""
    words = sorted({word for text in texts for word in text.lower().split() if word.isalnum()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(words) + 4, initializer_range=0.3, **sizes)).save_pretrained(directory)
    return directory


def choice_task(folder: Path, name: str, prefix: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": prefix + "{{question.stem}}",
        "doc_to_choice": "{{question.choices | map(attribute='text') | list}}",
        "doc_to_target": "{{(question.choices | map(attribute='label') | list).index(answerKey)}}",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm", "acc_bytes")
        ],
    }


def text_task(folder: Path, name: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": metric} for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }


def run_tasks(model: Any, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()):
        manager = TaskManager(include_defaults=False)
        found = simple_evaluate(model, tasks=[dict(task) for task in tasks], task_manager=manager, bootstrap_iters=0)
    return dict(found)


def numbers(value: Any) -> list[float]:
    """The log-likelihoods in nested answers of the harness, without what is right and wrong."""
    if isinstance(value, float):
        return [value]
    return [number for part in value for number in numbers(part)] if isinstance(value, list | tuple) else []


def compare_lists(what: str, expected: Sequence[float], found: Sequence[float]) -> None:
    largest = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    line(what, len(expected), float(np.mean(expected)), float(np.mean(found)), largest)


def line(what: str, count: int, expected: float, found: float, difference: float) -> None:
    _WORST[0] = max(_WORST[0], difference)
    print(f"| {what} | {count:,} | {expected:.6g} | {found:.6g} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
