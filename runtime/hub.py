# SPDX-License-Identifier: Apache-2.0
"""Bundles and checkpoints by their names on huggingface.co, where huggingface_hub is installed and somebody asks."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from fastmmoe.runtime.bundle.manifest import MANIFEST, load_manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import cache_folder

_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja")


def bundle_of(name: str | Path, revision: str | None = None) -> Path:
    """The bundle in a directory, or of a repository, which is downloaded where it is not there yet.

    A bundle has no links and no files but its own, so what was downloaded is linked, without its bytes, into
    `$XDG_CACHE_HOME/fastmmoe/hub`.

    Raises:
        InvalidRequest: there is no such directory, huggingface_hub is missing, or the Hub cannot give it.
        BundleMismatch: the repository holds no bundle.
    """
    if not _is_id(name):
        return Path(name)
    snapshot = _download(str(name), revision, None)
    folder = cache_folder()
    if folder is None:
        raise InvalidRequest(f"{name}: there is no home folder to keep it in: set XDG_CACHE_HOME")
    directory = folder / "hub" / str(name).replace("/", "--") / snapshot.name
    directory.mkdir(parents=True, exist_ok=True)
    # The manifest comes last: what an interrupt leaves is no bundle, and the next call completes it.
    for file in (*load_manifest(snapshot).files, MANIFEST):
        if not (directory / file).exists():
            _link((snapshot / file).resolve(), directory / file)
    return directory


def checkpoint_of(name: str, revision: str | None = None) -> Path:
    """The checkpoint in a directory, or of a repository, likewise: its safetensors and JSON files.

    Raises:
        InvalidRequest: huggingface_hub is missing, or the Hub cannot give it.
    """
    return _download(name, revision, CHECKPOINT_FILES) if _is_id(name) else Path(name)


def _is_id(name: str | Path) -> bool:
    """Whether it can be a repository's name, and is no path of this machine."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None and not Path(name).exists()


def _download(name: str, revision: str | None, files: tuple[str, ...] | None) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InvalidRequest(
            f"{name}: no such directory; if it is a repository on huggingface.co: pip install huggingface_hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=None if files is None else list(files)))
    # Every error of the Hub is one of the two.
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"{name}: no such directory, and not to be had from huggingface.co: {reason}") from error


def _link(source: Path, target: Path) -> None:
    """A second name of the file, or a copy of it on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
