# SPDX-License-Identifier: Apache-2.0
"""Mapped files are watched: writes and renames are refused, further names are not."""

from __future__ import annotations

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
