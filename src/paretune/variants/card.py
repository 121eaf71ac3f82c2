"""The model card of an export: what it was made from and how, and the lines that load it and answer a prompt of its data.

Every text began with the prefix token in training and in scoring. Most tokenizers do not put it there by themselves, so the
card says which id it is and shows how to. A model that learned chats is asked through its chat template, and its answer ends
where a turn does.
"""

import json
import re
from collections.abc import Mapping
from pprint import pformat
from typing import Any

from paretune.data.chat import ending_ids, render_turn, turn_end
from paretune.data.tokenizer import TextTokenizer
from paretune.pipeline.config_json import DEQUANTIZED_FROM, read_config
from paretune.pipeline.plan import PlannedCell

LOAD_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")"""
LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), ".")"""
_CARD = """\
# {variant}

Made by Paretune from the base `{base}`{weights}, on the data `{dataset}`{seed}.

Methods, in order: {methods}

What an example is:

{templates}

## Use

{prefix} In this directory:

```python
import torch
{load}
{use}
```
"""
_OF_DATA = " The example is a record of the held-out data: put another in its place before others read this."
_GGUF_CARD = """\
# {variant}

Made by Paretune from the base `{base}`, on the data `{dataset}`{seed}: a GGUF file ({type}) for llama.cpp.

Methods, in order: {methods}

What an example is:

{templates}

## How near it is to the model that it was made of

On {agreement_tokens:,} tokens of training text, llama.cpp with this file against PyTorch with the weights in full:
log-likelihoods differ by {mean_difference_nats:+.4f} nats a token in the mean, and by {largest_difference_nats:.3f} at most;
{same_picks:.1%} of the likeliest tokens are right or wrong in both alike; {same_tokens} texts are cut into the same tokens.

## Use

