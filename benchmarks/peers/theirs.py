"""The peers' side: Hugging Face Trainer with PEFT, TRL's SFTTrainer, lm-evaluation-harness, transformers' generate.

    python theirs.py PEER MODEL FILE SETTING

FILE is what Paretune's side left: the same examples in the same steps, or the same prompts. SETTING is JSON. Runs in an
environment of its own, which `requirements.txt` beside this file describes; knows nothing of Paretune.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from turns import Turns, now

IGNORED = -100


def main(peer: str, model: str, shared: Path, setting: dict[str, Any]) -> None:
    turns = Turns()
    torch.set_num_threads(setting["threads"])
    {"lm-eval": serve_harness, "generate": serve_generate}.get(peer, serve_trainer)(peer, model, shared, setting, turns)


def serve_trainer(peer: str, directory: str, shared: Path, setting: dict[str, Any], turns: Turns) -> None:
    """One optimizer step a turn."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    given = json.loads(shared.read_text())
    steps, train, method = _ordered(given["steps"], setting), given["train"], given["method"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    records = [
        {"input_ids": each["ids"], "labels": [IGNORED] * each["first_target"] + each["ids"][each["first_target"] :]}
        for step in steps
        for each in step
    ]
    clock = {"start": 0.0}

    class InTurn(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.wait()

        def on_log(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: Any = None, **___: Any) -> None:
            if "loss" in logs:
                seconds = now() - clock["start"]
                tokens = sum(len(each["ids"]) for each in steps[state.global_step - 1])
                turns.tell(seconds=seconds, loss=logs["loss"], tokens=tokens)
                self.wait()

        def wait(self) -> None:
            turns.take()
            clock["start"] = now()

    trainer = _trainer(peer, directory, tokenizer, Dataset.from_list(records), train, method, setting)
    trainer.add_callback(InTurn())
    turns.tell(ready=True)
    trainer.train()


def _ordered(steps: list[Any], setting: dict[str, Any]) -> list[Any]:
    """As they come, or grouped by length: all examples sorted, cut into steps, the steps shuffled."""
    if setting.get("order") != "grouped":
        return [sorted(step, key=lambda each: -len(each["ids"])) for step in steps]
    size = len(steps[0])
    whole = sorted((each for step in steps for each in step), key=lambda each: -len(each["ids"]))
    grouped = [whole[start : start + size] for start in range(0, len(whole), size)]
    order = torch.randperm(len(grouped), generator=torch.Generator().manual_seed(0)).tolist()
    return [grouped[n] for n in order]


def _trainer(peer: str, directory: str, tokenizer: Any, dataset: Any, train: Any, method: Any, setting: dict[str, Any]) -> Any:
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

    micro = setting.get("micro", train["batch_size"])
    arguments: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": train["batch_size"] // micro,
        "max_steps": train["max_steps"],
        "learning_rate": method["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": train["weight_decay"],
        "max_grad_norm": train["max_grad_norm"],
        "train_sampling_strategy": "sequential",  # the order is made above
        "bf16": setting["precision"] == "bfloat16",
        "gradient_checkpointing": setting.get("checkpointing", False),
        "torch_compile": setting.get("compile", False),
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    model = _peft_model(directory, method, setting)
    if peer == "trl":
        from trl import SFTConfig, SFTTrainer

        extra = {
            "max_length": None,
            "padding_free": setting.get("flat", False),
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        return SFTTrainer(model, SFTConfig(**arguments, **extra), train_dataset=dataset, processing_class=tokenizer)
    flat = setting.get("flat", False)
    collator = DataCollatorWithFlattening() if flat else DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    return Trainer(model, TrainingArguments(**arguments), train_dataset=dataset, data_collator=collator)


def _peft_model(directory: str, method: dict[str, Any], setting: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, setting.get("weights", "float32")))
    model.config.use_cache = False
    if "r" not in method:
        return model
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method["r"],
        lora_alpha=method["alpha"],
        lora_dropout=method["dropout"],
        target_modules=method["targets"],
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return get_peft_model(model, config)


def serve_harness(_: str, directory: str, shared: Path, setting: dict[str, Any], turns: Turns) -> None:
    """The next questions a turn; the time is that of the harness's own `loglikelihood`, from texts to numbers."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    spent: list[float] = []

    class Timed(HFLM):  # type: ignore[misc]  # the environment of the checks has no harness
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            start = now()
            found = super().loglikelihood(requests, disable_tqdm=True)
            spent.append(now() - start)
            return found

    file, per_turn = shared.with_name("harness-turn.jsonl"), json.loads(shared.read_text())["per_turn"]
    lines = shared.with_name("harness.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    # Definitions of the official openbookqa task; a text begins with the token that Paretune puts before every text.
    task = {
        "task": "bench",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": tokenizer.eos_token + "{{question_stem}}",
        "doc_to_target": "{{choices.label.index(answerKey.lstrip())}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
        ],
        "metadata": {"version": 1.0},
    }
    lm = Timed(pretrained=directory, device="cpu", dtype=setting["precision"], batch_size=setting["batch"])
    turns.tell(ready=True)
    for first in itertools.cycle(range(0, len(lines) - per_turn + 1, per_turn)):
        turns.take()
        file.write_text("".join(lines[first : first + per_turn]), encoding="utf-8")
        out = simple_evaluate(
            model=lm, tasks=[task], task_manager=TaskManager(include_defaults=False), log_samples=True, bootstrap_iters=0
        )
        samples = sorted(out["samples"]["bench"], key=lambda each: each["doc_id"])
        scores = {name: out["results"]["bench"][f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")}
        turns.tell(seconds=spent.pop(), sums=[[one[0] for one in each["filtered_resps"]] for each in samples], **scores)


def serve_generate(_: str, directory: str, shared: Path, setting: dict[str, Any], turns: Turns) -> None:
    """The next prompts a turn, in batches of prompts of like length, padded on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, setting["precision"])).eval()
    given = json.loads(shared.read_text())
    size, per_turn = setting["batch"], given["per_turn"]
    turns.tell(ready=True)
    for first in itertools.cycle(range(0, len(given["prompts"]) - per_turn + 1, per_turn)):
        turns.take()
        prompts = given["prompts"][first : first + per_turn]
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        answers: dict[int, list[int]] = {}
        start = now()
        for begin in range(0, len(order), size):
            part = order[begin : begin + size]
            batch = tokenizer.pad({"input_ids": [prompts[n] for n in part]}, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(
                    **batch,
                    max_new_tokens=given["limit"],
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    cache_implementation=setting.get("cache"),
                )
            for n, ids in zip(part, out[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                answers[n] = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
        seconds = now() - start
        turns.tell(seconds=seconds, tokens=sum(map(len, answers.values())), answers=[answers[n] for n in range(len(prompts))])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
