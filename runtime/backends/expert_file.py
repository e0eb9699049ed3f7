# SPDX-License-Identifier: Apache-2.0
"""Reads the routed experts' weights from a bundle's file, a window at a time, for memory of a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.types import Array

WINDOW = 64 << 20
"""Bytes of the file that are in the host's memory at once."""


def window_size(tensors: Mapping[str, ExpertTensor]) -> int:
    """Bytes of the windows that these tensors are read through."""
    return min(WINDOW, max(tensor.bytes for tensor in tensors.values()))


def read_experts(
    path: Path, tensors: Mapping[str, ExpertTensor], next_window: Callable[[], Array]
) -> Generator[tuple[str, int, Array], None, None]:
    """Read tensors in the order of the file.

    Args:
        next_window: gives memory for the next bytes, uint8 [window_size].
    Yields:
        Name, place of the first byte in the tensor, and bytes uint8 [N], which are a part of the window.
    Raises:
        BundleMismatch: the file is gone, or has become shorter.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BundleMismatch(f"{path}: {error.strerror}; copy the bundle or export again") from error
    try:
        size = window_size(tensors)
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            for start in range(0, tensor.bytes, size):
                part = next_window()[: tensor.bytes - start]
                if not _fill(file, part, tensor.offset + start):
                    raise BundleMismatch(f"{path}: ends before {name} does; copy the bundle or export again")
                yield name, start, part
    finally:
        # On Jetson the page cache and the device's memory are the same: what was read would be there twice.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def _fill(file: int, part: Array, offset: int) -> bool:
    """Read as many bytes as the part has; False where the file ends before."""
    view, done = memoryview(part.data), 0
    while done < len(part):
        count = os.preadv(file, [view[done:]], offset + done)
        if count == 0:
            return False
        done += count
    return True
