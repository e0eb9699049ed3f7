# SPDX-License-Identifier: Apache-2.0
"""Leaves the code of one GPU architecture in a library, so that it compresses to a fraction.

A library's section .nv_fatbin is a row of containers, each with a header (magic, version, bytes of the header, bytes of
what follows) and entries (kind, version, bytes of the header, bytes of the code; the architecture at byte 28). Checked
against cuobjdump on onnxruntime-gpu 1.30.0 and 1.31.1; whether a driver takes the result has not been tried.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from fastmmoe.runtime.errors import FastmmoeError

MAGIC, MACHINE_CODE = 0xBA55ED50, 2
SECTION = re.compile(r"\.nv_fatbin\s+PROGBITS\s+\S+\s+([0-9a-f]+)\s+([0-9a-f]+)")


class NoFatBinary(FastmmoeError):
    """The library has no code for GPUs, or none for this one."""


def keep_architecture(source: Path, arch: int) -> bytearray:
    """The library with the machine code for sm_`arch` alone: it moves to the front of its container, the rest is zeros.

    Containers that have none for it stay as they are.

    Raises:
        NoFatBinary: none has any.
    """
    sections = subprocess.run(["readelf", "-SW", str(source)], capture_output=True, text=True, check=True).stdout
    match = SECTION.search(sections)
    if match is None:
        raise NoFatBinary(f"{source} has no section .nv_fatbin: expected a library with CUDA kernels")
    data = bytearray(source.read_bytes())
    place, kept = int(match[1], 16), 0
    end = place + int(match[2], 16)
    while place + 16 <= end:
        magic, _, header, size = struct.unpack_from("<IHHQ", data, place)
        if magic != MAGIC:
            place += 8
            continue
        first, after = place + header, place + header + size
        body = _entries(data, first, after, arch)
        if body:
            kept += 1
            data[first:after] = body + bytes(size - len(body))
            struct.pack_into("<Q", data, place + 8, len(body))
        place = after
    if not kept:
        raise NoFatBinary(f"{source} has no machine code for sm_{arch}")
    return data


def _entries(data: bytearray, place: int, end: int, arch: int) -> bytes:
    found = []
    while place < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, place)
        (own,) = struct.unpack_from("<I", data, place + 28)
        if kind == MACHINE_CODE and own == arch:
            found.append(bytes(data[place : place + header + size]))
        place += header + size
    return b"".join(found)
