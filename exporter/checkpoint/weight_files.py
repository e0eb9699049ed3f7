# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: which of them hold a checkpoint's weights, their headers, and what the headers must say."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmmoe.exporter.checkpoint.config_reader import shown
from fastmmoe.exporter.checkpoint.files import absent, check_start, damaged, parse_object, read_bytes
from fastmmoe.exporter.checkpoint.tensor_names import problem
from fastmmoe.runtime.errors import UnsupportedModel

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
EXPECTED_DTYPES = f"expected {', '.join(DTYPE_BYTES)}"
_MAX_HEADER_BYTES = 100_000_000
_LONGEST_FILE_NAME = 255


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, as the header has it.

    Attributes:
        dtype: in safetensors' spelling ("F32", "F16", "BF16", ...).
        state: of the file, when its header was read.
        offset: of the first byte, from the start of the file.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    state: FileState
    offset: int


@dataclass(frozen=True)
class FileState:
    """What tells a file from one that came later or was changed; times are nanoseconds.

    `changed_ns` changes whenever anything does, and nobody can set it back.
    """

    device: int
    inode: int
    size: int
    written_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """The state that the system gives."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class Header:
    file: Path
    state: FileState
    raw: bytes
    tensors: dict[str, TensorInfo]


def identity(config_bytes: bytes, headers: list[Header]) -> str:
    digest = hashlib.sha256()
    parts = [config_bytes]
    for header in sorted(headers, key=lambda header: header.file.name):
        parts += [header.file.name.encode(), str(header.state.size).encode(), header.raw]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def read_weights(model_dir: Path) -> list[Header]:
    """The headers of the files that hold the weights; every tensor name is in exactly one of them."""
    single, index = model_dir / WEIGHTS_FILE, model_dir / INDEX_FILE
    has_single = single.is_file() or single.is_symlink()
    if not index.is_file():
        if not has_single:
            raise UnsupportedModel(absent(single, _no_weights(model_dir)))
        return [_read_header(single)]
    sharded = _read_shards(model_dir)
    if not has_single or any(header.file == single for header in sharded):
        return sharded
    header = _read_header(single)
    in_shards = {n: (t.shape, t.dtype) for shard in sharded for n, t in shard.tensors.items()}
    in_single = {n: (t.shape, t.dtype) for n, t in header.tensors.items()}
    if in_single != in_shards:
        differing = sorted(n for n in in_single.keys() | in_shards.keys() if in_single.get(n) != in_shards.get(n))
        raise UnsupportedModel(
            f"{model_dir}: {WEIGHTS_FILE} and the shards of {INDEX_FILE} contradict each other: "
            f"{problem('differing', {'': differing})}; remove the one that is not meant"
        )
    return [header]


def _no_weights(model_dir: Path) -> str:
    names = sorted(path.name for path in model_dir.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    quantised = [name for name in names if name.endswith((".gguf", ".ggml"))]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    found = "no weights in it"
    if shards:
        found = f"{len(shards)} .safetensors file(s) ({shards[0]}), but the index is missing: download it"
    elif quantised:
        found = f"quantised weights only ({quantised[0]}), which are not read: download the original checkpoint"
    elif pickles:
        found = f"pickle weights only ({pickles[0]}), not opened because they can run code: convert them to safetensors"
    return f"{model_dir}: {found}; expected {WEIGHTS_FILE} or {INDEX_FILE}"


def _read_shards(model_dir: Path) -> list[Header]:
    index = model_dir / INDEX_FILE
    weight_map = parse_object(read_bytes(index), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, f"weight_map is {shown(weight_map)}, expected an object of tensor name: file name")
    for name, file in weight_map.items():
        is_bare = isinstance(file, str) and file not in {"", ".", ".."} and not re.search(r"[/\\]", file)
        if not is_bare or not file.isprintable() or len(file.encode()) > _LONGEST_FILE_NAME:
            raise UnsupportedModel(
                f"{index}: tensor {shown(name)} is in {shown(file)}, expected the bare name of a file in the same "
                "directory"
            )
    headers = [_read_header(model_dir / file) for file in sorted(set(weight_map.values()))]
    _check_index(index, weight_map, headers)
    return headers


def _check_index(index: Path, weight_map: dict[str, str], headers: list[Header]) -> None:
    """Raise UnsupportedModel unless the index and the shards agree on where each tensor is."""
    found: dict[str, list[str]] = {}
    for header in headers:
        for name in header.tensors:
            found.setdefault(name, []).append(header.file.name)
    absent: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if file not in found.get(name, []):
            absent.setdefault(f" of {file}", []).append(name)
    unlisted: dict[str, list[str]] = {}
    duplicate: dict[str, list[str]] = {}
    for name, files in found.items():
        if len(files) > 1:
            duplicate.setdefault(f" in {' and '.join(files)}", []).append(name)
        elif name not in weight_map:
            unlisted.setdefault(f" of {files[0]}", []).append(name)
    problems = [
        problem("listed but not in the shard", absent),
        problem("in a shard but not listed", unlisted),
        problem("in more than one shard", duplicate),
    ]
    if any(problems):
        raise UnsupportedModel(
            f"{index}: does not fit the shards: {'; '.join(p for p in problems if p)}; download the checkpoint again"
        )


def _read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file: 8 bytes little-endian length n, n bytes JSON, then the data."""
    if not path.is_file():
        raise UnsupportedModel(absent(path, f"{path}: no such file, though {INDEX_FILE} names it; download it"))
    state = FileState.of(path.stat())
    size = state.size
    prefix = read_bytes(path, 8)
    check_start(path, prefix)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > _MAX_HEADER_BYTES or 8 + length > size:
        raise damaged(path, f"{size} bytes, with a header of {length} bytes")
    raw = read_bytes(path, length, offset=8)
    entries = parse_object(raw, path, "header")
    entries.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in entries.items():
        tensors[name], span = _tensor_info(path, state, 8 + length, name, entry)
        spans.append(span)
    _check_spans(path, spans, size - 8 - length)
    return Header(path, state, raw, tensors)


def _tensor_info(path: Path, state: FileState, data: int, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """The header's entry of one tensor, checked, and its first and last-plus-one byte within the data."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if not isinstance(dtype, str) or not dtype.isprintable() or shape is None or span is None or len(span) != 2:
        raise damaged(path, f"header entry {shown(name)} is {shown(entry)}, expected dtype, shape and data_offsets")
    size = span[1] - span[0]
    expected = math.prod(shape) * DTYPE_BYTES.get(dtype, 0)
    if dtype in DTYPE_BYTES and size != expected:
        what = f"{dtype} {shown(list(shape))}"
        raise damaged(path, f"tensor {shown(name)} has {size} bytes, expected {expected} for {what}")
    return TensorInfo(shape, dtype, path, state, data + span[0]), (span[0], span[1])


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A JSON list of non-negative 64-bit integers as a tuple, None for anything else."""
    return tuple(value) if isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value) else None


def _check_spans(path: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Raise UnsupportedModel unless the spans cover the data exactly: no gap, no overlap, nothing cut off."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position or end < begin:
            raise damaged(path, f"a tensor's data is at {begin} to {end}, expected to start at {position}")
        position = end
    if position != data_bytes:
        raise damaged(path, f"{data_bytes} bytes of data, the header says {position}")
