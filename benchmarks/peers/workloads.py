"""What is measured: models of the real shapes with random weights, data cut from real files, and a study file for each row."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 50257
END_OF_TEXT = "<|endoftext|>"
TASKS = {"summary": "{{ summary }}", "title": "{{ title }}", "tags": "{{ tags | join(', ') }}", "type": "{{ type }}"}
PROMPTS = {"summary": "Summarize: ", "title": "Title: ", "tags": "Tags: ", "type": "Type: "}
NEW_TOKENS = 64
"""That are generated as each answer."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a kind of work on a model of one shape."""

    name: str
    kind: Literal["train", "choices", "generate"]
    shape: str
    write: Callable[[Path, Path, int], str]
    """Writes the data into a folder, from the folder of real files, for so many optimizer steps; the study file's text."""
    goal: float
    method: str = "lora"
    per_turn: int = 1
    """Questions, or articles whose tasks are answered."""


def write_model(shape: str, tokenizer: Path, folder: Path) -> None:
    """A model directory: weights drawn with a fixed seed, no dropout."""
    torch.manual_seed(0)
    model = _tiny(shape) if shape.startswith("tiny-") else _model(shape)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        if file.name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(file, folder / file.name)


def write_tokenizer(data: Path, folder: Path) -> None:
    """A byte-level BPE learned from the data, for those who have no tokenizer of GPT-2 at hand."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    files = [data / "bmw/articles.jsonl", data / "instruct/alpaca_en_demo.json", data / "books/sherlock.txt"]
    tokenizer.train([str(file) for file in files], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _model(shape: str) -> PreTrainedModel:
    if shape == "gpt2":  # 82 million parameters
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=768, n_head=12, vocab_size=VOCABULARY, **rates))
    if shape == "smollm2":  # 135 million
        return LlamaForCausalLM(_llama(576, 30, 9, 3, 1536))
    return LlamaForCausalLM(_llama(768, 6, 12, 2, 2048))  # 75 million


def _tiny(shape: str) -> PreTrainedModel:
    if shape == "tiny-gpt2":
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=VOCABULARY, **rates))
    return LlamaForCausalLM(_llama(64, 2, 4, 2, 128))


def _llama(width: int, blocks: int, heads: int, key_heads: int, inner: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
    )


def write_tasks(data: Path, folder: Path, steps: int) -> str:
    """Four tasks an article: 2 articles a step, and as many again for the other splits."""
    _write_lines(folder / "records.jsonl", _articles(data)[: 4 * steps + 8])
    asked = {name: {"prompt": PROMPTS[name], "completion": TASKS[name]} for name in TASKS}
    dataset = {"document": "title", "context": "{{ content }}\n\n", "tasks": asked, "too_long": "cut"}
    return _study("tasks", dataset, "records.jsonl", steps)


def write_long_tasks(data: Path, folder: Path, steps: int) -> str:
    """The same with contexts of up to some 640 tokens."""
    study = json.loads(write_tasks(data, folder, steps))
    study["train"]["max_length"] = 768
    return json.dumps(study, indent=1)


def write_generation(data: Path, folder: Path, steps: int) -> str:
    """The same tasks, answered: of the first records of a split so many that a turn takes seconds."""
    _write_lines(folder / "records.jsonl", _articles(data)[:48])
    scoring = {"score": ["rouge_l"], "max_new_tokens": NEW_TOKENS}
    asked = {name: {"prompt": PROMPTS[name], "completion": TASKS[name], **scoring} for name in TASKS}
    dataset = {"document": "title", "context": "{{ content }}\n\n", "tasks": asked, "too_long": "cut"}
    return _study("generate", dataset, "records.jsonl", steps)


def write_pairs(data: Path, folder: Path, steps: int) -> str:
    """Instructions and their outputs, no two of which share anything."""
    records = json.loads((data / "instruct/alpaca_en_demo.json").read_text(encoding="utf-8"))
    _write_lines(folder / "records.jsonl", records[: 16 * steps + 40])
    return _study("pairs", {"records": "alpaca", "too_long": "skip"}, "records.jsonl", steps)


def write_book(data: Path, folder: Path, steps: int) -> str:
    """A book in windows of 512 tokens: documents are its chapters, so nearly every window is full."""
    shutil.copyfile(data / "books/sherlock.txt", folder / "book.txt")
    return _study("book", {}, "book.txt", steps, source={"chapters": r"^[IVX]+\. [A-Z]"})


def write_openbookqa(data: Path, folder: Path, steps: int) -> str:
    """Questions of 13 tokens and options of 3 to 4, as the harness asks them: the stem, a space, the option."""
    lines = (data / "openbookqa/openbookqa.jsonl").read_text(encoding="utf-8").splitlines()
    _write_questions(folder, (json.loads(line) for line in lines[:200]))
    return _choices(data, folder, steps, "{{ question }}")


def write_reading(data: Path, folder: Path, steps: int) -> str:
    """200 questions on articles: about 300 tokens of one, then which of four pieces of 15 words comes next."""
    generator = random.Random(0)
    articles = [words for article in _articles(data) if len(words := article["content"].split()) > 260][:200]
    pieces = [" ".join(words[225:240]) for words in articles]
    questions = []
    for number, words in enumerate(articles):
        others = generator.sample([n for n in range(len(pieces)) if n != number], 3)
        options = [pieces[number], *(pieces[n] for n in others)]
        generator.shuffle(options)
        choices = [{"text": text, "label": label} for text, label in zip(options, "ABCD", strict=True)]
        stem = f"{' '.join(words[:225])}\n\nQuestion: how does article {number + 1} go on?\nAnswer:"
        key = "ABCD"[options.index(pieces[number])]
        questions.append({"id": str(number + 1), "question": {"stem": stem, "choices": choices}, "answerKey": key})
    _write_questions(folder, iter(questions))
    return _choices(data, folder, steps, "{{ question }}")


def _write_questions(folder: Path, questions: Iterator[dict[str, Any]]) -> None:
    """For Paretune as they are; for the harness with the fields of the official data set."""
    kept = list(questions)
    _write_lines(folder / "questions.jsonl", kept)
    flat = [
        {
            "question_stem": each["question"]["stem"],
            "choices": {name: [choice[name] for choice in each["question"]["choices"]] for name in ("text", "label")},
            "answerKey": each["answerKey"],
        }
        for each in kept
    ]
    _write_lines(folder / "harness.jsonl", flat)


def _choices(data: Path, folder: Path, steps: int, prompt: str) -> str:
    _write_lines(folder / "records.jsonl", _articles(data)[:24])
    study = json.loads(_study("choices", {"document": "title", "text": "{{ content }}"}, "records.jsonl", steps))
    study["evaluate"] = {"qa": {"path": "questions.jsonl", "prompt": prompt, "answer": " {{ answer }}"}}
    return json.dumps(study, indent=1)


def _study(name: str, dataset: dict[str, Any], file: str, steps: int, source: dict[str, Any] | None = None) -> str:
    """JSON, which is YAML."""
    study = {
        "study": name,
        "bases": {"model": {"path": "model"}},
        "data": {"data": {"source": {"path": file, **(source or {})}, "leakage": "allow", **dataset}},
        "train": {
            "max_steps": steps,
            "batch_size": 8,
            "max_length": 512,
            "schedule": "constant",
            "warmup": 0.0,
            "evaluate_every": steps,
            "keep": "last",
        },
        "evaluate": {"perplexity": {}},
        "variants": {
            "base": [],
            "lora": [{"train.lora": {"r": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear", "learning_rate": 3e-4}}],
            "full": [{"train.full": {"learning_rate": 3e-5}}],
        },
    }
    return json.dumps(study, indent=1)


def _articles(data: Path) -> list[dict[str, Any]]:
    lines = (data / "bmw/articles.jsonl").read_text(encoding="utf-8").splitlines()
    articles = [json.loads(line) for line in lines]
    return [each for each in articles if all(each.get(name) for name in ("title", "summary", "tags", "type", "content"))]


def _write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


ROWS = (
    Row("tasks-gpt2", "train", "gpt2", write_tasks, 12),
    Row("tasks-llama", "train", "llama", write_tasks, 10),
    Row("pairs-gpt2", "train", "gpt2", write_pairs, 2),
    Row("pairs-llama", "train", "llama", write_pairs, 2),
    Row("book-lora-gpt2", "train", "gpt2", write_book, 1.3),
    Row("book-lora-llama", "train", "llama", write_book, 1.3),
    Row("book-full-gpt2", "train", "gpt2", write_book, 1.3, "full"),
    Row("book-full-llama", "train", "llama", write_book, 1.3, "full"),
    Row("openbookqa-gpt2", "choices", "gpt2", write_openbookqa, 2.2, per_turn=50),
    Row("reading-gpt2", "choices", "gpt2", write_reading, 4, per_turn=8),
    Row("generate-gpt2", "generate", "gpt2", write_generation, 3, per_turn=16),
    Row("openbookqa-llama", "choices", "llama", write_openbookqa, 2.2, per_turn=50),
    Row("reading-llama", "choices", "llama", write_reading, 4, per_turn=8),
    Row("generate-llama", "generate", "llama", write_generation, 3, per_turn=16),
    Row("tasks-smollm2", "train", "smollm2", write_long_tasks, 4.5),  # in float32; 8 in bfloat16 with AMX
    Row("generate-smollm2", "generate", "smollm2", write_generation, 3, per_turn=4),
)
