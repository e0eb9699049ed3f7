# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all, and what the disk refuses is said in one line."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastmmoe.runtime.files import WriteFailed, write_atomically, writing

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mount.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def small_files() -> Iterator[int]:
    """Files of this process have one MiB at most."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    yield MIB
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "report.json"
    path.write_text("old")
    words = (
        r"report\.json: cannot be written: No space left on device: it takes 2\.1 MB, 1\.1 MB more than there is room"
    )
    with pytest.raises(WriteFailed, match=words):
        write_atomically(path, bytes(2 * MIB))
    assert path.read_text() == "old" and list(small_disk.iterdir()) == [path]
    # NumPy says "262144 requested and 261120 written".
    with pytest.raises(WriteFailed, match=words), writing(small_disk / "a", 2 * MIB, shown=path):
        np.zeros(2 * MIB, np.int8).tofile(small_disk / "a")


def test_a_disk_full_of_files(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=3", str(small_disk)], check=True)
    (small_disk / "a").touch()
    (small_disk / "b").touch()
    with pytest.raises(WriteFailed, match=r"report: cannot be written: No space left on device for another file"):
        write_atomically(small_disk / "report", bytes(10))


def test_a_limit_of_file_sizes(small_files: int, tmp_path: Path) -> None:
    words = r"it takes 2\.1 MB, and files may have 1\.0 MB here \(ulimit -f\)"
    with pytest.raises(WriteFailed, match=words):
        write_atomically(tmp_path / "a", bytes(2 * small_files))
    assert not list(tmp_path.iterdir())
    with pytest.raises(WriteFailed, match=words), writing(tmp_path / "a", 2 * small_files):
        np.zeros(2 * small_files, np.int8).tofile(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_every_step_that_fails(number: int, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "out" / "policy.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(WriteFailed, match=re.escape(f"{path}: cannot be written: {os.strerror(number)}")) as failure:
        write_atomically(path, b"new")
    assert "\n" not in str(failure.value)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
