"""What people do by hand: Trainer with PEFT, `generate`, the likelihoods of lm-evaluation-harness, one variant after another.

    python hand.py FILE

FILE is what `by_hand.py` left; beside it stands then `.out.json`. Runs in the environment of the peers.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

IGNORED = -100
BATCH = 16
"""Of prompts and of texts whose likelihood is asked."""


def main(file: Path) -> None:
    given = json.loads(file.read_text())
    torch.set_num_threads(given["threads"])
    tokenizer = AutoTokenizer.from_pretrained(given["base"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    seconds: dict[str, float] = {"train": 0.0, "generate": 0.0, "score": 0.0}
    losses: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start

    for name, (shorter, tuned) in given["variants"].items():
        # Frozen weights in the format of the products, as was fastest; scored and asked in float32, as ours are.
        model = AutoModelForCausalLM.from_pretrained(
            given["base"], dtype=getattr(torch, given["precision"] if tuned else "float32")
        )
        if shorter:
            del model.model.layers[-1]
            model.config.num_hidden_layers -= 1
            if getattr(model.config, "layer_types", None):
                model.config.layer_types = model.config.layer_types[:-1]
        if tuned:
            with timed("train"):
                model = train(model, tokenizer, given).float()
        model.eval()
        model.config.use_cache = True
        with timed("generate"):
            write(model, tokenizer, given)
        with timed("score"):
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
            of_pairs = likelihoods(harness, given["pairs"])
            likelihoods(harness, given["asked"])
        losses[name] = -sum(of_pairs) / sum(len(completion) for _, completion in given["pairs"])
    file.with_suffix(".out.json").write_text(json.dumps({"seconds": seconds, "loss": losses}))


def train(model: Any, tokenizer: Any, given: dict[str, Any]) -> Any:
    """The model with its adapter merged."""
    method, settings = given["method"], given["train"]
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=method["r"], lora_alpha=method["alpha"], lora_dropout=0.0, target_modules=method["targets"]
    )
    records = [
        {"input_ids": each["ids"], "labels": [IGNORED] * each["first_target"] + each["ids"][each["first_target"] :]}
        for step in given["steps"]
        for each in sorted(step, key=lambda each: -len(each["ids"]))
    ]
    model.config.use_cache = False
    arguments = TrainingArguments(
        output_dir=mkdtemp(),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings["batch_size"],
        max_steps=settings["max_steps"],
        learning_rate=method["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        train_sampling_strategy="sequential",
        bf16=given["precision"] == "bfloat16",
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    trainer = Trainer(get_peft_model(model, config), arguments, train_dataset=records, data_collator=collator)
    trainer.train()
    return trainer.model.merge_and_unload()


def write(model: Any, tokenizer: Any, given: dict[str, Any]) -> None:
    """Answers to all prompts, those of one limit and like length together."""
    order = sorted(range(len(given["prompts"])), key=lambda n: (given["limits"][n], len(given["prompts"][n])))
    for limit in sorted(set(given["limits"])):
        of_limit = [n for n in order if given["limits"][n] == limit]
        for start in range(0, len(of_limit), BATCH):
            batch = tokenizer.pad(
                {"input_ids": [given["prompts"][n] for n in of_limit[start : start + BATCH]]}, return_tensors="pt"
            )
            with torch.inference_mode():
                model.generate(**batch, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)


def likelihoods(harness: HFLM, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    requests = [(("", ""), context, completion) for context, completion in pairs]
    return [value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
