"""The model card of an export: what it was made from and how, and the lines that load it and continue a prompt.

Every text began with the prefix token in training and in scoring. Most tokenizers do not put it there by themselves, so the
card says which id it is and shows how to.
"""

import json
from collections.abc import Mapping
from typing import Any

from paretune.data.tokenizer import TextTokenizer
from paretune.pipeline.plan import PlannedCell

_LOAD_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")"""
_LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), ".")"""
_CARD = """\
# {variant}

Made by Paretune from the base `{base}`, on the data `{dataset}`{seed}.

Methods, in order: {methods}

What an example is:

{templates}

## Use

{prefix} In this directory:

```python
import torch
{load}
ids = torch.tensor([{ids}])
print(tokenizer.decode(model.generate(ids, max_new_tokens=60, do_sample=False)[0]))
```
"""


def model_card(cell: PlannedCell, dataset: Mapping[str, Any], tokenizer: TextTokenizer, base: str | None = None) -> str:
    """README.md of an export; `dataset` is what the data stage was given, `base` the arguments that load an adapter's base."""
    methods = ", ".join(f"`{stage.kind}` {json.dumps(stage.config['method'])}" for stage in cell.methods)
    name = tokenizer.hf.convert_ids_to_tokens([tokenizer.prefix_id])[0]
    kind = "EOS" if tokenizer.hf.bos_token_id is None else "BOS"
    by_itself = list(tokenizer.hf("a")["input_ids"]) == [tokenizer.prefix_id, *tokenizer.encode("a")]
    how = "puts it there by itself" if by_itself else "does not put it there by itself, so it is written out here"
    return _CARD.format(
        variant=cell.variant,
        base=cell.base,
        dataset=cell.dataset,
        seed="" if cell.seed is None else f", with seed {cell.seed}",
        methods=methods or "none: it is the base as it was",
        templates=_templates(dataset),
        prefix=f"The {kind} token `{name}`, id {tokenizer.prefix_id}, stands before every text in training and scoring; "
        f"the tokenizer {how}.",
        load=_LOAD_WHOLE if base is None else _LOAD_ADAPTER.format(base=base),
        ids='tokenizer("A prompt")["input_ids"]'
        if by_itself
        else f'[{tokenizer.prefix_id}, *tokenizer("A prompt", add_special_tokens=False)["input_ids"]]',
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
