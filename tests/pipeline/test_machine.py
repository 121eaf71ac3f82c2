"""What this machine is: its device, its fingerprint, and what of a method's needs is here."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.errors import NeedsError, SpecError, command_line
from paretune.pipeline import machine


@pytest.fixture(params=[None, "NVIDIA Example"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.setattr(machine, "_nvidia_model", lambda: request.param)
    return request.param


def test_the_device_is_what_was_asked_for_else_the_lock_s_else_what_there_is(gpu: str | None) -> None:
    assert machine.device_kind("cpu", "cuda") == "cpu"
    assert machine.device_kind("auto", "cpu") == "cpu"
    assert machine.device_kind("auto", None) == ("cuda" if gpu else "cpu")
    for asked, locked in (("cuda", None), ("cuda", "cpu"), ("auto", "cuda")):
        if gpu:
            assert machine.device_kind(asked, locked) == "cuda"
        else:
            with pytest.raises(NeedsError, match="this machine has no NVIDIA GPU; pass `--device cpu`"):
                machine.device_kind(asked, locked)


@pytest.mark.parametrize("asked", ["gpu", "cuda:1", "tpu", "", "CPU"])
def test_an_unknown_device_is_refused(gpu: str | None, asked: str) -> None:
    with pytest.raises(NeedsError, match=r"--device: `.*` is no device; known: `auto`, `cpu`, `cuda` \(CUDA_VISIBLE_DEVICES"):
        machine.device_kind(asked, None)
    with pytest.raises(NeedsError, match="the lock names the device `tpu`, which is unknown; pass `--device cpu`"):
        machine.device_kind("auto", "tpu")


def test_the_fingerprint_is_plain_and_the_same_each_time() -> None:
    code = "import json; from paretune.pipeline.machine import fingerprint; print(json.dumps(fingerprint(), sort_keys=True))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(again) == machine.fingerprint()
    assert machine.fingerprint()["cores"] >= 1
    assert machine.fingerprint()["memory_gib"] >= 1


def test_the_card_is_found_by_the_driver_or_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DRIVER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    find = machine._nvidia_model.__wrapped__
    assert find() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA Command\necho NVIDIA Second\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert find() == "NVIDIA Command"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert find() is None
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("IRQ:   1\nModel: \t\t NVIDIA Driver\n")
    assert find() == "NVIDIA Driver"


def test_needs_are_a_gpu_or_a_module() -> None:
    assert machine.has("cuda", "cuda")
    assert not machine.has("cuda", "cpu")
    assert machine.has("json", "cpu")
    assert machine.has("importlib.metadata", "cpu")
    assert not machine.has("no_such_module", "cpu")
    assert not machine.has("no_such.module", "cpu")


def test_the_way_to_a_need_names_the_extra_that_brings_it() -> None:
    assert machine.way_to("wandb", "cpu") == "the package `wandb`, which is not installed: `pip install 'paretune[track]'`"
    assert machine.way_to("left.pad", "cpu") == "the package `left`, which is not installed: `pip install left`"
    assert "runs on `cpu`" in machine.way_to("cuda", "cpu")


def test_rates_are_measured_in_a_process_of_their_own() -> None:
    code = (
        "import sys; from paretune.pipeline.machine import measure_precision; rates = measure_precision('cpu'); "
        "assert 'torch' not in sys.modules; assert set(rates) == {'float32', 'bfloat16'}; assert rates['float32'] > 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_torch_that_does_not_run_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text(
        "#!/bin/sh\necho 'Traceback' >&2\necho 'AssertionError: Torch not compiled with CUDA enabled' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(
        NeedsError, match=r"^torch does not run on `cuda` here: AssertionError: Torch not .*; pass `--device cpu`"
    ):
        machine.measure_precision("cuda")
    broken.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(NeedsError, match=r"^torch does not run on `cpu` here: exit code 3$"):
        machine.measure_precision("cpu")


@pytest.mark.parametrize(
    ("limit", "cores"), [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("max 100000\n", math.inf), (None, math.inf)]
)
def test_what_a_container_may_use_of_the_cores(
    limit: str | None, cores: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    assert machine.core_quota() == cores


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("6G", 6 * 10**9),
        ("6GB", 6 * 10**9),
        ("6000MB", 6 * 10**9),
        ("6000000000", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("6gib", 6 * 2**30),
        ("1.5 GB", 15 * 10**8),
        ("2T", 2 * 10**12),
        ("50%", 4 * 10**9),
    ],
)
def test_memory_is_taken_in_units_and_as_a_share(monkeypatch: pytest.MonkeyPatch, asked: str, expected: int) -> None:
    memory = type("Memory", (), {"total": 8 * 10**9})
    monkeypatch.setattr("paretune.pipeline.machine.psutil.virtual_memory", lambda: memory)
    assert machine.memory_limit(asked, "cpu") == expected


@pytest.mark.parametrize("asked", ["", "lots", "-6GB", "0", "0%", "101%", "6 PB", "6", "512"])
def test_what_is_no_amount_of_memory_is_refused(asked: str) -> None:
    with pytest.raises(SpecError, match="--memory: `"):
        machine.memory_limit(asked, "cpu")


def test_a_command_is_quoted_as_it_is_typed() -> None:
    assert command_line("run", Path("my study.yaml"), store=None) == "paretune run 'my study.yaml'"
    assert command_line("run", "a.yaml", store=Path("/s t")) == "paretune run a.yaml --store '/s t'"
