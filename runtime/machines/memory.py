# SPDX-License-Identifier: Apache-2.0
"""This machine's memory, as its kernel says."""

from __future__ import annotations

from pathlib import Path

MEMINFO = "proc/meminfo"


def read_memory(root: Path = Path("/")) -> dict[str, int] | None:
    """Bytes by the names of /proc/meminfo (MemTotal, MemAvailable, SwapTotal, SwapFree); None where it does not say.

    Args:
        root: where proc is.
    """
    try:
        lines = (root / MEMINFO).read_text(encoding="ascii").splitlines()
        values = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    except (OSError, ValueError, IndexError):
        return None
    return values if {"MemTotal", "MemAvailable", "SwapTotal", "SwapFree"} <= values.keys() else None
