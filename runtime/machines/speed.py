# SPDX-License-Identifier: Apache-2.0
"""How fast this machine's processor can be at most: products by what it says of itself, reading by a measurement."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from fastmmoe.runtime.machines.threads import usable_cores

Numbers: TypeAlias = Literal["float32", "bfloat16", "int8"]
FLOPS_PER_CYCLE = {"avx512f": 64, "fma": 32, "avx": 16, "asimd": 32}
"""A core's float32 operations a cycle by what /proc/cpuinfo says of it, the first that it has: two units of fused
multiply-adds of that width (asimd: four of 128 bits, as the widest have; the Jetsons' cores have two)."""
OTHERWISE = 8
SHORTER: dict[Numbers, dict[str, int]] = {
    "float32": {},
    "bfloat16": {"amx_bf16": 1024, "avx512_bf16": 128, "avx512_fp16": 128, "bf16": 128},
    "int8": {"amx_int8": 2048, "avx512_vnni": 256, "avx_vnni": 128, "avx2": 128, "i8mm": 256, "asimddp": 128},
}
"""The same where shorter numbers are multiplied, by instructions of their own; a product and its sum are two."""
BOOST = 1.5
"""Greatest clock over the present one where the system tells only this one: what servers' processors have is less."""
UNKNOWN_HZ = 4e9
MOST_READ_BYTES = 1 << 28
"""Several times what the last cache of most processors holds."""
ROW = 1024
REPEATS = 7
LEAST_SECONDS = 0.1
"""What is read in microseconds is read again for so long: other work of the machine stands in the way of most."""


def peak_flops(root: Path = Path("/"), numbers: Numbers = "float32") -> float:
    """Operations a second that no program exceeds on the cores which this process may use.

    Args:
        root: where proc and sys are.
        numbers: the shortest that are multiplied.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    per_cycle = next((count for flag, count in FLOPS_PER_CYCLE.items() if flag in flags), OTHERWISE)
    per_cycle = max([per_cycle, *(count for flag, count in SHORTER[numbers].items() if flag in flags)])
    return usable_cores(root) * per_cycle * _greatest_hz(root, text)


def _greatest_hz(root: Path, cpuinfo: str) -> float:
    try:
        return 1e3 * float((root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii"))
    except (OSError, ValueError):
        clocks = re.findall(r"^cpu MHz\s*: ([\d.]+)$", cpuinfo, flags=re.MULTILINE)
        return BOOST * 1e6 * max(map(float, clocks)) if clocks else UNKNOWN_HZ


def read_bandwidth(working_set: int) -> float:
    """Bytes a second at which a product with a vector reads its matrix, the best of several.

    Args:
        working_set: bytes of the matrix, at most MOST_READ_BYTES are taken: what stays in the processor's caches is
            read as fast as from there.
    """
    rows = max(1, min(working_set, MOST_READ_BYTES) // (4 * ROW))
    # Written, not zeroed: untouched pages would all be the same one.
    matrix, vector, product = np.ones((rows, ROW), np.float32), np.ones(ROW, np.float32), np.empty(rows, np.float32)
    best, done, end = float("inf"), 0, time.perf_counter() + LEAST_SECONDS
    while done <= REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(matrix, vector, out=product)
        best, done = min(best, time.perf_counter() - start), done + 1
    return matrix.nbytes / best
