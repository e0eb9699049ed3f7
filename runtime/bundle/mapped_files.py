# SPDX-License-Identifier: Apache-2.0
"""Files that ONNX Runtime keeps mapped: what is written to them afterwards changes the weights of a loaded model."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastmmoe.runtime.errors import BundleMismatch


class MappedFiles:
    """Holds files open, so that their state can be asked for even where others have taken their names since."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[str, _File] = {}
        weakref.finalize(self, _close, self._files)
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files[path.name] = _File(descriptor, path, os.fstat(descriptor))

    def check_unchanged(self, name: str | None = None) -> None:
        """Raise BundleMismatch where one has been written to or renamed since it was opened here.

        After a run, so that no answer comes from changed weights, and before: where a file has become shorter, reading
        it ends the process.

        Args:
            name: of the only file to look at, where that is all that will be read; None = all of them.
        """
        for of_file, file in self._files.items():
            if name not in (None, of_file):
                continue
            now = os.fstat(file.descriptor)
            if _may_differ(file.status, now):
                raise BundleMismatch(
                    f"{file.path}: has been written to or renamed since the bundle was loaded; load it again (replace "
                    f"bundles as a whole: move the old directory away, then the new one in)"
                )
            file.status = now


@dataclass
class _File:
    """An open file, and its state when it was last looked at."""

    descriptor: int
    path: Path
    status: os.stat_result


def _may_differ(before: os.stat_result, now: os.stat_result) -> bool:
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        return True
    # mtime can be set back, ctime cannot; but it changes with the number of names, too, as when a bundle is replaced
    # under a program that runs it, and with owner and mode.
    return now.st_ctime_ns != before.st_ctime_ns and _names_and_owner(now) == _names_and_owner(before)


def _names_and_owner(status: os.stat_result) -> tuple[int, ...]:
    return status.st_nlink, status.st_mode, status.st_uid, status.st_gid


def _close(files: dict[str, _File]) -> None:
    for file in files.values():
        os.close(file.descriptor)
