# SPDX-License-Identifier: Apache-2.0
"""Reads .npz files of other people: what a file says of its arrays is checked before anything is allocated for them."""

from __future__ import annotations

import io
import math
import stat
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest

MAX_BYTES = 1 << 30
"""Bytes of all arrays together: several times the tiles that fill the longest sequence."""

MAX_ARRAYS = 64
"""No processor gives more than a handful."""

_ENCRYPTED = 1
"""Bit of a member's flags."""

_SUFFIX = ".npy"
_END = struct.Struct("<4s6xH10x")
"""The end of a zip file without a comment: signature, ..., number of members in the directory, ..."""
_MOST_HEADER = 1000


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name; booleans, integers and floats of any shape.

    Raises:
        InvalidRequest: no such file as numpy.savez writes, damaged, encrypted, an array given twice, of things other
            than numbers, of another size than its bytes, or more than MAX_BYTES in all.
        OSError: the file cannot be opened.
    """
    # A pipe would be waited for.
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise _refusal(path, "no regular file")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_members(members)
                _check_count(file, len(members))
                return {one.filename.removesuffix(_SUFFIX): _read_member(archive, one) for one in members}
        except _Damaged as error:
            raise _refusal(path, str(error)) from None
        # zipfile, zlib and NumPy report damage by all of these; NumPy's own words suggest to unpickle the file.
        except (
            *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, KeyError),
            *(NotImplementedError, RuntimeError, OverflowError, IndexError, MemoryError),
        ) as error:
            raise _refusal(path, str(error) if isinstance(error, zipfile.BadZipFile) else "damaged") from error


class _Damaged(Exception):
    """What is wrong with an .npz file."""


def _refusal(path: Path, reason: str) -> InvalidRequest:
    reason = " ".join(reason.split())
    reason = reason if len(reason) <= 200 else f"{reason[:200]}..."
    return InvalidRequest(f"{path}: expected an .npz file of arrays of numbers, as numpy.savez writes it ({reason})")


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_ARRAYS:
        raise _Damaged(f"{len(members)} members, at most {MAX_ARRAYS} are read")
    seen: set[str] = set()
    for member in members:
        name = ascii(member.filename)
        if not member.filename.endswith(_SUFFIX):
            raise _Damaged(f"member {name} is no array")
        if member.filename in seen:
            raise _Damaged(f"member {name} is there twice")
        seen.add(member.filename)
        if member.flag_bits & _ENCRYPTED:
            raise _Damaged(f"member {name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Damaged(f"member {name} is compressed by method {member.compress_type}")
    size = sum(member.file_size for member in members)
    if size > MAX_BYTES:
        raise _Damaged(f"{size:,} bytes of arrays, at most {MAX_BYTES:,} are read")


def _check_count(file: IO[bytes], found: int) -> None:
    """zipfile reads as many entries as a damaged directory has left, and does not look at their number."""
    file.seek(-_END.size, io.SEEK_END)
    signature, count = _END.unpack(file.read(_END.size))
    if signature != b"PK\5\6" or count != found:
        raise _Damaged(f"its directory has {found} members and does not end as one of so many")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    name = ascii(member.filename)
    with archive.open(member) as file:
        shape, is_fortran, dtype, header_bytes = _read_header(file, name)
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or header_bytes + expected != member.file_size:
            raise _Damaged(
                f"member {name} says {dtype} {list(shape)}, {expected:,} bytes, and has "
                f"{member.file_size - header_bytes:,}"
            )
        # To the end of the member: that is where zipfile compares its checksum.
        data = bytearray(file.read())
    array: npt.NDArray[Any] = np.frombuffer(data, dtype)
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise _Damaged(f"member {name} holds truth values other than 0 and 1")
    return array.reshape(shape, order="F" if is_fortran else "C")


def _read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in Fortran's order, dtype, bytes of the header)."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise _Damaged(f"member {name} is of format {version[0]}.{version[1]}")
    try:
        shape, is_fortran, dtype = readers[version](file, max_header_size=_MOST_HEADER)
    # The header is a text that Python's own parser reads.
    except (RecursionError, SyntaxError, tokenize.TokenError) as error:
        raise _Damaged(f"member {name} has a damaged header") from error
    if dtype.kind not in "biuf":
        raise _Damaged(f"member {name} holds {str(dtype)!a}")
    return shape, is_fortran, dtype, file.tell()
