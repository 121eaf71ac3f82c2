"""Energy that the machine has taken, where it tells: processors by RAPL, NVIDIA GPUs by NVML."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules of all processor packages, and of the GPU on `device`, whatever runs on them."""

    def __init__(self, device: torch.device, powercap: Path = _POWERCAP) -> None:
        self._packages: list[tuple[Path, int]] = []
        """Counters of microjoules, and at how many they begin again."""
        for package in sorted(powercap.glob("intel-rapl:?")):  # so they are called on AMD's, too
            counter = package / "energy_uj"
            with suppress(OSError, ValueError):  # most systems let root alone read them
                int(counter.read_text())
                self._packages.append((counter, int((package / "max_energy_range_uj").read_text())))
        self._gpu = _nvml(device) if device.type == "cuda" else None
        self._before = self._counters()

    @property
    def tells(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._before)

    def joules(self) -> float:
        """Since the last call, or since this was made."""
        before, self._before = self._before, self._counters()
        ranges = [size for _, size in self._packages] + [2**63] * (self._gpu is not None)
        return sum((now - then) % size for now, then, size in zip(self._before, before, ranges, strict=True)) / 1e6

    def _counters(self) -> list[int]:
        counters = [int(counter.read_text()) for counter, _ in self._packages]
        if self._gpu is not None:
            library, handle = self._gpu
            counters.append(1000 * library.nvmlDeviceGetTotalEnergyConsumption(handle))
        return counters


def _nvml(device: torch.device) -> tuple[Any, Any] | None:
    """NVIDIA's library and its name for the device; None where it is missing, or the GPU counts no energy."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001  its errors are of a package that may be missing
        return None
    return pynvml, handle
