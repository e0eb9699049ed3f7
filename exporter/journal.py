# SPDX-License-Identifier: Apache-2.0
"""What an export that may go on later (--resume) has written: each tensor's place in a file and the hash of its bytes.

The journal stands in the scratch directory, beside the unfinished files. What it says is trusted for the export that
wrote it only, told by a key, and a tensor is kept only while its bytes are what they were.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fastmmoe.runtime.files import LOCK, RESUMABLE, size_text, write_atomically
from fastmmoe.runtime.types import Say

_BUFFER = 4 << 20


class _Entry(msgspec.Struct, frozen=True):
    file: str
    name: str
    at: int
    size: int
    sha256: str


class _Key(msgspec.Struct, frozen=True):
    key: str


@dataclass(frozen=True)
class Piece:
    """A tensor in a file: its name, its first byte and the number of its bytes."""

    path: Path
    name: str
    at: int
    size: int


class Journal:
    """The journal of a scratch directory, open for more.

    Args:
        scratch: only what the journal names is left there.
        key: stands for everything that the files depend on.
        say: is told what becomes of what is there.
    """

    def __init__(self, scratch: Path, key: str, say: Say) -> None:
        self._scratch, self._path = scratch, scratch / RESUMABLE
        self._buffer = memoryview(bytearray(_BUFFER))
        entries = _read(self._path, key)
        if entries is None and any(entry.name != LOCK for entry in scratch.iterdir()):
            say(f"removed what is left in {scratch}: it is of another export, or of another version")
        self._entries = {(entry.file, entry.name, entry.at, entry.size): entry.sha256 for entry in entries or []}
        _leave_only(scratch, {entry.file for entry in entries or []})
        if entries:
            say(f"going on with {size_text(self.kept_bytes)} that an earlier run wrote")
        lines = [msgspec.json.encode(line) + b"\n" for line in (_Key(key), *(entries or []))]
        write_atomically(self._path, b"".join(lines))

    @property
    def kept_bytes(self) -> int:
        """Bytes of the disk that the files of an earlier run take."""
        files = {self._scratch / file for file, *_ in self._entries}
        return sum(file.stat().st_blocks * 512 for file in files if file.is_file())

    def has(self, piece: Piece, file: int) -> bool:
        """Whether an earlier run wrote this, and it is still there.

        Args:
            file: descriptor of its file.
        """
        expected = self._entries.get((self._name(piece), piece.name, piece.at, piece.size))
        return expected is not None and self._hash(piece, file) == expected

    def add(self, piece: Piece, file: int) -> None:
        """Note what was written."""
        entry = _Entry(self._name(piece), piece.name, piece.at, piece.size, self._hash(piece, file))
        with self._path.open("ab") as journal:
            journal.write(msgspec.json.encode(entry) + b"\n")

    def _name(self, piece: Piece) -> str:
        return str(piece.path.relative_to(self._scratch))

    def _hash(self, piece: Piece, file: int) -> str:
        """SHA-256 of the bytes in the file; of fewer where it ends before."""
        digest, done = hashlib.sha256(), 0
        while done < piece.size:
            count = os.preadv(file, [self._buffer[: min(_BUFFER, piece.size - done)]], piece.at + done)
            if count == 0:
                break
            digest.update(self._buffer[:count])
            done += count
        return digest.hexdigest()


def _read(path: Path, key: str) -> list[_Entry] | None:
    """The entries of a journal; None where it is not there or of another export. A damaged line ends it."""
    try:
        first, *lines = path.read_bytes().splitlines()
        if msgspec.json.decode(first, type=_Key).key != key:
            return None
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    entries: list[_Entry] = []
    for line in lines:
        try:
            entry = msgspec.json.decode(line, type=_Entry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
        if not _is_inside(entry.file):
            break
        entries.append(entry)
    return entries


def _is_inside(file: str) -> bool:
    """Whether it is a file of a folder in the scratch directory: what stands beside those of the journal is removed."""
    parts = file.split("/")
    return len(parts) == 2 and not {"", ".", ".."}.intersection(parts) and "\0" not in file


def _leave_only(scratch: Path, files: set[str]) -> None:
    """Remove everything but these files, the lock and the journal."""
    kept = {scratch / file for file in files}
    folders = {file.parent for file in kept}
    for entry in [*scratch.iterdir(), *(inner for folder in folders if folder.is_dir() for inner in folder.iterdir())]:
        if entry in kept or entry in folders or entry.name in (LOCK, RESUMABLE):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
