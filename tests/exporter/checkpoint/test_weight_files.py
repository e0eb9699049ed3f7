# SPDX-License-Identifier: Apache-2.0
"""Weight files: interrupted downloads, pointers, and files that are damaged at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import refusal

INDEX = "model.safetensors.index.json"
TENSORS = {f"layers.{i}.weight": torch.arange(12.0).view(3, 4) + i for i in range(4)}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of two shards with a tokenizer.json."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (directory / name).write_text("{}")
    files = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(TENSORS)}
    for file in set(files.values()):
        save_file({name: TENSORS[name] for name in TENSORS if files[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return directory


# ---- what interrupted downloads and clones without LFS leave


@pytest.mark.parametrize("name", ["a.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", INDEX])
def test_a_link_to_nothing(sharded: Path, name: str) -> None:
    (sharded / name).unlink(missing_ok=True)
    (sharded / name).symlink_to("../blobs/0a1b")
    message = refusal(Checkpoint, sharded)
    assert f"{name}: a link to ../blobs/0a1b, which is not there: the download was interrupted" in message


def test_the_single_file_is_a_link_to_nothing(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / "model.safetensors").symlink_to("../blobs/0a1b")
    assert "model.safetensors: a link to ../blobs/0a1b, which is not there" in refusal(Checkpoint, sharded)


@pytest.mark.parametrize("folder", [".", ".cache/huggingface/download"])
def test_a_shard_is_being_downloaded(sharded: Path, folder: str) -> None:
    (sharded / "b.safetensors").unlink()
    (sharded / folder).mkdir(parents=True, exist_ok=True)
    (sharded / folder / "0a1b.incomplete").write_bytes(b"")
    assert "b.safetensors: no such file, and 0a1b.incomplete shows an interrupted download" in refusal(
        Checkpoint, sharded
    )


@pytest.mark.parametrize("name", ["a.safetensors", "config.json", "tokenizer.json", "generation_config.json", INDEX])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "a Git LFS pointer, not the file"),
    ],
)
def test_empty_files_and_pointers(sharded: Path, name: str, content: bytes, expected: str) -> None:
    (sharded / name).write_bytes(content)
    assert f"{sharded / name}: {expected}" in refusal(Checkpoint, sharded)


def test_gguf_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "quantised weights only (model-Q4_K_M.gguf), which are not read" in refusal(Checkpoint, tmp_path)


# ---- what damaged files say stays one short line


HOSTILE = ["x" * 300, "a\nb", "a\0b", "\ud800", "\u2028", "x" * 100_000]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_files(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": {text: text}}))
    message = refusal(Checkpoint, sharded)
    # Half of a surrogate pair is no text, so the file is no JSON.
    is_text = text != "\ud800"
    assert ("expected the bare name of a file in the same directory" if is_text else "is not valid JSON") in message
    assert message.isprintable() and len(message) < 1000


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 8]},
        {"dtype": "?", "shape": ["?"], "data_offsets": [0, 8]},
        {"dtype": "?", "shape": [3], "data_offsets": [0, 8]},
    ],
)
def test_headers(sharded: Path, text: str, entry: dict[str, Any]) -> None:
    """The name is `text`, and so is what is "?"."""
    header = json.dumps({text: entry}).replace('"?"', json.dumps(text)).encode()
    (sharded / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    message = refusal(Checkpoint, sharded)
    assert message.isprintable() and len(message) < 1500


# ---- random damage


def flip(data: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(end)] = rng.randrange(256)


def cut(data: bytearray, rng: random.Random, end: int) -> None:
    del data[rng.randrange(end) :]


def repeat(data: bytearray, rng: random.Random, end: int) -> None:
    start = rng.randrange(end)
    data[start:start] = data[start : start + rng.randint(1, 40)]


def digits(data: bytearray, rng: random.Random, end: int) -> None:
    """Another number in place of one: sizes and offsets that lie."""
    places = [i for i in range(8, end) if chr(data[i]).isdigit()] or [0]
    data[rng.choice(places)] = ord(rng.choice("0123456789-.e"))


DAMAGES: tuple[Callable[[bytearray, random.Random, int], None], ...] = (flip, cut, repeat, digits)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers_and_indices(sharded: Path, seed: int) -> None:
    """50 damages a seed: one line, or the very tensors that were written; the data itself is not damaged."""
    rng = random.Random(seed)
    originals = {name: (sharded / name).read_bytes() for name in ("a.safetensors", INDEX)}
    refused = 0
    for _ in range(50):
        name = rng.choice(list(originals))
        data = bytearray(originals[name])
        length = len(data) if name == INDEX else 8 + int.from_bytes(data[:8], "little")
        rng.choice(DAMAGES)(data, rng, length)
        (sharded / name).write_bytes(data)
        try:
            checkpoint = Checkpoint(sharded)
            loaded = {tensor: checkpoint.load(tensor) for tensor in checkpoint.tensors}
        except UnsupportedModel as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            refused += 1
        else:
            written = list(TENSORS.values())
            assert len(loaded) == len(written)
            values = [tensor.reshape(-1).tolist() for tensor in loaded.values()]
            assert sorted(values) == sorted(tensor.reshape(-1).tolist() for tensor in written)
        (sharded / name).write_bytes(originals[name])
    assert refused > 25
    assert load_file(sharded / "a.safetensors")
