# SPDX-License-Identifier: Apache-2.0
"""Files of tensors: numpy's own are read as written, whatever else is refused in one line before it costs memory."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.tensor_files import MAX_ARRAYS, read_tensors

ARRAYS: dict[str, Any] = {
    "input_ids": np.arange(12, dtype=np.int64).reshape(3, 4),
    "mask": np.array([[True, False]]),
    "images": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 5), np.float32),
    "scalar": np.array(7),
}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    """A .npy file with a header of our own."""
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def archive(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")
        for name, data in members:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "in.npz", **ARRAYS)
    found = read_tensors(tmp_path / "in.npz")
    assert list(found) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)


SHAPE = "{'descr': '<i8', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (
            header(SHAPE % "(549755813888,)", bytes(8)),
            r"says int64 \[549755813888\], 4,398,046,511,104 bytes, and has 8",
        ),
        (header(SHAPE % "(1,)", bytes(16)), r"says int64 \[1\], 8 bytes, and has 16"),
        (header(SHAPE % "(-1, -1)", bytes(8)), r"says int64 \[-1, -1\]"),
        (header(SHAPE % "(1.5,)", bytes(8)), "damaged"),
        (header(SHAPE % ("(" * 900)), "damaged"),
        (header(SHAPE % ("[" * 9000)), "damaged"),
        (header(SHAPE % ("-" * 900 + "1")), "damaged"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "holds 'object'"),
        (header("{'descr': '<U2', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "holds '<U2'"),
        (header("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "holds 'complex64'"),
        (header("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,), }", bytes(8)), "holds "),
        (
            header("{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }", b"\1\2"),
            "truth values other than 0 and 1",
        ),
        (header(SHAPE % "(1,)", bytes(8), version=9), "is of format 9.0"),
        (b"", "damaged"),
        (b"hello", "damaged"),
    ],
    ids=range(15),
)
def test_arrays_that_are_not_what_they_say(member: bytes, words: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "in.npz", ("input_ids.npy", member))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=words) as error:
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "expected an .npz file of arrays of numbers" in str(error.value)
    assert "\n" not in str(error.value)


def test_archives_that_numpy_does_not_write(tmp_path: Path) -> None:
    ids = ("input_ids.npy", npy(np.arange(3)))
    encrypted = bytearray(archive(tmp_path / "encrypted.npz", ids).read_bytes())
    for start, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(start) + offset] |= 1
    (tmp_path / "encrypted.npz").write_bytes(encrypted)
    bomb = np.zeros(1 << 17, np.float64)
    os.mkfifo(tmp_path / "pipe.npz")
    huge = bytearray(archive(tmp_path / "huge.npz", ids).read_bytes())
    at = huge.index(b"PK\1\2") + 24
    huge[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
    (tmp_path / "huge.npz").write_bytes(huge)
    cases = {
        tmp_path / "encrypted.npz": "member 'input_ids.npy' is encrypted",
        tmp_path / "huge.npz": "4,294,967,280 bytes of arrays, at most 1,073,741,824 are read",
        tmp_path / "pipe.npz": "no regular file",
        archive(tmp_path / "twice.npz", ids, ids): "member 'input_ids.npy' is there twice",
        archive(tmp_path / "other.npz", ("a.txt", b"a")): "member 'a.txt' is no array",
        archive(
            tmp_path / "many.npz", *((f"{i}.npy", ids[1]) for i in range(MAX_ARRAYS + 1))
        ): "65 members, at most 64",
        archive(tmp_path / "lzma.npz", ids, method=zipfile.ZIP_LZMA): "is compressed by method 14",
        archive(
            tmp_path / "bombs.npz", ("a.npy", npy(bomb)[:-8])
        ): r"says float64 \[131072\], 1,048,576 bytes, and has 1,048,568",
    }
    for path, words in cases.items():
        with pytest.raises(InvalidRequest, match=words) as error:
            read_tensors(path)
        assert "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "deflated.npz", **ARRAYS)
    originals = [(tmp_path / f"{name}.npz").read_bytes() for name in ("stored", "deflated")]
    rng = np.random.default_rng(7)
    refused, path = 0, tmp_path / "in.npz"
    for index in range(400):
        changed = bytearray(originals[index % 2])
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(len(changed)))] = (0, 1, 0x7F, 0xFF, int(rng.integers(256)))[rng.integers(5)]
        path.write_bytes(changed[: int(rng.integers(1, len(changed)))] if rng.random() < 0.1 else changed)
        try:
            found = read_tensors(path)
        except InvalidRequest as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        # What is damaged is noticed, but for names.
        for array in found.values():
            assert any(np.array_equal(array, one) and array.dtype == one.dtype for one in ARRAYS.values())
    assert refused > 150


def test_a_directory_that_has_lost_members(tmp_path: Path) -> None:
    """zipfile reads what is left of it: an attention_mask that may be absent would be gone without a word."""
    path = tmp_path / "in.npz"
    np.savez(path, input_ids=np.zeros(3), attention_mask=np.ones(3))
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[-6:-2], "little")
    first = data.index(b"PK\1\2", directory + 4) - directory
    data[-10:-6] = first.to_bytes(4, "little")
    del data[directory + first : -22]
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="its directory has 1 members"):
        read_tensors(path)