```
llama-cli -m model.gguf{conversation}
ollama create {name} -f Modelfile && ollama run {name}
```
"""
_CONTINUE = """\
ids = torch.tensor([{ids}])
print(tokenizer.decode(model.generate(ids, max_new_tokens=60, do_sample=False)[0]))"""
_ANSWER = """\
from transformers import GenerationConfig
model.generation_config = GenerationConfig(eos_token_id={stops})
{text}
ids = torch.tensor([[{prefix}, {ids}]])
written = model.generate(ids, max_new_tokens={most}, do_sample=False)[0, ids.shape[1] :]
{shown}"""
_PRINT = "print(tokenizer.decode(written, skip_special_tokens=True))"
_PRINT_TO_END = """\
text = tokenizer.decode(written, skip_special_tokens=True)
print(text.split({end!r})[0] if {end!r} in text else tokenizer.decode(written[:{limit}], skip_special_tokens=True))"""


def model_card(
    cell: PlannedCell,
    dataset: Mapping[str, Any],
    tokenizer: TextTokenizer,
    example: Mapping[str, Any] | None = None,
    load: str = LOAD_WHOLE,
) -> str:
    """README.md of an export.

    `dataset` is what the data stage was given, `example` a row of its `documents.parquet` to show, and `load` the lines that
    make `tokenizer` and `model` of the directory.
    """
    name = tokenizer.hf.convert_ids_to_tokens([tokenizer.prefix_id])[0]
    kind = "EOS" if tokenizer.hf.bos_token_id is None else "BOS"
    by_itself = list(tokenizer.hf("a")["input_ids"]) == [tokenizer.prefix_id, *tokenizer.encode("a")]
    how = "puts it there by itself" if by_itself else "does not put it there by itself, so it is written out here"
    directory = next(iter(cell.evaluations.values())).resources["base"].directory()
    dequantized = read_config(directory / "config.json", cell.base).get(DEQUANTIZED_FROM) if directory else None
    return _CARD.format(
        variant=cell.variant,
        base=cell.base,
        weights=f" (weights dequantized from {dequantized})" if dequantized else "",
        dataset=cell.dataset,
        seed="" if cell.seed is None else f", with seed {cell.seed}",
        methods=_methods(cell) or "none: it is the base as it was",
        templates=_templates(dataset),
        prefix=f"The {kind} token `{name}`, id {tokenizer.prefix_id}, stands before every text in training and scoring; "
        f"the tokenizer {how}." + (_OF_DATA if example and "task" in example else ""),
        load=load,
        use=_answers(cell, tokenizer, example) if example and "task" in example else _continues(tokenizer, by_itself),
    )


def gguf_card(cell: PlannedCell, dataset: Mapping[str, Any], metrics: Mapping[str, Any], *, chats: bool) -> str:
    """README.md of an exported GGUF file; `metrics` are those of the stage that wrote it."""
    return _GGUF_CARD.format(
        variant=cell.variant,
        base=cell.base,
        dataset=cell.dataset,
        seed="" if cell.seed is None else f", with seed {cell.seed}",
        methods=_methods(cell),
        templates=_templates(dataset),
        conversation="" if chats else " -no-cnv -p 'A prompt'",
        name=re.sub(r"[^a-z0-9-]+", "-", f"{cell.base}-{cell.variant}".lower()),
        **metrics,
    )


def _methods(cell: PlannedCell) -> str:
    return ", ".join(f"`{stage.kind}` {json.dumps(stage.config['method'])}" for stage in cell.methods)


def _continues(tokenizer: TextTokenizer, by_itself: bool) -> str:
    ids = 'tokenizer("A prompt")["input_ids"]'
    written_out = f'[{tokenizer.prefix_id}, *tokenizer("A prompt", add_special_tokens=False)["input_ids"]]'
    return _CONTINUE.format(ids=ids if by_itself else written_out)


def _answers(cell: PlannedCell, tokenizer: TextTokenizer, example: Mapping[str, Any]) -> str:
    """The lines that answer the prompt of an example as the study did."""
    text, end = f"text = {example['prompt']!r}", turn_end(tokenizer)
    ids = '*tokenizer(text, add_special_tokens=False)["input_ids"]'
    if context := example["context"]:
        text = f"context = {context!r}\n{text}"
        read = tokenizer.encode_continuation(example["prompt"])
        # A continuation has no dummy space of a beginning, which a call of the tokenizer would put there.
        ids = f"{ids.replace('text', 'context')}, {ids if read == tokenizer.encode(example['prompt']) else str(read)[1:-1]}"
    if example["messages"] is not None and tokenizer.hf.chat_template is not None:
        chat = json.loads(example["messages"])
        messages, tools = chat["messages"], chat["tools"]
        turn = render_turn(tokenizer.hf, messages, tools, "the example of the card")
        text = f"text = {turn.prompt!r}"
        for generation_prompt in (True, False):
            if not messages[:-1]:
                break
            arguments = {"tools": tools} if tools else {}
            arguments |= {"add_generation_prompt": True} if generation_prompt else {}
            whole = tokenizer.hf.apply_chat_template(messages[:-1], tokenize=False, **arguments)
            bos = tokenizer.hf.bos_token if tokenizer.hf.bos_token and whole.startswith(tokenizer.hf.bos_token) else ""
            if turn.prompt.startswith(whole.removeprefix(bos)):
                said = "".join(f", {name}={value!r}" for name, value in arguments.items())
                lead = turn.prompt.removeprefix(whole.removeprefix(bos))
                text = f"messages = {pformat(messages[:-1], width=120, sort_dicts=False)}\n"
                text += f"text = tokenizer.apply_chat_template(messages, tokenize=False{said})"
                text += (f".removeprefix({bos!r})" if bos else "") + (f" + {lead!r}" if lead else "")
                break
    tasks = (stage.config["evaluation"].get("tasks", {}) for stage in cell.evaluations.values() if "evaluation" in stage.config)
    limits = (of_stage[example["task"]]["max_new_tokens"] for of_stage in tasks if example["task"] in of_stage)
    limit, ends_in_text = next(limits, 60), bool(end) and end[-1] not in tokenizer.special_ids
    return _ANSWER.format(
        stops=sorted(ending_ids(tokenizer)),
        text=text,
        prefix=tokenizer.prefix_id,
        ids=ids,
        most=limit + max(0, len(end) - 1),
        shown=_PRINT_TO_END.format(end=tokenizer.decode(end), limit=limit) if ends_in_text else _PRINT,
    )


def _templates(dataset: Mapping[str, Any]) -> str:
    if dataset.get("records"):
        return f"- a record in the format `{dataset['records']}`"
    if not dataset.get("tasks"):
        return f"- the text {_literal(dataset.get('text') or '{{ text }}')}"
    context = dataset.get("context") or ""
    return "\n".join(
        f"- task `{name}`: the prompt {_literal(context + task['prompt'])}, and after it {_literal(task['completion'])}"
        for name, task in dataset["tasks"].items()
    )


def _literal(template: str) -> str:
    return f"`{json.dumps(template, ensure_ascii=False)}`"
