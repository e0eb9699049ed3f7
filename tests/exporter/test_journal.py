# SPDX-License-Identifier: Apache-2.0
"""What an interrupted export left is trusted only if it is of the same export and its bytes are what they were."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastmmoe.exporter.journal import Journal, Piece
from fastmmoe.runtime.files import LOCK, RESUMABLE

DATA = bytes(range(256)) * 40


@contextmanager
def opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The scratch directory of an export that was killed after two tensors."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / LOCK).touch()
    journal = Journal(scratch, "key", print)
    (scratch / "bundle").mkdir()
    path = scratch / "bundle" / "lm.data"
    path.write_bytes(DATA)
    with opened(path) as file:
        for piece in pieces(scratch):
            journal.add(piece, file)
    return scratch


def pieces(scratch: Path) -> list[Piece]:
    path = scratch / "bundle" / "lm.data"
    return [Piece(path, "a", 0, 5000), Piece(path, "b", 8192, 2048)]


def kept(scratch: Path, key: str = "key") -> tuple[list[bool], list[str]]:
    """Which tensors a new run keeps, and what it says."""
    lines: list[str] = []
    journal = Journal(scratch, key, lines.append)
    path = scratch / "bundle" / "lm.data"
    if not path.is_file():
        return [False, False], lines
    with opened(path) as file:
        return [journal.has(piece, file) for piece in pieces(scratch)], lines


def test_the_same_export_goes_on(scratch: Path) -> None:
    for _ in range(2):
        found, lines = kept(scratch)
        assert found == [True, True]
        assert len(lines) == 1 and lines[0].startswith("going on with ") and "that an earlier run wrote" in lines[0]


def test_the_first_run_says_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    lines: list[str] = []
    assert Journal(tmp_path, "key", lines.append).kept_bytes == 0
    assert lines == []


def test_another_export_starts_anew(scratch: Path) -> None:
    found, lines = kept(scratch, "another key")
    assert found == [False, False]
    assert lines == [f"removed what is left in {scratch}: it is of another export, or of another version"]
    assert sorted(path.name for path in scratch.iterdir()) == [RESUMABLE, LOCK]


@pytest.mark.parametrize(("byte", "expected"), [(0, [False, True]), (9000, [True, False]), (6000, [True, True])])
def test_a_flipped_byte_is_found(scratch: Path, byte: int, expected: list[bool]) -> None:
    path = scratch / "bundle" / "lm.data"
    data = bytearray(DATA)
    data[byte] ^= 4
    path.write_bytes(data)
    assert kept(scratch)[0] == expected


def test_a_file_that_was_cut_off_or_is_gone(scratch: Path) -> None:
    path = scratch / "bundle" / "lm.data"
    os.truncate(path, 9000)
    assert kept(scratch)[0] == [True, False]
    path.unlink()
    assert kept(scratch)[0] == [False, False]


@pytest.mark.parametrize(
    "other",
    [Piece(Path("lm.data"), "a", 0, 4999), Piece(Path("lm.data"), "c", 0, 5000), Piece(Path("x"), "a", 0, 5000)],
)
def test_another_tensor_or_place_is_not_kept(scratch: Path, other: Piece) -> None:
    journal = Journal(scratch, "key", print)
    piece = Piece(scratch / "bundle" / other.path, other.name, other.at, other.size)
    with opened(scratch / "bundle" / "lm.data") as file:
        assert not journal.has(piece, file)


def test_a_line_that_was_cut_off_ends_the_journal(scratch: Path) -> None:
    path = scratch / RESUMABLE
    path.write_bytes(path.read_bytes()[:-10])
    assert kept(scratch)[0] == [True, False]


@pytest.mark.parametrize(
    "file", ["", "x", "../x", "bundle/../../x", "/scratch/../x", "bundle/..", "bundle//x", "bundle/x\0"]
)
def test_nothing_outside_of_the_scratch_directory_is_touched(scratch: Path, file: str) -> None:
    """A damaged line counts for none, and folders that it would lead to are not tidied.

    An absolute path leads into the test's own folder: code that is wrong removes what is there.
    """
    file = f"{scratch.parent}{file}" if file.startswith("/") else file
    beside = scratch.parent / "mine"
    beside.touch()
    entry = {"file": file, "name": "a", "at": 0, "size": 5000, "sha256": ""}
    with (scratch / RESUMABLE).open("ab") as journal:
        journal.write(json.dumps(entry).encode() + b"\n")
    assert kept(scratch)[0] == [True, True]
    assert beside.exists() and len((scratch / RESUMABLE).read_bytes().splitlines()) == 3


@pytest.mark.parametrize("text", [b"", b"{}", b"[]\n", b"\xff\n", b'{"key": 1}\n'])
def test_a_damaged_journal_starts_anew(scratch: Path, text: bytes) -> None:
    (scratch / RESUMABLE).write_bytes(text)
    assert kept(scratch)[0] == [False, False]


def test_only_what_the_journal_names_is_left(scratch: Path) -> None:
    (scratch / "twin").mkdir()
    (scratch / "twin" / "lm.data").touch()
    (scratch / "bundle" / "manifest.json").touch()
    (scratch / "bundle" / "engines").mkdir()
    (scratch / "link").symlink_to("/")
    assert kept(scratch)[0] == [True, True]
    found = {str(path.relative_to(scratch)) for path in scratch.rglob("*")}
    assert found == {LOCK, RESUMABLE, "bundle", "bundle/lm.data"}
