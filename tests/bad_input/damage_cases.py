"""Bases, stores and locks that are damaged, not whole, or of another kind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.harness import ONE_STAGE_EACH, STORE, Case, edit, write


def base(name: str, spoil: Callable[[Path], object], *words: str) -> Case:
    """A base that is not whole; `spoil` is given its directory."""
    return Case(name, lambda folder: spoil(folder / "model"), words, study=ONE_STAGE_EACH)


def store(name: str, spoil: Callable[[Path], object], *words: str) -> Case:
    """A store of a finished study that is not as it was."""
    return Case(name, spoil, words, finished=True)


def _change_config(**fields: object) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | fields))

    return spoil


def _remove(*names: str) -> Callable[[Path], None]:
    return lambda model: [(model / name).unlink() for name in names]


def _pickle_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _cut_weights(model: Path) -> None:
    os.truncate(model / "model.safetensors", 100_000)


def _lose_a_shard(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _an_adapter(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/some-base"}')


def _an_adapter_in_it(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")


def _gguf_only(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()
    (model / "model-q4_k_m.gguf").write_bytes(b"GGUF")


def _gguf_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_bytes(b"GGUF")
    model.rename(model.with_suffix(".gguf"))
    study = model.parent / "study.yaml"
    study.write_text(study.read_text().replace("path: model}", "path: model.gguf}"))


def _gguf_part(model: Path) -> None:
    _gguf_file(model)
    model.with_suffix(".gguf").rename(model.with_name("model-00002-of-00003.gguf"))
    study = model.parent / "study.yaml"
    study.write_text(study.read_text().replace("path: model.gguf}", "path: model-00002-of-00003.gguf}"))


def _without_heads(model: Path) -> None:
    config = {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps(config | {"state_size": 16, "conv_kernel": 4}))


def _one_token_more(**token: object) -> Callable[[Path], None]:
    def add(model: Path) -> None:
        file = model / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        rows = json.loads((model / "config.json").read_text())["vocab_size"]
        fields = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append(fields | {"id": rows, "content": "<new>", "special": True} | token)
        file.write_text(json.dumps(tokenizer))
        if token.get("special", True):
            said = json.loads((model / "tokenizer_config.json").read_text())
            (model / "tokenizer_config.json").write_text(json.dumps(said | {"eos_token": "<new>"}))

    return add


def _no_base(model: Path) -> None:
    shutil.rmtree(model)


_BASES = (
    base("base missing", _no_base, "study.yaml:3: bases.tiny.path: no directory `model`", "config.json and model.safetensors"),
    base(
        "base without config.json", _remove("config.json"), "bases.tiny.path: no config.json in `model`", "Hugging Face format"
    ),
    base(
        "base with a broken config.json",
        write("{", "config.json"),
        "`model/config.json` cannot be read as JSON",
        "copy the model",
    ),
    base(
        "base is an encoder", _change_config(architectures=["BertModel"]), "`BertModel` is no causal language model", "encoders"
    ),
    base(
        "base answers by extraction",
        _change_config(architectures=["BertForQuestionAnswering"]),
        "`BertForQuestionAnswering` is no causal language model; Paretune trains",
    ),
    base(
        "base is an adapter",
        _an_adapter,
        "bases.tiny.path: `model` holds an adapter (adapter_config.json), not a whole model",
        "name the directory of its base, `someone/some-base`, or merge the adapter",
    ),
    base("base with an adapter in it", _an_adapter_in_it, "holds an adapter", "name the directory of its base, or merge"),
    base(
        "base is a folder of GGUF files",
        _gguf_only,
        "study.yaml:3: bases.tiny.path: `model` holds GGUF files and no config.json",
        "name one of the files, `model/model-q4_k_m.gguf`",
    ),
    base(
        "base is a damaged GGUF file",
        _gguf_file,
        "study.yaml:3: bases.tiny.path: `model.gguf` cannot be read (",
        "copy it again, or name the directory in Hugging Face format that it was made from",
    ),
    base(
        "base is a part of a GGUF model",
        _gguf_part,
        "bases.tiny.path: `model-00002-of-00003.gguf` is one of 3 parts",
        "join them with `llama-gguf-split --merge`",
    ),
    base(
        "base is quantized in a format that is not read",
        _change_config(quantization_config={"quant_method": "fp8"}),
        "bases.tiny.path: is quantized (`quantization_config` of config.json: `fp8`)",
        "name the model that it was quantized from",
    ),
    base(
        "base is said to be quantized and is not",
        _change_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "bases.tiny.path: `model` holds whole weights, and its config.json says that they are quantized (`bitsandbytes`)",
        "take `quantization_config` out of it",
    ),
    base("base without attention", _without_heads, "`MambaForCausalLM` has no attention", "name a base with attention"),
    base(
        "end token beyond the embedding",
        _one_token_more(),
        "study.yaml:3: bases.tiny: its tokenizer has 301 tokens, its embedding 300 rows: `<new>` is token 300",
        "take the tokenizer that belongs to it",
    ),
    base("word beyond the embedding", _one_token_more(special=False), "has 301 tokens, its embedding 300 rows: `<new>`"),
    base("base without weights", _remove("model.safetensors"), "bases.tiny.path: `model` holds no model.safetensors"),
    base("base in pickle files", _pickle_only, "`model` holds no model.safetensors", "they can run code"),
    base("base without a shard", _lose_a_shard, "nor all the files that a model.safetensors.index.json names"),
    base("weights cut off", _cut_weights, "model.safetensors: has 100,000 bytes instead of", "copy the model again, whole"),
    base(
        "weights are text", write("not weights", "model.safetensors"), "model.safetensors: is no safetensors file, or a damaged"
    ),
    base(
        "weights are a pointer", write("version https://git-lfs", "model.safetensors"), "a pointer of git-lfs", "`git lfs pull`"
    ),
    base(
        "base without a tokenizer",
        _remove("tokenizer.json"),
        "study.yaml:3: bases.tiny: `",
        "holds no tokenizer",
        "copy it beside",
    ),
    base("broken tokenizer", write("{", "tokenizer.json"), "model/tokenizer.json` cannot be read as JSON", "copy it again"),
    Case("hub name as a path", edit("path: model", "path: openai/gpt2"), ("no directory `openai/gpt2`", "`hub: openai/gpt2`")),
    Case(
        "weights in place of the base",
        edit("path: model", "path: model/model.safetensors"),
        ("study.yaml:3: bases.tiny.path: `model/model.safetensors` is a file; name the directory",),
    ),
    Case(
        "unknown built-in base",
        edit("path: model", "builtin: gpt2"),
        ("study.yaml:3: bases.tiny.builtin: no built-in base `gpt2`",),
    ),
)


def _artifact(folder: Path, kind: str) -> Path:
    (found,) = (folder / STORE).glob(f"{kind}-*")
    return found


def _older_lock(folder: Path) -> None:
    lock = json.loads((folder / "study.lock").read_text())
    (folder / "study.lock").write_text(json.dumps(lock | {"schema": 99}))


def _newer_record(folder: Path) -> None:
    file = _artifact(folder, "data") / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))


_STORES = (
    Case(
        "store is a file",
        lambda _: None,
        ("notes.jsonl: the store cannot be written", "--store"),
        ("run", "study.yaml", "--store", "notes.jsonl"),
    ),
    store(
        "store of a newer version",
        write('{"schema": 99}', f"{STORE}/store.json"),
        "a store of a newer Paretune; update",
        "--store",
    ),
    store(
        "store marker damaged",
        write("x", f"{STORE}/store.json"),
        "store.json: cannot be read",
        "remove it, and it is made again",
    ),
    store("record damaged", lambda f: write("{", "record.json")(_artifact(f, "data")), "record.json", "remove"),
    store("record of a newer version", _newer_record, "record.json", "newer"),
    store(
        "artifact damaged",
        lambda f: os.truncate(_artifact(f, "tokenize") / "tokens.arrow", 9),
        "`tokens.arrow` is not as recorded",
        "remove the directory",
    ),
    store("lock damaged", write("{", "study.lock"), "study.lock: not a lock", "remove it, and it is made again"),
    store("lock of a newer version", _older_lock, "study.lock: written by a newer Paretune; update Paretune, or remove"),
)


CASES = (*_BASES, *_STORES)
