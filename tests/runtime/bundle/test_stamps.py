# SPDX-License-Identifier: Apache-2.0
"""Stamps: where they are, what they hold, and which are not believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmmoe.runtime.bundle.stamps import LARGEST_STAMP, SETTLED_NS, FileState, Stamp, state_of

FILES: dict[str, list[int | str]] = {"vision.onnx": ["0" * 64, 11, 3, 4, 5, 6]}


@pytest.fixture
def stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stamp:
    """That of a directory called toy, in a folder of stamps of this test alone."""
    monkeypatch.setenv("FASTMMOE_STAMPS", str(tmp_path / "stamps"))
    return Stamp.of(tmp_path / "toy")


def path_of(stamp: Stamp) -> Path:
    assert stamp.path is not None
    return stamp.path


def in_its_place(path: Path, make: Callable[[], None]) -> None:
    """Remove the file and make something else."""
    path.unlink()
    make()


DAMAGED_STAMPS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"\xff"),
    "list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "other version": lambda path: path.write_text(path.read_text().replace('"version": 1', '"version": 0')),
    "other bundle": lambda path: path.write_text(path.read_text().replace("toy", "boy")),
    "files are a list": lambda path: path.write_text(path.read_text().replace('"files": {', '"files": [], "x": {')),
    "others may write": lambda path: path.chmod(0o622),
    "group may write": lambda path: path.chmod(0o620),
    "folder of the group": lambda path: path.parent.chmod(0o720),
    "folder of others": lambda path: path.parent.chmod(0o722),
    "folder": lambda path: in_its_place(path, path.mkdir),
    "dangling link": lambda path: in_its_place(path, lambda: path.symlink_to("nowhere")),
    "pipe": lambda path: in_its_place(path, lambda: os.mkfifo(path, 0o600)),
    "huge": lambda path: os.truncate(path, 1 << 42),
}


def test_what_is_kept_is_read_again(stamp: Stamp, tmp_path: Path) -> None:
    assert stamp.read() == {}
    assert stamp.write(FILES) == ""
    assert stamp.read() == Stamp.of(tmp_path / "toy").read() == FILES
    assert Stamp.of(tmp_path / "boy").read() == {}
    assert path_of(stamp).stat().st_mode & 0o777 == 0o600
    assert path_of(stamp).parent.stat().st_mode & 0o777 == 0o700
    assert stamp.write({}) == "" and stamp.read() == {}


@pytest.mark.parametrize("damage", DAMAGED_STAMPS)
def test_a_damaged_or_foreign_stamp_is_ignored(damage: str, stamp: Stamp) -> None:
    stamp.write(FILES)
    DAMAGED_STAMPS[damage](path_of(stamp))
    assert stamp.read() == {}


def test_the_largest_stamp_that_is_read(stamp: Stamp) -> None:
    stamp.write(FILES)
    path = path_of(stamp)
    text = path.read_text()
    path.write_text(text + " " * (LARGEST_STAMP - len(text)))
    assert stamp.read() == FILES
    path.write_text(text + " " * (LARGEST_STAMP - len(text) + 1))
    assert stamp.read() == {}


def test_why_a_stamp_cannot_be_written(stamp: Stamp, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(stamp)
    path.mkdir(parents=True)
    path.parent.chmod(0o700)
    assert stamp.write(FILES) == f"{path}: cannot be written: a directory is there; give another place"
    path.rmdir()
    path.parent.chmod(0o777)
    assert stamp.write(FILES) == f"{path.parent} belongs to others, or others may write to it"
    path.parent.rmdir()
    path.parent.touch()
    assert stamp.write(FILES) == f"{path.parent}: File exists"
    assert Stamp(None, path).write(FILES) == "there is no home directory"
    assert Stamp(None, path).read() == {}


def test_a_link_has_the_stamp_of_its_target(stamp: Stamp, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("toy")
    assert Stamp.of(tmp_path / "link") == stamp


def test_the_state_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert state_of(path) is None
    path.write_bytes(b"abc")
    first = state_of(path)
    assert first is not None and first.size == 3
    os.utime(path, ns=(0, 7))
    second = state_of(path)
    assert second is not None and (second.mtime, second.inode) == (7, first.inode)
    assert second.key("0" * 64) == ["0" * 64, 3, 7, second.ctime, first.inode, first.device]


@pytest.mark.parametrize(
    ("mtime", "ctime", "is_settled"),
    [
        (SETTLED_NS, SETTLED_NS, False),
        (SETTLED_NS + 1, SETTLED_NS + 1, True),
        (SETTLED_NS + 1, SETTLED_NS, False),
        (0, SETTLED_NS + 1, False),
        (-SETTLED_NS - 1, -SETTLED_NS - 1, True),
    ],
)
def test_a_file_that_was_just_changed_may_change_again(mtime: int, ctime: int, is_settled: bool) -> None:
    """Times are those from the start of the hashing to the change; a clock may run ahead."""
    began = 10**15
    state = FileState(size=1, mtime=began - mtime, ctime=began - ctime, inode=1, device=1)
    assert state.is_settled(began) is is_settled


def test_stamps_are_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMMOE_STAMPS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    path = Stamp.of(tmp_path).path
    assert path is not None and path.parent == Path("/cache/fastmmoe/verified")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/robot")
    path = Stamp.of(tmp_path).path
    assert path is not None and path.parent == Path("/home/robot/.cache/fastmmoe/verified")
