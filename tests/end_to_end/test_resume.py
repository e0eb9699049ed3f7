# SPDX-License-Identifier: Apache-2.0
"""Exports that end in the midst of writing go on where they stopped, and give the bundle of one that did not end."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmmoe.runtime.files import RESUMABLE
from tests.support import untraced_export

AT = 90
"""Of 142 parameters: in the language model, after the vision graph and the embedding."""
PROGRAM = [sys.executable, "-m", "tests.support.untraced_export"]
OPTIONS = ["--prune-layers", "1,2,3"]


@pytest.fixture
def model(own_checkpoint: Callable[[str], Path]) -> Path:
    return own_checkpoint("dsvl2-mla")


@pytest.fixture
def whole(model: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of an export that was not interrupted."""
    (tmp_path / "elsewhere").mkdir()
    return exported(model, tmp_path / "elsewhere" / "out")


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def exported(model: Path, out: Path, *options: str) -> dict[str, bytes]:
    assert untraced_export.run([str(model), str(out), *OPTIONS, *options]) == 0
    return files(out)


def ended(model: Path, out: Path, end: str, *options: str) -> subprocess.CompletedProcess[str]:
    """An export that ends at a parameter of the language model."""
    return untraced_export.run_apart([str(model), str(out), *OPTIONS, *options], end, AT)


def scratch_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.fastmmoe-unfinished")


@pytest.mark.parametrize("formats", [(), ("--weights", "bf16"), ("--weights", "int4")], ids=str)
def test_a_killed_export_goes_on(
    model: Path, formats: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = exported(model, tmp_path / "whole", *formats)
    out = tmp_path / "out"
    assert ended(model, out, "kill", "--resume", *formats).returncode == -signal.SIGKILL
    assert (scratch_of(out) / RESUMABLE).is_file() and not out.exists()
    capsys.readouterr()
    assert exported(model, out, "--resume", *formats) == whole
    said = capsys.readouterr().out
    assert "going on with " in said and "removed" not in said
    assert not scratch_of(out).exists()


def test_what_was_written_is_not_written_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, written = tmp_path / "out", []
    ended(model, out, "kill", "--resume")
    ending = untraced_export._ending("nothing", 0)

    def noted(*arguments: object) -> None:
        written.append(arguments[1])
        ending(*arguments)

    monkeypatch.setattr(untraced_export, "_ending", lambda *_: noted)
    everything = exported(model, out, "--resume")
    # Parameters of 256 bytes and less are in the graphs, so that they count for none.
    assert 10 < len(written) < 60 and "lm_head.weight" not in written[:1]
    assert everything["language_model.data"]


@pytest.mark.parametrize("byte", [0, -1])
def test_a_flipped_byte_is_mended(model: Path, whole: dict[str, bytes], byte: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended(model, out, "kill", "--resume")
    path = scratch_of(out) / "bundle" / "vision.data"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    assert exported(model, out, "--resume") == whole


def other_dtype(model: Path) -> list[str]:
    return ["--dtype", "fp16"]


def other_values(model: Path) -> list[str]:
    """Another checkpoint of the same identity: names, shapes and sizes are the same, a value is not."""
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return []


def other_file(model: Path) -> list[str]:
    """The same bytes in another file, which cannot be known."""
    path = model / "model.safetensors"
    shutil.copy(path, model / "copy")
    (model / "copy").replace(path)
    return []


@pytest.mark.parametrize("change", [other_dtype, other_values, other_file])
def test_what_another_export_left_is_removed(
    model: Path, change: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ended(model, out, "kill", "--resume")
    options = change(model)
    capsys.readouterr()
    found = exported(model, out, "--resume", *options)
    assert f"removed what is left in {scratch_of(out)}: it is of another export" in capsys.readouterr().out
    assert found == exported(model, tmp_path / "again", *options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupt_says_what_goes_on(model: Path, resume: bool, number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A test run in the background ignores SIGINT, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [*PROGRAM, "wait", str(AT), str(model), str(out), *OPTIONS, *(["--resume"] if resume else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            assert any(line == "now\n" for line in iter(process.stdout.readline, ""))
            process.send_signal(number)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        left = f"the same command goes on with what is in {scratch_of(out)}" if resume else "nothing was written"
        assert process.stderr.read().splitlines() == [f"fastmmoe-export: interrupted; {left}"]
    assert scratch_of(out).exists() == resume and not out.exists()


def test_a_full_disk_leaves_what_is_written(model: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ended(model, out, "full", "--resume")
    assert done.returncode == 2 and "No space left on device" in done.stderr
    goes_on = f"once that is mended, the same command goes on with what is in {scratch_of(out)}"
    assert done.stdout.splitlines()[-1] == goes_on
    assert exported(model, out, "--resume") == whole
    assert ended(model, tmp_path / "second", "full").returncode == 2
    assert not scratch_of(tmp_path / "second").exists()


def test_a_disk_that_was_full_from_the_start_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmmoe.exporter.disk_space.free_bytes", lambda _: 0)
    assert untraced_export.run([str(model), str(tmp_path / "out"), *OPTIONS, "--resume"]) == 2
    assert "goes on with" not in capsys.readouterr().out
    assert not scratch_of(tmp_path / "out").exists()


def test_a_disk_that_is_still_full_takes_nothing_away(
    model: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    ended(model, out, "full", "--resume")
    weights = [scratch_of(out) / "bundle" / f"{graph}.data" for graph in ("vision", "language_model")]
    left = [path.read_bytes() for path in weights]
    with monkeypatch.context() as patch:
        patch.setattr("fastmmoe.exporter.disk_space.free_bytes", lambda _: 0)
        capsys.readouterr()
        assert untraced_export.run([str(model), str(out), *OPTIONS, "--resume"]) == 2
    assert f"the same command goes on with what is in {scratch_of(out)}" in capsys.readouterr().out
    assert [path.read_bytes() for path in weights] == left
    assert exported(model, out, "--resume") == whole


def test_an_export_without_resume_removes_its_own_and_leaves_others(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out", "other"):
        ended(model, tmp_path / name, "kill", "--resume")
    capsys.readouterr()
    exported(model, tmp_path / "out")
    assert f"removed {scratch_of(tmp_path / 'out')}, which a killed process left" in capsys.readouterr().out
    assert not scratch_of(tmp_path / "out").exists() and scratch_of(tmp_path / "other").exists()
