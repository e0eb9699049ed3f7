# SPDX-License-Identifier: Apache-2.0
"""Open weight files: of any size, copied by the system or by hand, and refused by name once they changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.checkpoint.open_file import OpenFile
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.checkpoint.weight_files import FileState
from fastmmoe.runtime.errors import UnsupportedModel

BYTES = np.random.default_rng(0).integers(0, 256, 9_000_001, np.uint8).tobytes()
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from fastmmoe.exporter.checkpoint.reader import Checkpoint

checkpoint = Checkpoint(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
try:
    checkpoint.load("huge")
except MemoryError as error:
    print(error)
info = checkpoint.info("last")
data = bytearray(16)
checkpoint.open(info).read(memoryview(data), info.offset)
print(torch.frombuffer(data, dtype=torch.float32).tolist())
"""


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def opened(path: Path) -> OpenFile:
    return OpenFile(path, FileState.of(path.stat()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(BYTES)
    return path


def memory_and_swap() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("MemTotal:", "SwapTotal:")))


def write_sparse(directory: Path, size: int) -> Path:
    """A checkpoint whose tensor "huge" has this many bytes, none of them on the disk, between two small ones."""
    ends = {"first": 16, "huge": 16 + size, "last": 32 + size}
    starts = dict(zip(ends, (0, 16, 16 + size), strict=True))
    header = json.dumps(
        {n: {"dtype": "F32", "shape": [(ends[n] - starts[n]) // 4], "data_offsets": [starts[n], ends[n]]} for n in ends}
    ).encode()
    (directory / "config.json").write_text("{}")
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + np.arange(4, dtype=np.float32).tobytes())
        file.seek(size, os.SEEK_CUR)
        file.write(np.arange(4, 8, dtype=np.float32).tobytes())
    return directory


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="/proc/meminfo says how much memory there is")
def test_a_file_larger_than_memory_and_swap_is_mapped(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_sparse(tmp_path, memory_and_swap() // 4096 * 6144))
    assert checkpoint.load("first").tolist() == [0, 1, 2, 3]
    assert checkpoint.load("last").tolist() == [4, 5, 6, 7]
    assert checkpoint.load("huge")[-2:].tolist() == [0, 0]


def test_what_is_written_to_a_mapped_tensor_stays_in_the_process(tmp_path: Path) -> None:
    file = write_sparse(tmp_path, 4096) / "model.safetensors"
    before, checkpoint = file.read_bytes(), Checkpoint(tmp_path)
    checkpoint.load("last").zero_()
    assert not checkpoint.load("last").any() and file.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_a_process_that_may_not_map_it_reads_it_all_the_same(tmp_path: Path) -> None:
    write_sparse(tmp_path, 4 << 30)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refusal, values = done.stdout.splitlines()
    assert refusal == f"{tmp_path / 'model.safetensors'}: Cannot allocate memory"
    assert values == "[4.0, 5.0, 6.0, 7.0]"


def partly_refused(number: int) -> Callable[..., int]:
    """A copy_file_range that copies 1,000 bytes and then fails; with 0 it says that there is no more."""
    whole = os.copy_file_range
    calls = iter(range(9))

    def copy(source: int, target: int, count: int, *offsets: int) -> int:
        if next(calls):
            if number == 0:
                return 0
            raise OSError(number, os.strerror(number))
        return whole(source, target, min(count, 1000), *offsets)

    return copy


@pytest.mark.parametrize("number", [None, 0, errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_copies_by_the_system_or_by_hand(file: Path, number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if number is not None:
        monkeypatch.setattr(os, "copy_file_range", partly_refused(number))
    with (file.parent / "target").open("w+b") as target:
        target.write(b"before")
        target.flush()
        opened(file).copy(11, len(BYTES) - 20, target.fileno(), 6)
        target.seek(0)
        assert target.read() == b"before" + BYTES[11:-9]


def test_other_errors_of_a_copy_are_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", partly_refused(errno.ENOSPC))
    with (file.parent / "target").open("wb") as target, pytest.raises(OSError, match="No space left"):
        opened(file).copy(0, len(BYTES), target.fileno(), 0)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_that_was_cut_off_is_refused_by_name(file: Path, by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(file)
    os.truncate(file, 5_000_000)
    if by_hand:
        monkeypatch.delattr(os, "copy_file_range")
    expected = r"source cannot be read any more \(5000000 bytes, 9000001 expected\); the file changed"
    with (file.parent / "target").open("wb") as target, pytest.raises(UnsupportedModel, match=expected):
        source.copy(1_000_000, 5_000_000, target.fileno(), 0)


def rewrite(path: Path) -> None:
    path.write_bytes(BYTES[::-1])


def replace_by_a_copy(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.write_bytes(BYTES)


@pytest.mark.parametrize("change", [rewrite, replace_by_a_copy, lambda path: os.truncate(path, 7), Path.unlink])
def test_a_file_that_changed_is_refused_by_name(file: Path, change: Callable[[Path], Any]) -> None:
    state = FileState.of(file.stat())
    change(file)
    with pytest.raises(UnsupportedModel, match=r"source cannot be read any more \(.*start again"):
        OpenFile(file, state)


def test_one_more_link_changes_nothing(file: Path) -> None:
    source = opened(file)
    os.link(file, file.with_name("link"))
    source.check()


def test_files_are_closed_with_their_last_user(file: Path) -> None:
    before = open_files()
    files = [opened(file) for _ in range(3)]
    assert open_files() == before + 3
    files.clear()
    assert open_files() == before


def test_mapped_tensors_outlive_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_sparse(tmp_path, 4096))
    tensor = checkpoint.load("last")
    del checkpoint
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(tensor, torch.arange(4.0, 8.0))
