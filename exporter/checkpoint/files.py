# SPDX-License-Identifier: Apache-2.0
"""The directory of a checkpoint and its JSON files: what is there, what only seems to be, and what is in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.strict_json import unique_keys

CONFIG_FILE = "config.json"
SMALL_FILES = (
    CONFIG_FILE,
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""What an export may read beside the weights; where one is only seemingly there, nothing is read in its place."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.")
DOWNLOAD_CACHE = Path(".cache/huggingface/download")
_LFS_POINTER = b"version "


def check_directory(path: Path) -> None:
    """Raise UnsupportedModel unless this is the directory of a checkpoint whose small files are what they seem."""
    if not path.exists():
        hint = "give the directory of a checkpoint"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            hint = (
                "if it is the id of a published model, download it first "
                f"(for example: hf download {path} --local-dir DIR) and give DIR: nothing is downloaded here"
            )
        raise UnsupportedModel(f"{path}: no such directory; {hint}")
    if not path.is_dir():
        raise UnsupportedModel(f"{path}: not a directory; give the directory that holds {CONFIG_FILE} and the weights")
    names = sorted(entry.name for entry in path.iterdir())
    adapters = [name for name in names if name.startswith(ADAPTER_FILES)]
    if adapters:
        raise UnsupportedModel(
            f"{path}: {adapters[0]} is an adapter (LoRA) for another checkpoint, which is not added here: load both "
            "with peft, call merge_and_unload() and save the result with save_pretrained in a directory of its own; if "
            f"the weights here have it already, remove {' and '.join(adapters)}"
        )
    if not (path / CONFIG_FILE).exists():
        raise UnsupportedModel(
            absent(path / CONFIG_FILE, f"{path}: no {CONFIG_FILE} in it; give the directory of a checkpoint")
        )
    for name in SMALL_FILES:
        if name in names:
            check_small_file(path / name)


def check_small_file(path: Path) -> None:
    """Raise UnsupportedModel where the file is not there, empty, or stands for another one."""
    if not path.exists():
        raise UnsupportedModel(absent(path, f"{path}: no such file"))
    check_start(path, read_bytes(path, len(_LFS_POINTER)))


def check_start(path: Path, start: bytes) -> None:
    """Raise UnsupportedModel for a file that is empty or stands for another one."""
    if not start:
        raise UnsupportedModel(f"{path}: an empty file; download it again")
    if start == _LFS_POINTER:
        raise UnsupportedModel(f"{path}: a Git LFS pointer, not the file; fetch it with: git lfs pull")


def absent(path: Path, otherwise: str) -> str:
    """Why a file is not there, in one line: what an interrupted download leaves, or `otherwise`."""
    if path.is_symlink():
        return (
            f"{path}: a link to {path.readlink()}, which is not there: the download was interrupted or its cache was "
            "cleared; run it again"
        )
    directory = path.parent
    partial = sorted([*directory.glob("*.incomplete"), *(directory / DOWNLOAD_CACHE).glob("*.incomplete")])
    if partial:
        return f"{path}: no such file, and {partial[0].name} shows an interrupted download; run it again"
    return otherwise


def read_bytes(path: Path, count: int = -1, offset: int = 0) -> bytes:
    """`count` bytes of a file (all by default) from `offset`.

    Raises:
        UnsupportedModel: it cannot be read, or is no regular file: a pipe has no end.
    """
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a pipe, socket or device"
        raise UnsupportedModel(f"{path}: {kind}, expected a regular file; download it again")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read ({error.strerror})") from error


def damaged(path: Path, what: str) -> UnsupportedModel:
    """The error for a file that is not what its writer wrote."""
    return UnsupportedModel(f"{path}: damaged or incomplete: {what}; download it again")


def parse_object(data: bytes, path: Path, what: str = "file") -> dict[str, Any]:
    """The JSON object in `data`.

    A key that is given twice is refused, since one of the values would get lost; so is half of a surrogate pair, which
    is no text: neither a tokenizer nor a file of the bundle takes it.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise damaged(path, f"the {what} is not valid JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise damaged(path, f"the {what} holds a JSON {type(value).__name__}, expected an object")
    return value
