# SPDX-License-Identifier: Apache-2.0
"""OUT of an export: what is refused, what is replaced, and that nothing else is ever removed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastmmoe.exporter import output_directory
from fastmmoe.exporter.output_directory import Output, reserve_output
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import scratch_directory

MODEL = Path("model")
HELD = """
import sys, time
from pathlib import Path
from fastmmoe.runtime.files import scratch_directory

with scratch_directory(Path(sys.argv[1]), sys.argv[2], print) as scratch:
    (scratch / "half").mkdir()
    (scratch / "half" / "weights").write_text("many")
    print("held", flush=True)
    time.sleep(60)
"""


def write_bundle(directory: Path, content: str = "old", *, format: int = 2) -> Path:
    """A directory that says of itself what a bundle says."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vision.onnx").write_text(content)
    files = {"vision.onnx": {"bytes": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}}
    manifest = {"format": format, "fastmmoe_version": "0.0", "policy": {}, "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def tree(directory: Path) -> dict[str, str]:
    """Every file, hidden ones too, and its text."""
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def export_to(
    out: Path, *, overwrite: bool = False, meanwhile: Callable[[], object] = lambda: None, model: Path = MODEL
) -> list[str]:
    """Write a bundle as an export does, and return what was reported."""
    lines: list[str] = []
    with reserve_output(out, model, overwrite=overwrite, say=lines.append) as output:
        staged = write_bundle(output.scratch / "bundle", "new")
        meanwhile()
        output.publish(staged)
    return lines


@pytest.fixture(autouse=True)
def _away_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to export in."""
    path = tmp_path / "place"
    path.mkdir()
    return path


@pytest.mark.parametrize("is_empty_directory", [False, True])
def test_new_output(is_empty_directory: bool, place: Path) -> None:
    if is_empty_directory:
        (place / "out").mkdir()
    assert export_to(place / "out") == []
    assert [path.name for path in place.iterdir()] == ["out"]
    assert (place / "out" / "vision.onnx").read_text() == "new"


@pytest.mark.parametrize("format", [1, 2, 99])
def test_a_bundle_of_any_version_is_replaced(format: int, place: Path) -> None:
    old = write_bundle(place / "out", format=format)
    (old / "vision.engine").write_text("built")
    (old / "engines.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="--overwrite to replace it"):
        export_to(old)
    export_to(old, overwrite=True)
    assert (old / "vision.onnx").read_text() == "new"
    assert sorted(path.name for path in old.iterdir()) == ["manifest.json", "vision.onnx"]
    assert [path.name for path in place.iterdir()] == ["out"]


def test_a_damaged_bundle_is_replaced(place: Path) -> None:
    old = write_bundle(place / "out")
    (old / "vision.onnx").unlink()
    export_to(old, overwrite=True)
    assert (old / "vision.onnx").read_text() == "new"


def folder_with(name: str, content: bytes = b"mine") -> Callable[[Path], object]:
    """Function path -> None that makes a folder with one file."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(content)

    return make


def folder_for_a_file(path: Path) -> None:
    write_bundle(path)
    (path / "vision.onnx").unlink()
    (path / "vision.onnx").mkdir()


def pipe_for_a_manifest(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "manifest.json")


NO_BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda p: p.write_text("mine"), "it is a file"),
    "a folder": (folder_with("thesis.txt"), "no manifest.json"),
    "a browser extension": (
        folder_with("manifest.json", b'{"manifest_version": 3, "name": "mine"}'),
        "its manifest.json is not a bundle's",
    ),
    "a format alone": (folder_with("manifest.json", b'{"format": 2}'), "its manifest.json is not a bundle's"),
    "no JSON": (folder_with("manifest.json"), "its manifest.json is not a bundle's"),
    "no text": (folder_with("manifest.json", b"\xff\xfe"), "its manifest.json is not a bundle's"),
    "a folder of that name": (lambda p: (p / "manifest.json").mkdir(parents=True), "is no regular file"),
    "a pipe of that name": (pipe_for_a_manifest, "its manifest.json is no regular file"),
    "a bundle and more": (
        lambda p: (write_bundle(p) / "notes.txt").write_text("mine"),
        "it holds notes.txt, which its manifest.json does not name",
    ),
    "a bundle and a folder": (lambda p: (write_bundle(p) / "tiles").mkdir(), "it holds tiles"),
    "a folder for a file": (folder_for_a_file, "it holds vision.onnx"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", NO_BUNDLES)
def test_what_is_no_bundle_is_refused(kind: str, overwrite: bool, place: Path) -> None:
    make, words = NO_BUNDLES[kind]
    make(place / "out")
    before = list(place.rglob("*"))
    with pytest.raises(InvalidRequest, match="exists and is not a bundle") as refusal:
        export_to(place / "out", overwrite=overwrite)
    assert words in str(refusal.value)
    assert list(place.rglob("*")) == before


def test_a_link_means_its_target(place: Path) -> None:
    old = write_bundle(place / "disk" / "old")
    (place / "empty").mkdir()
    for name in ("old", "empty"):
        (place / f"to-{name}").symlink_to(place / ("disk/old" if name == "old" else "empty"))
        export_to(place / f"to-{name}", overwrite=True)
        assert (place / f"to-{name}").is_symlink()
    assert (old / "vision.onnx").read_text() == (place / "empty" / "vision.onnx").read_text() == "new"


def test_places_that_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dangling").symlink_to(place / "nowhere")
    (place / "loop").symlink_to(place / "loop")
    (place / "file").write_text("mine")
    (place / "model").mkdir()
    for out, words in (
        (place / "dangling", "a symbolic link to .*nowhere, which is not there"),
        (place / "loop", "a symbolic link to"),
        (place / "a" / "b" / "c", f"{place / 'a'} is not a directory: make it first"),
        (place / "file" / "out", f"{place / 'file'} is not a directory"),
        (Path(), "where you work or live"),
        (tmp_path / "work", "where you work or live"),
        (tmp_path / "home", "where you work or live"),
        (Path("/"), "where you work or live"),
        (place / "model", "is the checkpoint itself"),
        (Path("/proc"), "a mount point"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            export_to(out, overwrite=True, model=place / "model")
    assert sorted(path.name for path in place.iterdir()) == ["dangling", "file", "loop", "model"]
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"35 98 0:33 / {place}/my\\040disk rw - ext4 /dev/x rw\n")
    monkeypatch.setattr(output_directory, "_MOUNTS", mounts)
    (place / "my disk").mkdir()
    with pytest.raises(InvalidRequest, match="a mount point, which cannot be replaced"):
        export_to(place / "my disk")


def change_manifest(out: Path) -> None:
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"0.0"', '"0.1"'))


def move_away_and(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def move(out: Path) -> None:
        out.rename(out.with_name("moved"))
        make(out)

    return move


MEANWHILE: dict[str, tuple[bool, Callable[[Path], object]]] = {
    "a folder": (False, folder_with("thesis.txt")),
    "a bundle": (False, write_bundle),
    "a file": (False, lambda out: out.write_text("mine")),
    "a link": (False, lambda out: out.symlink_to("elsewhere")),
    "another bundle": (True, move_away_and(write_bundle)),
    "another manifest": (True, change_manifest),
    "engines": (True, lambda out: (out / "vision.engine").write_text("built")),
    "notes": (True, lambda out: (out / "notes.txt").write_text("mine")),
    "a file instead": (True, move_away_and(lambda out: out.write_text("mine"))),
}
"""What happens -> whether a bundle was there, what is done to the path."""


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("kind", MEANWHILE)
def test_what_appears_meanwhile_stays(
    kind: str, can_exchange: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(output_directory, "_exchange", lambda a, b: False)
    is_there, happen = MEANWHILE[kind]
    out = place / "out"
    if is_there:
        write_bundle(out)
    theirs: dict[str, str] = {}

    def meanwhile() -> None:
        happen(out)
        theirs.update({name: text for name, text in tree(place).items() if "unfinished" not in name})

    with pytest.raises(InvalidRequest, match=f"the finished bundle is {out}-2$"):
        export_to(out, overwrite=is_there, meanwhile=meanwhile)
    found = tree(place)
    assert {name: found.pop(name) for name in theirs} == theirs
    assert sorted(found) == ["out-2/manifest.json", "out-2/vision.onnx"] and found["out-2/vision.onnx"] == "new"


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("kind", ["another manifest", "another bundle"])
def test_a_change_in_the_last_moment_is_undone(
    kind: str, can_exchange: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between the last look at the old bundle and the step that moves it.
    out, exchange, changes = write_bundle(place / "out"), output_directory._exchange, [MEANWHILE[kind][1]]

    def change_first(a: Path, b: Path) -> bool:
        if changes:
            changes.pop()(out)
        return can_exchange and exchange(a, b)

    monkeypatch.setattr(output_directory, "_exchange", change_first)
    with pytest.raises(InvalidRequest, match="the finished bundle is"):
        export_to(out, overwrite=True)
    assert (out / "vision.onnx").read_text() == "old" and (place / "out-2" / "vision.onnx").read_text() == "new"


def test_replacing_without_an_exchange(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_directory, "_exchange", lambda a, b: False)
    export_to(write_bundle(place / "out"), overwrite=True)
    assert [path.name for path in place.iterdir()] == ["out"]
    assert (place / "out" / "vision.onnx").read_text() == "new"


def test_an_old_bundle_that_is_moved_away_meanwhile(place: Path) -> None:
    out = write_bundle(place / "out")
    export_to(out, overwrite=True, meanwhile=lambda: out.rename(place / "kept"))
    assert (place / "kept" / "vision.onnx").read_text() == "old" and (out / "vision.onnx").read_text() == "new"


@contextmanager
def held_by_another(directory: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that exports, until the end of the block or its own."""
    command = [sys.executable, "-c", HELD, str(directory), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_two_exports_at_once(place: Path) -> None:
    (place / "link").symlink_to(place / "out")
    (place / "out").mkdir()
    with held_by_another(place, "out"):
        for out in (place / "out", place / "link"):
            with pytest.raises(InvalidRequest, match="out: another process is writing it"):
                export_to(out)
        # Beside it there is room, and what the other has is left alone.
        assert export_to(place / "other") == []
        assert (place / ".out.fastmmoe-unfinished" / "half" / "weights").read_text() == "many"


@pytest.mark.parametrize("name", ["out", "other"])
def test_a_killed_export_leaves_nothing_for_good(name: str, place: Path) -> None:
    with held_by_another(place, "out") as process:
        process.kill()
    left = place / ".out.fastmmoe-unfinished"
    assert (left / "half" / "weights").exists()
    assert export_to(place / name) == [f"removed {left}, which a killed process left"]
    assert [path.name for path in place.iterdir()] == [name]


def test_a_killed_build_of_engines_does_not_block_the_bundle(place: Path) -> None:
    out = write_bundle(place / "out")
    with held_by_another(out, "engines") as process:
        with pytest.raises(InvalidRequest, match=r"it holds \.engines\.fastmmoe-unfinished"):
            export_to(out, overwrite=True)
        process.kill()
    assert export_to(out, overwrite=True) == [
        f"removed {out / '.engines.fastmmoe-unfinished'}, which a killed process left"
    ]


def test_a_link_in_the_scratch_directorys_place_is_not_followed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    (tmp_path / "home" / "lock").touch()
    (place / ".out.fastmmoe-unfinished").symlink_to(tmp_path / "home")
    with pytest.raises(InvalidRequest, match="not this user's"):
        export_to(place / "out")
    export_to(place / "other")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"


def test_everything_is_on_the_disk_before_it_appears(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = output_directory.sync, Path.rename

    def note_sync(path: Path) -> None:
        steps.append(path.name)
        sync(path)

    def note_rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(output_directory, "sync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    export_to(place / "out")
    assert sorted(steps[:2]) == ["manifest.json", "vision.onnx"]
    assert steps[2:] == ["bundle", "rename", "place"]


def test_an_interrupt_after_the_last_step_says_that_it_was_written(place: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="out was written"),
        reserve_output(place / "out", MODEL, overwrite=False, say=print) as output,
    ):
        output.publish(write_bundle(output.scratch / "bundle"))
        raise KeyboardInterrupt
    assert (place / "out" / "manifest.json").is_file()


def test_scratch_is_removed_after_an_error(place: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch_directory(place, "out", print) as scratch:
        write_bundle(scratch / "bundle")
        1 / 0  # noqa: B018
    assert not list(place.iterdir())


def test_output_is_kept_apart_from_its_scratch(place: Path) -> None:
    with reserve_output(place / "out", MODEL, overwrite=False, say=print) as output:
        assert output == Output(place / "out", place / ".out.fastmmoe-unfinished", None)
