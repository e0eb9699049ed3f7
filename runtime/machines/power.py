# SPDX-License-Identifier: Apache-2.0
"""Energy that this machine takes: the INA3221 monitors of Jetsons by sysfs, NVIDIA's cards by their library (NVML)."""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fastmmoe.runtime.machines.gpu import pci_bus_id

NVML = "libnvidia-ml.so.1"
CHIP = "ina3221"
TOTAL = re.compile(r"VDD_IN|POM_5V_IN|VIN|5V_IN", re.IGNORECASE)
"""Rails that the whole board is fed by; where there is none, the others are summed."""
NO_RAIL = re.compile(r"|NC|sum of shunt voltages", re.IGNORECASE)
INTERVAL_SECONDS = 0.02


class Meter(Protocol):
    """Energy since some moment."""

    @property
    def source(self) -> str:
        """What it is, in words."""

    def joules(self) -> float:
        """Up to now."""

    def close(self) -> None:
        """Stop measuring."""


def find_meter(provider: str, root: Path = Path("/")) -> Meter | None:
    """What measures the energy of a request; None where nothing does.

    Args:
        provider: as `Backend.provider` has it; a card's energy is that of a request only where the card computes.
        root: where sys is.
    """
    rails = find_rails(root)
    if rails:
        names = ", ".join(name for name, _, _ in rails)
        return PowerMeter(f"INA3221 ({names})", lambda: read_rails(rails))
    return None if provider == "cpu" else _nvml_meter()


def find_rails(root: Path) -> list[tuple[str, Path, Path]]:
    """(name, file of millivolts, file of milliamperes) of the rails whose sum is the board's power."""
    found = []
    for folder in _chips(root):
        for label in sorted(folder.glob("in*_label")):
            number = label.name[2:-6]
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            name = _text(label) or ""
            is_read = _number(volts) is not None and _number(amperes) is not None
            if is_read and not NO_RAIL.fullmatch(name):
                found.append((name, volts, amperes))
    whole = [rail for rail in found if TOTAL.fullmatch(rail[0])]
    return whole[:1] or found


def read_rails(rails: list[tuple[str, Path, Path]]) -> float | None:
    """Watts of the rails together; None where one cannot be read."""
    total = 0.0
    for _, volts, amperes in rails:
        millivolts, milliamperes = _number(volts), _number(amperes)
        if millivolts is None or milliamperes is None:
            return None
        total += millivolts * milliamperes / 1e6
    return total


def _chips(root: Path) -> Iterator[Path]:
    """Folders of the monitors; hwmon names them by number."""
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if (_text(folder / "name") or "").startswith(CHIP):
            yield folder


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


class PowerMeter:
    """Energy of what tells its power alone: a thread reads it again and again, and sums trapezoids.

    Args:
        watts: the power now; None where it cannot be read this time.
    """

    def __init__(
        self, source: str, watts: Callable[[], float | None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.source = source
        self._watts, self._clock, self._lock, self._ended = watts, clock, threading.Lock(), threading.Event()
        self._sum, self._last = 0.0, (clock(), watts() or 0.0)
        self._thread = threading.Thread(target=self._watch, name="fastmmoe-power", daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """Up to now, by a reading of this moment."""
        with self._lock:
            watts = self._watts()
            now, before = self._clock(), self._last
            self._last = now, before[1] if watts is None else watts
            self._sum += (now - before[0]) * (before[1] + self._last[1]) / 2
            return self._sum

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self.joules()


class EnergyMeter:
    """Energy of a card that counts it by itself."""

    def __init__(self, source: str, joules: Callable[[], float | None]) -> None:
        self.source, self._joules, self._last = source, joules, joules() or 0.0

    def joules(self) -> float:
        """Up to now; where it cannot be read, as before."""
        found = self._joules()
        self._last = self._last if found is None else found
        return self._last

    def close(self) -> None:
        """There is nothing to end."""


def _nvml_meter() -> Meter | None:
    """The counter of the GPU that CUDA takes, or where it has none its power."""
    library = _load_nvml()
    if library is None:
        return None
    device, bus = ctypes.c_void_p(), pci_bus_id()
    by_bus = bus is not None and library.nvmlDeviceGetHandleByPciBusId_v2(bus.encode(), ctypes.byref(device)) == 0
    if not by_bus and library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
        return None

    def joules() -> float | None:
        value = ctypes.c_ulonglong()
        failed = library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(value))
        return None if failed else value.value / 1e3

    def watts() -> float | None:
        value = ctypes.c_uint()
        return None if library.nvmlDeviceGetPowerUsage(device, ctypes.byref(value)) else value.value / 1e3

    with suppress(AttributeError):
        if joules() is not None:
            return EnergyMeter("NVML, the card's counter", joules)
    with suppress(AttributeError):
        if watts() is not None:
            return PowerMeter("NVML, the card's power", watts)
    return None


def _load_nvml() -> Any:
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None
