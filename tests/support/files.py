# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged on purpose."""

from __future__ import annotations

import os
from pathlib import Path


def flip_bit(path: Path, position: int = 0) -> None:
    """Flip a bit; size and times of last change stay."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
