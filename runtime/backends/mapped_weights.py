# SPDX-License-Identifier: Apache-2.0
"""Weights that ONNX Runtime maps from a bundle's files.

A process gets the pages of a mapped file one by one as it touches them, even where the system has them in memory. A
token touches the experts that it uses, so that hundreds of tokens pay for pages that no token before them needed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from fastmmoe.runtime.machines.memory import read_memory

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14 and later."""


def map_weights(directory: Path, root: Path = Path("/")) -> int:
    """Have this process's pages of what it has mapped of the files in a directory, read from disk where they are not
    in memory.

    Args:
        root: where proc is.
    Returns:
        Bytes; 0 where nothing is mapped, the system has no such call, or memory has no room for all of it: pages that
        drive others out would be read again and again.
    """
    mapped = list(_mappings(directory, root))
    size, memory = sum(end - start for start, end in mapped), read_memory(root)
    if memory is None or size > memory["MemAvailable"]:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(end - start for start, end in mapped if libc.madvise(start, end - start, _POPULATE_READ) == 0)


def _mappings(directory: Path, root: Path) -> Iterator[tuple[int, int]]:
    """First byte and end of each."""
    inside = f"{os.path.realpath(directory)}/"
    try:
        text = (root / "proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(inside):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            yield start, end
