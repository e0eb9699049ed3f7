# SPDX-License-Identifier: Apache-2.0
"""Files that ONNX Runtime keeps mapped: what is written to them afterwards changes the weights of a loaded model."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from fastmmoe.runtime.errors import BundleMismatch


class MappedFiles:
    """Holds files open, so that their state can be asked for even where others have taken their names since."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[int, tuple[Path, tuple[int, int]]] = {}
        weakref.finalize(self, _close, self._files)
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files[descriptor] = (path, _state(descriptor))

    def check_unchanged(self) -> None:
        """Raise BundleMismatch where one has been written to since it was opened here."""
        for descriptor, (path, state) in self._files.items():
            if _state(descriptor) != state:
                raise BundleMismatch(
                    f"{path}: has been written to since the bundle was loaded; load it again (replace bundles as a "
                    f"whole: move the old directory away, then the new one in)"
                )


def _state(descriptor: int) -> tuple[int, int]:
    # Not ctime: it changes with the file's name, too, as when a bundle is replaced under a program that runs it.
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _close(files: dict[int, tuple[Path, tuple[int, int]]]) -> None:
    for descriptor in files:
        os.close(descriptor)
