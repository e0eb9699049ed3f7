# SPDX-License-Identifier: Apache-2.0
"""Which entry of devices.py this machine's GPU is, by what driver and firmware say of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

from fastmmoe.runtime.machines.devices import DEVICES, Device
from fastmmoe.runtime.machines.gpu import Gpu
from fastmmoe.runtime.machines.memory import read_memory

BOARD_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")
OTHER_BOARDS = frozenset({"nvl", "laptop", "mobile", "ti", "super", "d"})
"""Words of names that share the rest with an entry, and not its speed."""
_NOT_NAMES = re.compile(r"sxm\d*|\d+gb|t5000")


def find_device(gpu: Gpu, root: Path = Path("/")) -> Device | None:
    """The entry of this GPU, None where there is none. Of several memories the nearest, where none is told the fastest.

    Args:
        root: where proc and sys are.
    """
    board = read_board(root)
    words = _words(f"{gpu.name} {board}")
    # Boards of Jetsons are named after modules: "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super".
    if not board and words & OTHER_BOARDS:
        return None
    known = [one for one in DEVICES.values() if one.sm == gpu.sm and _names(one.name) <= words]
    if not known:
        return None
    memory = _memory_gb(words, root if board else None)
    if memory is None:
        return max(known, key=lambda one: (one.gb_per_s, one.fp16_tflops))
    return min(known, key=lambda one: abs(math.log(one.memory_gb / memory)))


def read_board(root: Path = Path("/")) -> str:
    """The board's name by its firmware; "" where it tells none."""
    for path in (root / name for name in BOARD_FILES):
        try:
            text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
        except OSError:
            continue
        if text.strip("\0 \t\r\n"):
            return " ".join(text.strip("\0").split())
    return ""


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _names(name: str) -> set[str]:
    """The words of an entry that its GPU's name has, too."""
    return {word for word in _words(name) if not _NOT_NAMES.fullmatch(word)}


def _memory_gb(words: set[str], root: Path | None) -> float | None:
    """As the name tells, or as the system that shares it (root: where its proc is); None where neither does."""
    named = [int(word[:-2]) for word in words if re.fullmatch(r"\d+gb", word)]
    if named:
        return float(named[0])
    memory = None if root is None else read_memory(root)
    return None if memory is None else memory["MemTotal"] / 1e9
