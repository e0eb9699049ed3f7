# SPDX-License-Identifier: Apache-2.0
"""Mapped files are watched: writes and renames are refused, further names are not."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest

from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.errors import BundleMismatch
from tests.support.files import flip_bit


def test_files_that_are_mapped_are_watched(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(b"weights")
    files = MappedFiles([first, second])
    first.unlink()
    second.rename(tmp_path / "third")
    (tmp_path / "third").rename(second)
    with pytest.raises(BundleMismatch, match="second: has been written to or renamed since"):
        files.check_unchanged()
    files = MappedFiles([second])
    files.check_unchanged()
    with second.open("r+b") as file:
        file.write(b"W")
    with pytest.raises(BundleMismatch, match="second: has been written to or renamed since the bundle was loaded"):
        files.check_unchanged()


def test_a_mapped_file_whose_time_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    files = MappedFiles([path])
    flip_bit(path)
    with pytest.raises(BundleMismatch, match="weights: has been written to or renamed since"):
        files.check_unchanged()


def test_a_mapped_file_may_gain_and_lose_names(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    files = MappedFiles([path])
    for change in (lambda: (tmp_path / "backup").hardlink_to(path), lambda: path.chmod(0o600), path.unlink):
        change()
        files.check_unchanged()
        files.check_unchanged()


def test_files_that_are_no_longer_watched_are_closed(tmp_path: Path) -> None:
    def opened() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        return [str(link.readlink()) for link in links if link.is_symlink() and str(tmp_path) in str(link.readlink())]

    path = tmp_path / "weights"
    path.touch()
    files = MappedFiles([path])
    assert opened() == [str(path)]
    del files
    gc.collect()
    assert opened() == []


def test_nothing_to_watch() -> None:
    MappedFiles(()).check_unchanged()


def test_a_file_that_is_shorter(tmp_path: Path) -> None:
    """Whatever its times say, and though a further name would excuse a later change of state."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    files = MappedFiles([path])
    os.truncate(path, 99)
    os.utime(path, ns=times)
    (tmp_path / "backup").hardlink_to(path)
    expected = f"{path}: has been written to or renamed since the bundle was loaded; load it again (replace bundles as"
    with pytest.raises(BundleMismatch, match=f"^{re.escape(expected)}"):
        files.check_unchanged()
