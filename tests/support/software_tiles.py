# SPDX-License-Identifier: Apache-2.0
"""Builds of the CPU kernels with AMX's tile registers in memory, for processors without them."""

from __future__ import annotations

from pathlib import Path

import pytest

AVX2 = {"avx2", "fma", "f16c"}
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
TILES = {"amx_tile", "amx_bf16", "amx_int8"}


def missing_flags(flags: set[str]) -> set[str]:
    """What this processor lacks of them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return flags - set(next((line.split() for line in lines if line.startswith("flags")), []))


def require_flags(flags: set[str]) -> None:
    """Skips the test where the processor lacks one of them."""
    if missing := missing_flags(flags):
        pytest.skip(f"needs a processor with {' '.join(sorted(missing))}")


def software_tiles() -> list[str]:
    """CMake's settings: beside AVX-512, or where that is lacking beside AVX2, which stands in for it."""
    require_flags(AVX2)
    return [f"-DFASTMMOE_SOFTWARE_TILES={'avx2' if missing_flags(AVX512) else 'avx512_bf16'}"]
