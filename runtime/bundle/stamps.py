# SPDX-License-Identifier: Apache-2.0
"""Stamps of verified bundles, kept outside of them: the state that each file had when its hash was right."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastmmoe.runtime.files import WriteFailed, cache_folder, write_atomically

DIRECTORY = "FASTMMOE_STAMPS"
"""Environment variable: where stamps are kept, instead of $XDG_CACHE_HOME/fastmmoe/verified."""
STAMP_VERSION = 1
LARGEST_STAMP = 1 << 20
SETTLED_NS = 100_000_000
"""A file that was changed this short a time before it was read may change again within one tick of its clock."""


class FileState(NamedTuple):
    """State of a file, which changes when it is written to or replaced. Times in nanoseconds."""

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int

    def key(self, sha256: str) -> list[int | str]:
        """As it stands in a stamp, with the hash that the file had."""
        return [sha256, *self]

    def is_settled(self, began: int) -> bool:
        """Whether a change after this time would show; clocks of robots may be years behind their files."""
        return min(abs(self.mtime - began), abs(self.ctime - began)) > SETTLED_NS


def state_of(path: Path) -> FileState | None:
    """State of a file, None where there is none."""
    try:
        s = path.stat()
    except OSError:
        return None
    return FileState(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)


@dataclass(frozen=True)
class Stamp:
    """The memory of one bundle, a file named by the bundle's real path. It is a private file in a private folder.

    Attributes:
        path: the stamp's file; None where the user has no place for one.
        bundle: real path.
    """

    path: Path | None
    bundle: Path

    @staticmethod
    def of(bundle: Path) -> Stamp:
        """The stamp of the bundle in this directory, whether it exists or not."""
        real = bundle.resolve()
        folder = _folder()
        name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
        return Stamp(None if folder is None else folder / f"{name}.json", real)

    def read(self) -> dict[str, list[int | str]]:
        """File name -> `FileState.key`; nothing where the stamp is missing, damaged or not the user's own."""
        try:
            if self.path is None or _is_foreign(self.path.parent) or _is_foreign(self.path):
                return {}
            if not self.path.is_file() or self.path.stat().st_size > LARGEST_STAMP:
                return {}
            stamp = json.loads(self.path.read_bytes())
            is_ours = stamp["version"] == STAMP_VERSION and stamp["bundle"] == str(self.bundle)
            files: dict[str, list[int | str]] = stamp["files"]
            return files if is_ours and isinstance(files, dict) else {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}

    def write(self, files: dict[str, list[int | str]]) -> str:
        """Keep this instead of what was kept before; say why that is not possible, or "" where it is."""
        if self.path is None:
            return "there is no home directory"
        stamp = {"version": STAMP_VERSION, "bundle": str(self.bundle), "files": files}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_foreign(self.path.parent):
                return f"{self.path.parent} belongs to others, or others may write to it"
            write_atomically(self.path, json.dumps(stamp).encode())
            self.path.chmod(0o600)
        except WriteFailed as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or self.path.parent}: {error.strerror}"
        return ""


def _folder() -> Path | None:
    given = os.environ.get(DIRECTORY)
    if given:
        return Path(given).absolute()
    folder = cache_folder()
    return None if folder is None else folder / "verified"


def _is_foreign(path: Path) -> bool:
    """Whether somebody else could have written this."""
    status = path.stat()
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)
