"""The lock: what is pinned, what is kept, and what it says where it or the files that it pins cannot be read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import NeedsError, StoreError, UserError
from paretune.pipeline import lock as locking
from paretune.pipeline import machine
from paretune.pipeline.lock import lock_file, write_lock
from paretune.pipeline.resources import Resource
from tests.pipeline.planned import GPT2, STUDY, lock_of, write_base, write_planned, write_weights

SLOW = {"float32": 100.0, "bfloat16": 129.0}
FAST = {"float32": 100.0, "bfloat16": 130.0}
AUTO = STUDY.replace("precision: {compute: float32}\n", "")


class Rates:
    """Stands for the measurement, and counts how often it is asked for."""

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates, self.devices = rates, list[str]()

    def __call__(self, device: str) -> dict[str, float]:
        self.devices.append(device)
        return dict(self.rates)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_nvidia_model", lambda: None)


def measured(monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]) -> Rates:
    stand_in = Rates(rates)
    monkeypatch.setattr(machine, "measure_precision", stand_in)
    return stand_in


def rewrite(file: Path, **fields: Any) -> None:
    content = json.loads(lock_file(file).read_text())
    lock_file(file).write_text(json.dumps(content | fields))


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        (SLOW, "float32"),
        (FAST, "bfloat16"),
        ({"float32": 9, "bfloat16": 0}, "float32"),
        ({"float32": 9, "bfloat16": 0, "float16": 60}, "float16"),
    ],
)
def test_auto_precision_is_bfloat16_only_where_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None, rates: dict[str, float], chosen: str
) -> None:
    measured(monkeypatch, rates)
    lock = lock_of(write_planned(tmp_path, AUTO))
    assert (lock.compute, lock.evaluate, lock.device, lock.matmul_gflops) == (chosen, "float32", "cpu", rates)


def test_the_precision_of_a_lock_is_kept_on_a_machine_of_other_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    file = write_planned(tmp_path, AUTO)
    first = measured(monkeypatch, FAST)
    write_lock(lock_of(file), file)
    other = measured(monkeypatch, SLOW)
    assert lock_of(file).compute == "bfloat16"
    file.write_text(STUDY, encoding="utf-8")  # asks for float32
    assert lock_of(file).compute == "float32"
    write_lock(lock_of(file), file)
    file.write_text(AUTO, encoding="utf-8")
    assert lock_of(file).compute == "bfloat16", "what was measured once is not forgotten"
    lock_file(file).unlink()
    assert lock_of(file).compute == "float32"
    assert (first.devices, other.devices) == (["cpu"], ["cpu"])


def test_nothing_is_measured_where_nothing_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    rates = measured(monkeypatch, FAST)
    assert lock_of(write_planned(tmp_path)).matmul_gflops == {}
    assert rates.devices == []


def test_the_device_is_kept_until_another_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = measured(monkeypatch, FAST)
    file = write_planned(tmp_path)
    monkeypatch.setattr(machine, "_nvidia_model", lambda: "NVIDIA Example")
    assert lock_of(file).device == "cuda"
    assert rates.devices == ["cuda"], "measured in any case: it shows that torch reaches the device"
    write_lock(lock_of(file, "cpu"), file)
    assert lock_of(file).device == "cpu"
    assert lock_of(file, "cuda").device == "cuda"


def test_a_gpu_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    measured(monkeypatch, FAST)
    file = write_planned(tmp_path)
    with pytest.raises(NeedsError, match=r"--device names the device `cuda`, .* no NVIDIA GPU; pass `--device cpu`"):
        lock_of(file, "cuda")
    write_lock(lock_of(file), file)
    rewrite(file, device="cuda")
    with pytest.raises(NeedsError, match=r"the lock names the device `cuda`"):
        lock_of(file)
    assert lock_of(file, "cpu").device == "cpu"


def test_digests_follow_the_content_and_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_planned(tmp_path)
    first = lock_of(file)
    write_lock(first, file)
    opened: list[str] = []
    digest = locking.hashlib.file_digest
    monkeypatch.setattr(locking.hashlib, "file_digest", lambda stream, name: opened.append(stream.name) or digest(stream, name))
    assert lock_of(file) == first
    assert opened == [], "neither size nor times have changed"
    os.utime(tmp_path / "notes.jsonl")
    assert lock_of(file).files == first.files
    assert opened == [str(tmp_path / "notes.jsonl")]
    (tmp_path / "notes.jsonl").write_text('{"title": "Note 0", "content": "changed"}\n')
    os.utime(tmp_path / "notes.jsonl", ns=(0, first.seen["notes.jsonl"]["stamp"][1]))
    assert lock_of(file).files["notes.jsonl"] != first.files["notes.jsonl"]


def test_the_bytes_of_a_file_decide_and_not_its_size_and_time(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    first = lock_of(file)
    write_lock(first, file)
    before = (tmp_path / "notes.jsonl").stat()
    text = (tmp_path / "notes.jsonl").read_text()
    (tmp_path / "notes.jsonl").write_text(text.replace("Note 0", "Note X"))
    os.utime(tmp_path / "notes.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert lock_of(file).files["notes.jsonl"] != first.files["notes.jsonl"]


def test_a_lock_says_nothing_about_this_machine_s_folders(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    write_lock(lock_of(file), file)
    assert str(tmp_path) not in lock_file(file).read_text()
    stamp = lock_file(file).stat().st_mtime_ns
    write_lock(lock_of(file), file)
    assert lock_file(file).stat().st_mtime_ns == stamp, "an unchanged lock is not written again"
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a lock"),
        ("", "not a lock"),
        ("[]", "not a lock"),
        ("{}", "not a lock"),
        ('{"schema": "one"}', "not a lock"),
        ('{"schema": 1, "device": 3}', "not a lock (`device`: Input should be a valid string)"),
        ('{"schema": 1, "seen": {"a": {"sha256": 1}}}', "not a lock (`seen.a.stamp`: Field required)"),
        ('{"schema": 1, "matmul_gflops": {"float32": "fast"}}', "not a lock (`matmul_gflops.float32`:"),
        ('{"schema": 1, "hub_commits": []}', "not a lock (`hub_commits`:"),
        ('{"schema": 2}', "written by a newer Paretune; update Paretune, or remove the lock"),
    ],
)
def test_a_damaged_or_newer_lock_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = write_planned(tmp_path)
    lock_file(file).write_text(content)
    with pytest.raises(StoreError) as told:
        lock_of(file)
    assert str(told.value).startswith(f"{lock_file(file)}: {message}")
    assert "remove" in str(told.value)


def test_a_lock_that_cannot_be_read_or_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_planned(tmp_path)
    lock = lock_of(file)
    lock_file(file).mkdir()
    with pytest.raises(StoreError, match=r"study.lock: the lock cannot be read \(Is a directory\)"):
        lock_of(file)
    with pytest.raises(StoreError, match=r"study.lock: cannot be written .*; the study's folder must be writable"):
        write_lock(lock, file)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_is_missing_is_named_with_its_place_in_the_study(tmp_path: Path) -> None:
    cases = {
        "{path: small}": (
            ("{path: gone}", "bases.small.path: no directory `"),
            ("{path: notes.jsonl}", "notes.jsonl`"),
            ("{path: empty}", "bases.small.path: no config.json in `"),
            ("{path: pickled}", "holds no model.safetensors, nor all the files that a model.safetensors.index.json names"),
            ("{path: half}", "holds no model.safetensors, nor all the files that a model.safetensors.index.json names"),
            ("{path: encoder}", "bases.small.path: `BertForMaskedLM` is no causal language model"),
            ("{builtin: nothing}", "no built-in base `nothing`"),
        ),
        "{path: notes.jsonl}": (
            ("{path: gone.jsonl}", f"data.notes.source.path: no file `gone.jsonl` (looked in `{tmp_path}`)"),
            (
                "{path: empty, format: jsonl}",
                f"data.notes.source.path: {tmp_path / 'empty'}: is a directory without data files",
            ),
            ("{path: /dev/zero, format: text}", "data.notes.source.path: `/dev/zero` is a device or pipe; name a file"),
        ),
        "{path: questions.json,": (("{path: gone.json,", "evaluate.qa.path: no file `gone.json` (looked in"),),
    }
    file = write_planned(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("pickled", "half"):
        (write_base(tmp_path / name) / "model.safetensors").unlink()
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "half" / "model.safetensors.index.json").write_text(json.dumps(index))
    write_weights(tmp_path / "half" / "model-00001-of-00002.safetensors", {"a": (2, 2)})
    write_base(tmp_path / "encoder", GPT2 | {"architectures": ["BertForMaskedLM"]})
    for good, wrong in cases.items():
        for bad, message in wrong:
            file.write_text(STUDY.replace(good, bad), encoding="utf-8")
            with pytest.raises(UserError) as told:
                lock_of(file)
            assert message in str(told.value)
            assert "\n" not in str(told.value)


def test_the_pieces_of_a_large_model_are_all_part_of_its_digest(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    (tmp_path / "small" / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        write_weights(tmp_path / "small" / name, {name: (2, 2)})
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (tmp_path / "small" / "model.safetensors.index.json").write_text(json.dumps(index))
    first = lock_of(file).bases["small"]
    write_weights(tmp_path / "small" / names[1], {"b": (2, 3)})
    second = lock_of(file).bases["small"]
    assert first.digest != second.digest
    assert first.tokenizer_digest == second.tokenizer_digest
    assert second.resource == Resource(path=tmp_path / "small")


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be read by root")
def test_files_without_permission_are_named(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    (tmp_path / "notes.jsonl").chmod(0)
    with pytest.raises(NeedsError, match=r"data.notes.source.path: `notes.jsonl` cannot be read \(Permission denied\)"):
        lock_of(file)
    (tmp_path / "notes.jsonl").chmod(0o644)
    (tmp_path / "small" / "model.safetensors").chmod(0)
    with pytest.raises(NeedsError, match=r"bases.small.path: .*small` cannot be read \(Permission denied\)"):
        lock_of(file)
