# SPDX-License-Identifier: Apache-2.0
"""The command fastmmoe: its arguments, what it prints, and that run --dump loses nothing of the user's."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime import vlm
from fastmmoe.runtime.cli.main import main


class FakeModel:
    """Answers ones, without a bundle."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def run_tensors(self, *_: object, **__: object) -> dict[str, Any]:
        """Logits."""
        return {"logits": np.ones((2, 3), np.float32)}


@pytest.fixture
def dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Function path -> exit code of a run that writes there."""
    monkeypatch.setattr(vlm, "VLM", FakeModel)
    np.savez(tmp_path / "in.npz", input_ids=np.ones((1, 4), np.int64))
    return lambda path: main(["run", "bundle", "--inputs", str(tmp_path / "in.npz"), "--dump", str(path)])


def files(directory: Path) -> set[str]:
    """Names in it, but for the inputs."""
    return {path.name for path in directory.iterdir()} - {"in.npz"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no files, not even the superuser's."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mount.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def place_of(kind: str, directory: Path) -> tuple[Path, str]:
    """A path where nothing can be written, and what is said of it."""
    path = directory / "out.npz"
    if kind == "device":
        os.mkfifo(path)
        return path, "what is there is no regular file"
    if kind == "directory":
        path.mkdir()
        return path, "a directory is there"
    if kind == "loop":
        path.symlink_to(path)
        return path, "what is there is no regular file"
    if kind == "parent":
        return directory / "no" / "out.npz", f"{directory / 'no'} is no directory"
    (directory / "plain").touch()
    return directory / "plain" / "out.npz", "plain is no directory"


@pytest.mark.parametrize("kind", ["device", "directory", "loop", "parent", "file for a parent"])
def test_told_before_the_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = place_of(kind, tmp_path)
    before = {p.name: p.lstat().st_mode for p in tmp_path.iterdir()}
    assert main(["run", str(tmp_path / "no-bundle"), "--inputs", "no.npz", "--dump", str(path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"fastmmoe: error: {path}: cannot be written: ") and words in line
    assert line.count("\n") == 1
    assert {p.name: p.lstat().st_mode for p in tmp_path.iterdir()} == before


def test_a_read_only_disk_is_told_before_the_run(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = read_only / "out.npz"
    assert main(["run", "no-bundle", "--inputs", "no.npz", "--dump", str(path)]) == 2
    assert f"{path}: cannot be written: {read_only} takes no files of yours" in capsys.readouterr().err


def test_a_link_stays_and_its_target_is_written(dump: Callable[[Path], int], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "mine.npz", tmp_path / "out.npz"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert dump(link) == 0
    assert link.is_symlink() and np.load(real)["logits"].shape == (2, 3)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert files(tmp_path / "real") == {"mine.npz"}


def test_nothing_beside_it_is_touched(dump: Callable[[Path], int], tmp_path: Path) -> None:
    others = {f"out.npz{end}" for end in (".partial", ".partial.npz", ".tmp", ".npz")} | {f".out.npz.{os.getpid()}"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    assert dump(tmp_path / "out.npz") == 0
    assert files(tmp_path) == others | {"out.npz"}
    assert all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_the_longest_name(dump: Callable[[Path], int], tmp_path: Path) -> None:
    assert dump(tmp_path / ("n" * 251 + ".npz")) == 0
    assert len(files(tmp_path)) == 1


def test_a_disk_that_keeps_what_it_does_not_take(
    dump: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(Path, "replace", fail(5))
    monkeypatch.setattr(Path, "unlink", fail(30))
    assert dump(tmp_path / "out.npz") == 2
    assert re.search(r"out\.npz: cannot be written: Input/output error", capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_bytes_that_are_no_text(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As Python gives the bytes of a command line that its locale's encoding does not take."""
    assert main(["run", "no-bundle", "--prompt", "a", option, "caf\udce9"]) == 2
    error = f"{option} 'caf\\udce9': is not valid UTF-8 in this locale; give UTF-8"
    assert capsys.readouterr().err == f"fastmmoe: error: {error}\n"


@pytest.mark.parametrize(("locale", "text"), [("ascii", b"caf\xc3\xa9"), ("utf-8", b"caf\xe9")])
def test_a_prompt_that_the_locale_does_not_take(locale: str, text: bytes) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": str(int(locale == "utf-8"))}
    command: list[str | bytes] = [
        sys.executable,
        "-m",
        "fastmmoe.runtime.cli.main",
        "run",
        "no-bundle",
        "--prompt",
        text,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f": is not valid {locale.upper()} in this locale; " in done.stderr
    assert ("LC_ALL=C.UTF-8" in done.stderr) == (locale == "ascii")
