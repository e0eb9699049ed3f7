# SPDX-License-Identifier: Apache-2.0
"""Names of repositories, on a Hub that is a folder of this machine; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime import hub
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.hub import CHECKPOINT_FILES, bundle_of, checkpoint_of
from tests.support.manifests import write_toy_bundle

COMMIT = "0a1b"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What was asked of a Hub with one bundle, in a cache like its own: links to blobs, and a file beside them."""
    calls: list[Any] = []
    blobs, snapshot = write_toy_bundle(tmp_path / "blobs"), tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (blobs / ".gitattributes").touch()
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)

    def download(name: str, *, revision: str | None, allow_patterns: list[str] | None) -> str:
        calls.append((name, revision, allow_patterns))
        if name != "us/toy":
            raise FileNotFoundError("404 Client Error.\n\nRepository Not Found")
        return str(snapshot)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_bundle_is_linked_without_its_bytes(asked: list[Any], tmp_path: Path) -> None:
    directory = bundle_of("us/toy", "v1")
    assert directory == tmp_path / "cache" / "fastmmoe" / "hub" / "us--toy" / COMMIT
    assert asked == [("us/toy", "v1", None)]
    assert open_bundle(directory).manifest.model == "toy"
    assert not (directory / ".gitattributes").exists()
    assert (directory / "vision.onnx").samefile(tmp_path / "blobs" / "vision.onnx")
    (directory / "vision.onnx").unlink()
    assert bundle_of("us/toy") == directory and open_bundle(directory)


def test_where_links_are_not_possible_files_are_copied(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(hub.os, "link", refuse)
    directory = bundle_of("us/toy")
    assert (directory / "vision.onnx").stat().st_nlink == 1 and open_bundle(directory)


def test_a_directory_is_itself(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "us" / "toy").mkdir(parents=True)
    for name in ("us/toy", "toy", tmp_path, "a/b/c", "./toy"):
        assert bundle_of(name) == Path(name)
        assert checkpoint_of(str(name)) == Path(name)
    assert asked == []


def test_a_checkpoint_is_where_the_hub_keeps_it(asked: list[Any], tmp_path: Path) -> None:
    assert checkpoint_of("us/toy", "main") == tmp_path / "snapshots" / COMMIT
    assert asked == [("us/toy", "main", list(CHECKPOINT_FILES))]


def test_what_the_hub_does_not_have(asked: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as error:
        bundle_of("us/other")
    assert str(error.value) == (
        "us/other: no such directory, and not to be had from huggingface.co: 404 Client Error. Repository Not Found"
    )


def test_without_the_package(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match=r"^us/toy: no such directory; .*: pip install huggingface_hub$"):
        bundle_of("us/toy")


def test_without_a_home(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cache_folder", lambda: None)
    with pytest.raises(InvalidRequest, match=r"^us/toy: there is no home folder to keep it in: set XDG_CACHE_HOME$"):
        bundle_of("us/toy")
