# SPDX-License-Identifier: Apache-2.0
"""Opening bundles: what is hashed when, what a stamp is trusted with, and what is said."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fastmmoe.runtime.bundle import stamps, verification
from fastmmoe.runtime.bundle.inspection import inspect_bundle
from fastmmoe.runtime.bundle.manifest import MANIFEST, read_manifest, write_manifest
from fastmmoe.runtime.bundle.stamps import Stamp
from fastmmoe.runtime.bundle.verification import leave_stamp, open_bundle, verify_bundle
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from tests.support.files import flip_bit

FILES = 5


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been hashed."""
    names: list[str] = []
    real = verification._sha256

    def recorded(path: Path, progress: Any) -> str:
        names.append(path.name)
        return real(path, progress)

    monkeypatch.setattr(verification, "_sha256", recorded)
    return names


@pytest.fixture
def settled(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The toy bundle, whose files a stamp may remember at once, with a folder of stamps of this test alone."""
    monkeypatch.setattr(stamps, "SETTLED_NS", 0)
    monkeypatch.setenv("FASTMMOE_STAMPS", str(tmp_path / "stamps"))
    return toy_bundle


def silent(line: str) -> None:
    raise AssertionError(line)


def test_a_bundle_is_hashed_once(settled: Path, hashed: list[str]) -> None:
    open_bundle(settled, say=silent)
    assert len(hashed) == FILES
    open_bundle(settled, say=silent)
    assert len(hashed) == FILES


@pytest.mark.parametrize("name", ["embedding.onnx", "language_model.onnx", "tokenizer.json", "vision.onnx"])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_flipped_bit_is_refused(name: str, is_known: bool, settled: Path) -> None:
    if is_known:
        open_bundle(settled, say=silent)
    flip_bit(settled / name)
    with pytest.raises(BundleMismatch, match=rf"{name}: damaged: SHA-256 \w{{12}}\.\.\., expected"):
        open_bundle(settled, say=silent)
    flip_bit(settled / name)
    open_bundle(settled, say=silent)


def test_only_files_that_changed_are_hashed_again(settled: Path, hashed: list[str]) -> None:
    open_bundle(settled, say=silent)
    hashed.clear()
    (settled / "vision.onnx").touch()
    open_bundle(settled, say=silent)
    assert hashed == ["vision.onnx"]
    other = settled / "other"
    (settled / "embedding.onnx").rename(other)
    (settled / "embedding.onnx").write_bytes(other.read_bytes())
    other.unlink()
    open_bundle(settled, say=silent)
    assert hashed == ["vision.onnx", "embedding.onnx"]


def test_a_manifest_with_another_hash_is_hashed_again(settled: Path) -> None:
    open_bundle(settled, say=silent)
    manifest = read_manifest(settled)
    entry = replace(manifest.files["vision.onnx"], sha256="0" * 64)
    write_manifest(settled, replace(manifest, files=manifest.files | {"vision.onnx": entry}))
    with pytest.raises(BundleMismatch, match="expected 000000000000"):
        open_bundle(settled, say=silent)


def test_a_file_that_has_just_changed_is_not_remembered(
    settled: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "SETTLED_NS", 10**12)
    open_bundle(settled, say=silent)
    open_bundle(settled, say=silent)
    assert len(hashed) == 2 * FILES


def test_files_from_a_clock_that_runs_ahead_are_remembered(settled: Path, hashed: list[str]) -> None:
    for path in settled.iterdir():
        os.utime(path, ns=(0, 2 * time.time_ns()))
    open_bundle(settled, say=silent)
    open_bundle(settled, say=silent)
    assert len(hashed) == FILES


def test_what_cannot_be_remembered_is_said_at_each_start(
    settled: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTMMOE_STAMPS", str(tmp_path / "file" / "stamps"))
    lines: list[str] = []
    for start in (1, 2):
        open_bundle(settled, say=lines.append)
        assert len(lines) == start and len(hashed) == start * FILES
    assert "cannot be remembered" in lines[0] and "FASTMMOE_STAMPS" in lines[0] and "--no-verify" in lines[0]


def test_a_stamp_that_cannot_be_written_says_why(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Stamp.of(settled).path
    assert path is not None
    path.mkdir(parents=True)
    path.parent.chmod(0o700)
    lines: list[str] = []
    open_bundle(settled, say=lines.append)
    assert f"cannot be remembered ({path}: cannot be written: a directory is there; give another place)" in lines[0]


def test_a_link_to_a_bundle_shares_its_stamp(settled: Path, hashed: list[str], tmp_path: Path) -> None:
    open_bundle(settled, say=silent)
    (tmp_path / "link").symlink_to(settled)
    open_bundle(tmp_path / "link", say=silent)
    assert len(hashed) == FILES


def test_no_verify_compares_names_and_sizes_alone(settled: Path, hashed: list[str]) -> None:
    flip_bit(settled / "vision.onnx")
    open_bundle(settled, verify=False, say=silent)
    assert not hashed and not (settled.parent / "stamps").exists()
    (settled / "vision.onnx").write_text("more than that")
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: 14 bytes, expected 11"):
        open_bundle(settled, verify=False, say=silent)


def test_an_export_leaves_a_stamp(settled: Path, hashed: list[str]) -> None:
    leave_stamp(settled, read_manifest(settled), hashed_at=time.time_ns())
    open_bundle(settled, say=silent)
    assert not hashed


def test_a_change_after_the_hashes_of_an_export_is_seen(settled: Path, hashed: list[str]) -> None:
    hashed_at = time.time_ns()
    time.sleep(0.02)
    flip_bit(settled / "vision.onnx")
    leave_stamp(settled, read_manifest(settled), hashed_at=hashed_at)
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: damaged"):
        open_bundle(settled, say=silent)


def test_a_change_between_hash_and_load_is_refused(settled: Path) -> None:
    opened = open_bundle(settled, say=silent)
    opened.check_unchanged()
    flip_bit(settled / "vision.onnx")
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: has changed while it was in use"):
        opened.check_unchanged()


def test_progress_is_said_where_it_takes_long(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(verification, "QUIET_SECONDS", 0.0)
    open_bundle(settled, say=lines.append)
    assert lines and all("verifying" in line and " GB, " in line and "--no-verify" in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new"), [('"alpha": 0.3', '"alpha": 0.2'), ('"toy"', '"boy"'), ('"sha256": "', '"sha256": "0')]
)
def test_a_legal_edit_of_the_manifest_is_refused(old: str, new: str, settled: Path) -> None:
    path = settled / MANIFEST
    path.write_text(new.join(path.read_text().rsplit(old, 1)))
    with pytest.raises(BundleMismatch, match=r"manifest\.json: damaged or edited: SHA-256"):
        open_bundle(settled, say=silent)
    open_bundle(settled, verify=False, say=silent)


def test_blanks_in_the_manifest_are_no_damage(settled: Path) -> None:
    path = settled / MANIFEST
    path.write_text(path.read_text().replace("  ", " ") + "\n")
    open_bundle(settled, say=silent)


def test_a_path_that_is_not_utf8(toy_bundle: Path) -> None:
    path = toy_bundle.rename(toy_bundle.with_name("p \udcff"))
    for look in (lambda: open_bundle(path), lambda: list(verify_bundle(path)), lambda: open_bundle(path, verify=False)):
        with pytest.raises(InvalidRequest, match="is not UTF-8: rename it"):
            look()


@pytest.mark.parametrize("name", ["engines.json", "vision.engine"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_engines_that_are_no_files(name: str, kind: str, toy_bundle: Path) -> None:
    path = toy_bundle / name
    {"pipe": os.mkfifo, "folder": os.mkdir, "dangling link": lambda p: p.symlink_to("nowhere")}[kind](path)
    with pytest.raises(BundleMismatch, match=f"{name}: no regular file; remove it"):
        list(verify_bundle(toy_bundle))
    assert any(f"{name}: no regular file" in line for line in inspect_bundle(toy_bundle)["damage"])
