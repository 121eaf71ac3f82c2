"""Mistakes in the study file: none of them may get as far as a worker process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.harness import Case, edit, write
from tests.conftest import STUDY


def case(name: str, old: str, new: str, *words: str) -> Case:
    return Case(name, edit(old, new), ("study.yaml", *words))


def _a_directory(folder: Path) -> None:
    (folder / "study.yaml").unlink()
    (folder / "study.yaml").mkdir()


def _seam_of_a_normed_mlp(folder: Path) -> None:
    edit("choose: last}}, {", "choose: last, seam: linear}}, {")(folder)
    file = folder / "model" / "config.json"
    config = json.loads(file.read_text()) | {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    file.write_text(json.dumps(config))


_TEMPLATE = '"{{ title }}\\n\\n{{ content }}"'
_LORA = "{r: 4, targets: all-linear, learning_rate: 5.0e-3}"
_FULL = "[{train.full: {learning_rate: 1.0e-3}}]"
_DOCUMENT = "    document: title\n"

_FILE = (
    Case("no such study file", lambda _: None, ("studdy.yaml", "no such file", "paretune init"), ("run", "studdy.yaml")),
    Case("study is a directory", _a_directory, ("study.yaml", "is a directory", "name the study file")),
    Case("study is empty", write(""), ("study.yaml", "is empty", "paretune init")),
    Case("study is not UTF-8", write("study: größe".encode("latin1")), ("study.yaml", "not UTF-8 (byte 9)", "save the file")),
    Case(
        "data in place of the study",
        lambda _: None,
        ("notes.jsonl: is no study but data; `paretune init notes.jsonl`",),
        ("run", "notes.jsonl"),
    ),
    Case("study is a list", write("- small\n"), ("study.yaml", "begins with `study: NAME`", '`["small"]`')),
    case("bracket not closed", "seeds: [0, 1]", "seeds: [0, 1", ":12:", "not YAML", "a bracket or quote that is not closed"),
    case("quote not closed", _TEMPLATE, _TEMPLATE[:-1], "not YAML", "a bracket or quote that is not closed"),
    case("tab as indentation", "  notes:\n", "\tnotes:\n", ":5:", "not YAML", "with spaces, not with tabs"),
    case("wrong indentation", "    document: title", "   document: title", ":7:", "not YAML", "at the indentation"),
    case("colon in a plain text", "study: small", "study: small: big", ":2:", "holds `: ` stands in quotes"),
    case("template without quotes", _TEMPLATE, "{{ title }}", ":8: data.notes.text", '`"{{ title }}"`, with the quotes'),
    case("text after a bare template", _TEMPLATE, "{{ title }} {{ content }}", ":8:", "with the quotes"),
    case("a method in double braces", "base: []", "base: [{{train.full: {}}}]", "a brace in a brace", "single braces"),
    case("duplicate key", "seeds: [0, 1]", "seeds: [0, 1]\nseeds: [2]", ":12:", '"seeds"', "each key stands once"),
    case("duplicate variant", "base: []", "base: []\n  base: []", ":14:", '"base"', "each key stands once"),
    case("a YAML tag", "seeds: [0, 1]", "seeds: !!python/tuple [0, 1]", ":11: seeds", "tag", "write the plain value"),
    case("two YAML documents", "seeds: [0, 1]", "---\nseeds: [0, 1]", ":11:", "remove the line `---`"),
)

_OTHER_TOOLS = (
    case(
        "field of a method in train",
        "epochs: 2",
        "learning_rate: 1.0e-4",
        ":9: train.learning_rate: unknown key; `learning_rate` belongs in `train.full` (in `variants`), or `train.last_blocks`",
    ),
    case(
        "field of train in a method",
        "{r: 4, ",
        "{batch_size: 4, ",
        "train.lora.batch_size: unknown key; `batch_size` belongs in `train`, or `latency` (in `evaluate`)",
    ),
    case(
        "path of data beside its source",
        _DOCUMENT,
        "    path: a\n",
        "data.notes.path: unknown key; `path` belongs in `data.NAME.source`",
    ),
    case(
        "method among evaluations",
        "  perplexity: {}",
        "  train.full: {}",
        "unknown evaluation `train.full`; it is a method, and stands in `variants`",
    ),
    case(
        "evaluation among methods",
        _FULL,
        "[{perplexity: {}}]",
        "unknown method `perplexity`; it is an evaluation, and stands in `evaluate`",
    ),
    case(
        "epochs as the Trainer calls them",
        "epochs: 2",
        "num_train_epochs: 2",
        ":9: train.num_train_epochs: unknown key; it is called `epochs` here, in `train`",
    ),
    case(
        "batch as the Trainer calls it",
        "batch_size: 4",
        "per_device_train_batch_size: 4",
        "it is called `batch_size` here, in `train`",
    ),
    case("alpha as PEFT calls it", "{r: 4, ", "{lora_alpha: 4, ", "it is called `alpha` here, in `train.lora`"),
    case(
        "a share of blocks",
        "{count: 1, choose: last}",
        "{ratio: 0.1}",
        "prune.blocks.ratio: unknown key; it is called `fraction` here",
    ),
    case("4-bit adapters", "train.lora: {r: 4, ", "train.qlora: {r: 4, ", "unknown method `train.qlora`; "),
    case("a form of weights that is not there", "{r: 4, ", "{load: fp4, r: 4, ", "train.lora.load: ", "`int8`", "`nf4`"),
    case(
        "training after quantizing",
        _FULL,
        "[{quantize.int8: {}}, {train.full: {}}]",
        ":14: variants.full[1]: nothing can follow `quantize.int8`, whose model is only run; write `train.full` before it",
    ),
    case(
        "quantized twice",
        _FULL,
        "[{quantize.nf4: {}}, {quantize.int8: {}}]",
        ":14: variants.full[1]: nothing can follow `quantize.nf4`",
    ),
    case(
        "rows that are no whole blocks of 4 bits",
        _FULL,
        "[{quantize.nf4: {}}]",
        ":14: variants.full[0].quantize.nf4: base `tiny` is 32 wide, no multiple of 64",
        "take `quantize.int8` or `quantize.gguf`",
    ),
    case("a method that is not there", _FULL, "[{galore: {}}]", "unknown method `galore`; of adapters there is LoRA"),
    case("a tracker", "seeds: [0, 1]", "report_to: wandb", ":11: report_to: unknown key; "),
    case(
        "learning rate of 5",
        "1.0e-3",
        "5",
        ":14: variants.full[0].train.full.learning_rate: `5` moves a weight by about as much",
    ),
    case(
        "a rank that no matrix has",
        "{r: 4, ",
        "{r: 100000, ",
        "train.lora.r: 100,000 is a rank that no matrix of base `tiny` has",
        "the largest rank is",
    ),
    case(
        "more examples in a step than bytes",
        "batch_size: 4",
        "batch_size: 1000000000000",
        "train.batch_size: 1,000,000,000,000 examples of a step are more than the",
        "bytes",
    ),
    case(
        "steps for centuries",
        "epochs: 2",
        "max_steps: 1000000000000000",
        ":9: train.max_steps: 1,000,000,000,000,000 would take 3,171 years at least",
    ),
    case(
        "a limit on what is not measured",
        "evaluate:\n",
        "compare: {require: [{coherence: {at_least: 3}}]}\nevaluate:\n",
        "compare.require[0].coherence: nothing in the study measures `coherence`; add `judge` or `ratings`",
    ),
    case(
        "a temperature next to nothing",
        "max_new_tokens: 8",
        "max_new_tokens: 8, temperature: 1.0e-30",
        "evaluate.generate: `temperature` is so small",
    ),
)

_KEYS = (
    case("unknown section", "train: {epochs", "trian: {epochs", ":9: trian: unknown key; did you mean `train`?"),
    case("unknown key of train", "batch_size", "batchsize", ":9: train.batchsize: unknown key; did you mean `batch_size`?"),
    case("unknown key of a base", "path: model", "pth: model", ":3: bases.tiny.pth: unknown key; did you mean `path`?"),
    case("unknown key of a source", "notes.jsonl", "notes.jsonl, fromat: json", ":6: data.notes.source.fromat", "`format`?"),
    case("unknown key of a dataset", "document:", "documnet:", ":7: data.notes.documnet", "did you mean `document`?"),
    case(
        "unknown key of a method",
        "{r: 4, ",
        "{rank: 4, ",
        "train.lora.rank: unknown key; it is called `r` here, in `train.lora`",
    ),
    case(
        "unknown key of an evaluation", "max_new_tokens", "new_tokens", ":20: evaluate.generate.new_tokens", "`max_new_tokens`?"
    ),
    case("missing section", "bases: {tiny: {path: model}}\n", "", "bases: missing; a study needs", "`bases`"),
    case(
        "text and tasks",
        "    text:",
        "    tasks: {a: {completion: x}}\n    text:",
        ":5: data.notes: `text` and `tasks` exclude each",
    ),
    case(
        "an answer without a field",
        f"text: {_TEMPLATE}",
        "tasks: {a: {completion: x}}",
        ":8: data.notes.tasks.a.completion: `x` uses no field of a record",
    ),
    case(
        "a prompt that is no template",
        f"text: {_TEMPLATE}",
        'tasks: {a: {prompt: "{{ title", completion: "{{ title }}"}}',
        ":8: data.notes.tasks.a.prompt: template",
    ),
    case("missing text", f"    text: {_TEMPLATE}\n", "", ":5: data.notes: `text` is missing", "{{ title }}"),
    case(
        "bases as a list",
        "{tiny: {path: model}}",
        "[model]",
        ":3: bases: expected at least one entry `NAME: ...`",
        '`["model"]`',
    ),
    case("base without path or hub", "{path: model}", "model", ":3: bases.tiny: expected a mapping of fields", '`"model"`'),
    case("base with path and hub", "{path: model}", "{path: model, hub: a/b}", ":3: bases.tiny: name exactly one of"),
    Case(
        "evaluations as a list",
        write(STUDY[: STUDY.index("evaluate:")] + "evaluate: [perplexity, qa]\n"),
        ("study.yaml:17: evaluate: expected at least one entry `NAME: ...`", '`["perplexity", "qa"]`'),
    ),
)

_NAMES = (
    case("study name is a path", "study: small", "study: ../small", ":2: study: `../small` cannot be a name; use letters"),
    case("variant name is a path", "  full: ", "  a/b: ", ":14: variants.a/b: `a/b` cannot be a name"),
    case("evaluation name is a path", "  qa: {", "  q/a: {kind: qa, ", ":19: evaluate.q/a: `q/a` cannot be a name"),
    case("empty name", "study: small", 'study: ""', ":2: study: `` cannot be a name; use letters"),
    case("name beyond ASCII", "study: small", "study: größe", ":2: study: `größe` cannot be a name; use letters"),
    case("name is a number", "study: small", "study: 7", ":2: study: a name is text, got `7`"),
    case(
        "evaluation called size", "perplexity: {}", "size: {kind: perplexity}", ":18: evaluate.size: the name `size` is taken"
    ),
    case("unknown method", "train.full", "train.ful", ":14: variants.full[0]: unknown method `train.ful`", "`train.full`?"),
    case("unknown evaluation", "latency: {", "latncy: {", ":21: evaluate.latncy: unknown evaluation `latncy`", "`latency`?"),
    case("unknown base of a variant", "base: []", "base: {bases: [tinny], methods: []}", ":13: variants.base.bases", "`tiny`?"),
    case(
        "unknown baseline",
        "evaluate:\n",
        "compare: {baseline: ful}\nevaluate:\n",
        ":17: compare.baseline: no variant",
        "`full`?",
    ),
    case("method without brackets", _FULL, _FULL[1:-1], ":14: variants.full: the methods of a variant stand in a list", "`[{"),
    case(
        "variant without methods", "base: []", "base:", ":13: variants.base: expected a list of methods", "or `[]`, got `null`"
    ),
    case(
        "fields beside a method's name",
        f"full:     {_FULL}",
        "full:\n    - train.full:\n      learning_rate: 1.0e-3",
        ":15: variants.full[0]: written beside `train.full`: `learning_rate`; indent",
    ),
    case(
        "two methods in one entry",
        "{prune.blocks: {count: 1, choose: last}}, {",
        "{prune.blocks: {count: 1}, ",
        "one method an entry",
    ),
)

_VALUES = (
    case("batch size 0", "batch_size: 4", "batch_size: 0", ":9: train.batch_size: expected 1 or more, got `0`"),
    case("number in quotes", "batch_size: 4", 'batch_size: "4"', ":9: train.batch_size: expected a whole number", '`"4"`'),
    case("fraction of a batch", "batch_size: 4", "batch_size: 4.5", "train.batch_size: expected a whole number, got `4.5`"),
    case("negative learning rate", "1.0e-3", "-1.0e-3", "learning_rate: expected more than 0, got `-0.001`"),
    case(
        "learning rate NaN", "1.0e-3", ".nan", "variants.full[0].train.full.learning_rate: expected a finite number, got `NaN`"
    ),
    case("learning rate infinite", "1.0e-3", ".inf", "learning_rate: expected a finite number, got `Infinity`"),
    case("learning rate with a comma", "1.0e-3", '"0,001"', "learning_rate: expected a number", '`"0,001"`'),
    case("a list as a grid", "1.0e-3", "[1.0e-3, 1.0e-4]", "learning_rate: expected a number, got `[0.001, 0.0001]`"),
    case("warm-up of all steps", "epochs: 2", "epochs: 2, warmup: 1", ":9: train.warmup: expected less than 1, got `1`"),
    case("epochs and steps", "epochs: 2", "epochs: 2, max_steps: 9", ":9: train: `epochs` and `max_steps` exclude each other"),
    case(
        "unknown schedule",
        "epochs: 2",
        "epochs: 2, schedule: cosin",
        "train.schedule: expected `cosine`, `linear` or",
        '"cosin"',
    ),
    case("evaluate every word", "epochs: 2", "epochs: 2, evaluate_every: s", "expected `epoch`, or a whole number", '`"s"`'),
    case(
        "patience as a switch", "epochs: 2", "epochs: 2, early_stopping: true", "early_stopping: expected a mapping of fields"
    ),
    case("shares over 1", _DOCUMENT, _DOCUMENT + "    split: {test: 0.3}\n", ":8: data.notes.split: the shares sum to 1.2"),
    case(
        "shares in per cent", _DOCUMENT, _DOCUMENT + "    split: {train: 80}\n", "split.train: expected less than 1, got `80`"
    ),
    case(
        "unknown leakage mode", _DOCUMENT, _DOCUMENT + "    leakage: warn\n", "leakage: expected `block`, `remove` or `allow`"
    ),
    case("seeds as a number", "seeds: [0, 1]", "seeds: 3", ":11: seeds: expected a list `[0, 1, 2]`", "got `3`"),
    case("seed twice", "seeds: [0, 1]", "seeds: [0, 0]", ":11: seeds: expected a list `[0, 1, 2]` of distinct whole numbers"),
    case("seed too large", "seeds: [0, 1]", f"seeds: [{2**40}]", ":11: seeds:", "to 2**32 - 1"),
    case(
        "precision unknown",
        "compute: float32",
        "compute: fp16",
        ":10: precision.compute: expected `auto`, `float32`, `bfloat16` or `float16`",
    ),
    case(
        "interval in per cent", "evaluate:\n", "compare: {interval: 95}\nevaluate:\n", "compare.interval: expected less than 1"
    ),
    case(
        "format not known",
        "notes.jsonl",
        "notes.dat",
        ":6: data.notes.source: the suffix of `path` names no format; add `format:",
    ),
    case("chapters of jsonl", "notes.jsonl", 'notes.jsonl, chapters: "^C"', "`chapters` is for `format: text` only"),
    case(
        "broken regular expression",
        "notes.jsonl",
        'n.txt, chapters: "[a"',
        "source.chapters: not a regular expression",
        '`"[a"`',
    ),
    case("no header and no columns", "notes.jsonl", "notes.csv, header: false", "`header: false` needs `columns: [...]`"),
    case("stride 0", "perplexity: {}", "perplexity: {stride: 0}", ":18: evaluate.perplexity.stride: expected 1 or more"),
    case(
        "top_p without temperature", "max_new_tokens: 8", "top_p: 0.9", ":20: evaluate.generate: `top_p`", "set a temperature"
    ),
)

_AGAINST_THE_BASE = (
    case(
        "no block left",
        "count: 1",
        "count: 4",
        ":16: variants.reduced[0].prune.blocks.count",
        "base `tiny` has 4 blocks",
        "at most 3",
    ),
    case(
        "no block left, named",
        "count: 1, choose: last",
        "blocks: [0, 1, 2, 3]",
        "prune.blocks.blocks: removing 4 leaves no block",
    ),
    case(
        "no block left to run",
        "prune.blocks: {count: 1, choose: last}",
        "skip.blocks: {count: 4}",
        ":16: variants.reduced[0].skip.blocks.count: removing 4 leaves no block",
    ),
    case(
        "an exit behind the last block",
        "{prune.blocks: {count: 1, choose: last}}, {train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}",
        "{exit.early: {after: [1, 3]}}",
        ":16: variants.reduced[0].exit.early.after: no block stands after block 3",
        "base `tiny` has 4 blocks",
        "write at most 2",
    ),
    case(
        "a method behind early exits",
        "{prune.blocks: {count: 1, choose: last}}",
        "{exit.early: {threshold: 0.9}}",
        ":16: variants.reduced[1]: nothing can follow `exit.early`, whose model is only run; write `train.lora` before it",
    ),
    case(
        "a threshold and a bound",
        "{prune.blocks: {count: 1, choose: last}}, {train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}",
        "{exit.early: {threshold: 0.9, within: {loss: 0.1}}}",
        ":16: variants.reduced[0].exit.early: `threshold` is what `within` would choose; name one of both",
    ),
    case(
        "block out of range",
        "count: 1, choose: last",
        "blocks: [4]",
        "there is no block `4`; base `tiny` has 4 blocks",
        "0 to 3",
    ),
    case(
        "no block left by the second cut",
        "{prune.blocks: {count: 1, choose: last}}",
        "{prune.blocks: {count: 2}}, {prune.blocks: {blocks: [2]}}",
        ":16: variants.reduced[1].prune.blocks.blocks: there is no block `2`; base `tiny` has 2 blocks at this point",
    ),
    Case(
        "a seam of an MLP whose output is normed",
        _seam_of_a_normed_mlp,
        (
            "study.yaml:16: variants.reduced[0].prune.blocks.seam: base `tiny` (Olmo2ForCausalLM) norms or scales",
            "`seam: none`",
        ),
    ),
    case(
        "a narrower MLP that is none",
        "{prune.blocks: {count: 1, choose: last}}",
        "{prune.mlp: {fraction: 0.1}}",
        ":16: variants.reduced[0].prune.mlp.fraction: 0.1 of the 64 channels of base `tiny` would leave 64, in multiples of 32",
    ),
    case(
        "heads that leave none",
        "{prune.blocks: {count: 1, choose: last}}",
        "{prune.heads: {count: 2}}",
        ":16: variants.reduced[0].prune.heads.count: 2 of the 2 groups of 2 heads in a block of base `tiny` leaves none",
    ),
    case(
        "a teacher that is not there",
        _FULL,
        "[{distill.logits: {teacher: orginal}}]",
        ":14: variants.full[0].distill.logits.teacher: no variant or base `orginal`; did you mean `original`?",
    ),
    case(
        "a teacher's answers to plain text",
        _FULL,
        "[{distill.text: {teacher: original}}]",
        ":14: variants.full[0].distill.text: dataset `notes` is plain text, which has no prompts that a teacher could answer",
        "take `distill.logits`",
    ),
    case(
        "answers that end at nothing",
        _FULL,
        '[{distill.text: {stop: [""]}}]',
        ":14: variants.full[0].distill.text: `stop` holds an empty text",
    ),
    case("its own teacher", _FULL, "[{distill.logits: {teacher: full}}]", ":14:", "`full` learns from its own student"),
    case(
        "a temperature for the likeliest words",
        _FULL,
        "[{distill.logits: {temperature: 2.0}}]",
        ":14: variants.full[0].distill.logits: `cache: top_k` keeps the mass of the other words at `temperature: 1` alone",
    ),
    case(
        "more last blocks than there are", _FULL, "[{train.last_blocks: {count: 5}}]", ":14:", "count: base `tiny` has 4 blocks"
    ),
    case("blocks and count", "choose: last", "blocks: [0]", "prune.blocks: name either `blocks: [...]` or `count: N`"),
    case(
        "unknown LoRA target", "all-linear", "[c_attn]", ":15: variants.original[0].train.lora.targets", "`c_attn`", "`q_proj`"
    ),
    case("LoRA target is no matrix", "all-linear", "[input_layernorm]", "no linear module `input_layernorm`", "`down_proj`"),
    case("LoRA target without brackets", "all-linear", "q_proj", "targets: expected `default` or `all-linear`, or a list"),
    case("no LoRA target", "all-linear", "[]", "targets: expected `default` or `all-linear`, or a list with 1 or more entries"),
    case(
        "longer than the model",
        "max_length: 64",
        "max_length: 4096",
        ":9: train.max_length: 4096",
        "512 positions",
        "at most 512",
    ),
    case("stride of a whole window", "perplexity: {}", "perplexity: {stride: 64}", "stride: `64` leaves no context", "1 to 63"),
    case(
        "prompt longer than the model",
        "A lamp",
        "A lamp " * 400,
        ":20: evaluate.generate.prompts[1]",
        "512 positions",
        "shorten",
    ),
    case(
        "latency longer than the model",
        "prompt_tokens: 8",
        "prompt_tokens: 510",
        ":21: evaluate.latency",
        "514 tokens",
        "lower one",
    ),
)

_TEMPLATES = (
    case(
        "brace of a template missing",
        "{{ title }}",
        "{{ title }",
        ":8: data.notes.text: template",
        "a field is written `{{ name }}`",
    ),
    case(
        "template with an unknown filter", "{{ title }}", "{{ title | uper }}", ":8: data.notes.text", "No filter named 'uper'"
    ),
    case(
        "single braces",
        _TEMPLATE,
        '"{title}: {content}"',
        ":8: data.notes.text",
        "uses no field",
        "a field is written `{{ name }}`",
    ),
    case(
        "space in a field's name", "{{ title }}", "{{ my title }}", ":8: data.notes.text: template", "`columns: [...]` renames"
    ),
    case(
        "template without a field",
        _TEMPLATE,
        "hello",
        ":8: data.notes.text: `hello` uses no field",
        "all texts would be the same",
    ),
    Case(
        "template with an unknown field", edit("{{ title }}", "{{ titel }}"), ("notes.jsonl: line 1: field `titel`", "`title`?")
    ),
    case(
        "broken prompt of questions",
        "slice_by",
        'prompt: "{{ question", slice_by',
        ":19: evaluate.qa.prompt: template",
        "written `{{",
    ),
    case(
        "prompt of questions without a field",
        "slice_by",
        'prompt: "Q:", slice_by',
        ":19: evaluate.qa.prompt: `Q:` uses no field",
    ),
    case(
        "unknown field in a prompt",
        "slice_by",
        'prompt: "{{ qestion }}", slice_by',
        ":19: evaluate.qa: question `0`",
        "`question`?",
    ),
    case(
        "answer template without the answer", "slice_by", 'answer: "A", slice_by', ":19: evaluate.qa.answer", "`{{ answer }}`"
    ),
    case(
        "slice by an unknown field",
        "[difficulty]",
        "[level]",
        ":19: evaluate.qa: question `0`",
        "`level` that `slice_by` names",
    ),
)

_RATE = "learning_rate: 1.0e-3"
_GRIDS = (
    case(
        "grid of nothing", _RATE, "learning_rate: {grid: []}", ":14: variants.full[0].train.full.learning_rate.grid: no values"
    ),
    case("grid of one", _RATE, "learning_rate: {grid: [0.1]}", ":14:", "one value, `0.1`", "write it without `grid`"),
    case("grid that is no list", _RATE, "learning_rate: {grid: 3}", ":14:", "expected a list of values", "got `3`"),
    case("value twice", _RATE, "learning_rate: {tune: [1e-3, 0.001]}", ":14:", "`1e-3` stands there twice"),
    case(
        "tuning words", _RATE, "learning_rate: {tune: [low, high]}", ":14:", "only numbers are tuned", "`grid` takes any value"
    ),
    case("grid with a wrong value", _RATE, "learning_rate: {grid: [1, -1]}", ":14:", "expected more than 0, got `-1`"),
    case(
        "grid of a method", _RATE, "grid: [1, 2]", ":14: variants.full[0].train.full: `grid` stands for the values of a field"
    ),
    case(
        "grid of batch sizes", "batch_size: 4", "batch_size: {grid: [4, 8]}", ":9: train.batch_size: `grid` goes with a field"
    ),
    case(
        "tuning what is not trained", "base: []", "base: [{prune.blocks: {count: {tune: [1, 2]}}}]", ":13:", "no method trains"
    ),
    Case(
        "baseline that is a grid",
        write(STUDY.replace(_RATE, "learning_rate: {grid: [1, 2]}") + "compare: {baseline: full}\n"),
        ("study.yaml:22: compare.baseline: no variant `full`: it is a grid of", "in quotes"),
    ),
    case(
        "too large a count among others",
        "count: 1",
        "count: {grid: [1, 4]}",
        ":16: variants.reduced[count=4][0].prune.blocks.count",
    ),
)


_ELSEWHERE = (
    case(
        "other text in no known format",
        "perplexity: {}",
        "forgetting: {path: a.doc}",
        ":18: evaluate.forgetting: ",
        ".doc files are not read; open it and save it as plain text (.txt)",
    ),
    case("other text missing", "perplexity: {}", "forgetting: {path: a.txt}", ":18: evaluate.forgetting.path: no file `a.txt`"),
    case(
        "unknown field of other text",
        "perplexity: {}",
        "forgetting: {path: notes.jsonl, text: '{{ body }}'}",
        ":18: evaluate.forgetting: ",
        "`body`",
    ),
    case(
        "stride of a whole window of other text",
        "perplexity: {}",
        "forgetting: {path: notes.jsonl, text: '{{ content }}', stride: 64}",
        "stride: `64` leaves no context",
    ),
    case(
        "no task of the harness",
        "perplexity: {}",
        "lm_eval: {}",
        ":18: evaluate.lm_eval.tasks: missing; this field has no default",
    ),
    case(
        "a task of the harness twice",
        "perplexity: {}",
        "lm_eval: {tasks: [a, a]}",
        ":18: evaluate.lm_eval: `tasks` names a task twice",
    ),
    case(
        "a folder of tasks that is not there",
        "perplexity: {}",
        "lm_eval: {tasks: [a], include_path: tasks}",
        ":18: evaluate.lm_eval.include_path: no folder `tasks`",
    ),
)


_SAFE = "seeds: [0, 1]"


def _safety(text: str, content: str | None = None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        edit(_SAFE, f"{_SAFE}\nsafety: {text}")(folder)
        if content is not None:
            (folder / "words.txt").write_text(content, encoding="utf-8")

    return spoil


def _classifier(**config: Any) -> Callable[[Path], None]:
    """A classifier of which only the config is looked at."""

    def spoil(folder: Path) -> None:
        shutil.copytree(folder / "model", folder / "judge")
        (folder / "judge" / "config.json").write_text(json.dumps({"model_type": "bert"} | config), encoding="utf-8")
        edit(_SAFE, f"{_SAFE}\nsafety: {{classifier: {{path: judge, unsafe: [toxc]}}}}")(folder)

    return spoil


_LABELS = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "fine", "1": "toxic"}}
_DATA = (
    case("clean without a list", "document: title", "document: title\n    clean: {mask: email}", "clean.mask: expected a list"),
    case(
        "unknown mask",
        "document: title",
        "document: title\n    clean: {mask: [mail]}",
        "expected `email`, `phone`, `url` or `ip`",
    ),
    case(
        "unknown region",
        "document: title",
        "document: title\n    clean: {mask: [phone], region: us}",
        "clean.region: `region` is a country in two capital letters",
    ),
    case("unknown cure", "document: title", "document: title\n    clean: {encoding: true}", "clean.encoding: expected `fix`"),
    Case("safety of nothing", _safety("{data: drop}"), ("safety: name `words: FILE`, a `classifier`, or both",)),
    Case(
        "no file of words",
        _safety("{words: wrds.txt}", "a\n"),
        ("safety.words: no file `wrds.txt`", "did you mean `words.txt`"),
    ),
    Case(
        "file without words", _safety("{words: words.txt}", "# a\n\n"), ("safety.words: `words.txt` holds no words", "a line")
    ),
    Case("classifier without unsafe labels", _safety("{classifier: {path: model}}"), ("safety.classifier.unsafe: missing",)),
    Case("no classifier", _safety("{classifier: {path: judge, unsafe: [x]}}"), ("safety.classifier.path: no directory",)),
    Case(
        "unknown label of a classifier",
        _classifier(**_LABELS),
        ("safety.classifier.unsafe: it has no label `toxc`; did you mean `toxic`?",),
    ),
    Case(
        "a causal model as classifier",
        _classifier(architectures=["LlamaForCausalLM"]),
        ("safety.classifier: is no classifier of texts but `LlamaForCausalLM`",),
    ),
)

CASES = (*_FILE, *_KEYS, *_NAMES, *_GRIDS, *_VALUES, *_AGAINST_THE_BASE, *_TEMPLATES, *_ELSEWHERE, *_DATA, *_OTHER_TOOLS)
