# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint directory (config.json + safetensors), one tensor at a time, and accounts for every tensor.

Opening reads config.json and the files' headers; the weights stay on disk until `Checkpoint.load`. Nothing is
unpickled, no code of the checkpoint runs and nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_EXPECTED_DTYPES = f"expected {', '.join(_DTYPE_BYTES)}"
_MAX_HEADER_BYTES = 100_000_000
_MAX_LISTED = 5


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: dtype in safetensors' spelling ("F32", "F16", "BF16", ...)."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def _only_source(tensors: list[torch.Tensor]) -> torch.Tensor:
    (tensor,) = tensors
    return tensor


@dataclass(frozen=True)
class WeightRule:
    """How one parameter of our module is made.

    Args:
        sources: (checkpoint tensor name, expected shape) of each tensor it is made from.
        build: makes the parameter from the loaded sources, in order; default: the single source as it is.
    """

    sources: tuple[tuple[str, tuple[int, ...]], ...]
    build: Callable[[list[torch.Tensor]], torch.Tensor] = _only_source


class Checkpoint:
    """A checkpoint directory, open for reading.

    The weights are model.safetensors, or the shards named by model.safetensors.index.json. Where both are there,
    the single file is read (as transformers does) if it lists the same tensors, shapes and dtypes as the shards;
    otherwise the directory contradicts itself and is refused. Safetensors files that the index does not name are
    not read. Shards and the single file may be symbolic links.

    Attributes:
        path: the directory.
        config: the parsed config.json.
        tensors: every tensor by name, in the order of the files.
        identity: SHA-256 (hexadecimal) over the bytes of config.json and, for each weight file in the order of the
            names, its name, its size and its header (names, shapes, dtypes, offsets). It is cheap because the
            weights themselves are not read: checkpoints that differ in weight values alone share it.

    Raises:
        UnsupportedModel: the directory, config.json or a weight file is missing, damaged or contradictory.
    """

    def __init__(self, model_dir: Path) -> None:
        self.path = Path(model_dir)
        _check_directory(self.path)
        config_bytes = _read_bytes(self.path / CONFIG_FILE)
        self.config: dict[str, Any] = _parse_object(config_bytes, self.path / CONFIG_FILE)
        headers = _read_weights(self.path)
        self.tensors: dict[str, TensorInfo] = {n: t for header in headers for n, t in header.tensors.items()}
        self.identity = _identity(config_bytes, headers)
        self._stored_names: dict[str, str] = {}
        self._open_files: dict[Path, Any] = {}

    def rename_prefixes(self, prefixes: dict[str, str]) -> None:
        """Give the tensors whose names start with a key of `prefixes` that key's value instead."""
        for name in list(self.tensors):
            for old, new in prefixes.items():
                if name.startswith(old):
                    renamed = new + name.removeprefix(old)
                    self.tensors[renamed] = self.tensors.pop(name)
                    self._stored_names[renamed] = name
                    break

    def load(self, name: str) -> torch.Tensor:
        """The tensor `name` with its stored shape and dtype (float32, float16 or bfloat16).

        The file is memory-mapped: only this tensor's pages are read, and only when its values are.

        Raises:
            UnsupportedModel: there is no such tensor, its dtype is another one, or the file changed meanwhile.
        """
        from safetensors import SafetensorError, safe_open

        info = self.tensors.get(name)
        if info is None:
            raise UnsupportedModel(f"{self.path}: no tensor {name!r} among its {len(self.tensors)} tensors")
        if info.dtype not in _DTYPE_BYTES:
            raise UnsupportedModel(f"{self.path}: tensor {name!r} is {info.dtype}; {_EXPECTED_DTYPES}")
        try:
            if info.file not in self._open_files:
                self._open_files[info.file] = safe_open(info.file, framework="pt", device="cpu")
            return self._open_files[info.file].get_tensor(self._stored_names.get(name, name))
        except (SafetensorError, OSError) as error:
            raise UnsupportedModel(
                f"{info.file}: tensor {name!r} cannot be read any more ({error}); "
                "the file changed after it was opened: start again"
            ) from error


def build(checkpoint: Checkpoint, rule: WeightRule) -> torch.Tensor:
    """Load the sources of `rule` and make its parameter. Call `account` first: shapes are not checked again."""
    return rule.build([checkpoint.load(name) for name, _ in rule.sources])


def account(checkpoint: Checkpoint, rules: dict[str, WeightRule], drop: tuple[str, ...]) -> None:
    """Check that the checkpoint's tensors are exactly those the rules use.

    Args:
        rules: parameter name -> rule. One tensor may serve several rules.
        drop: patterns (as in fnmatch, case-sensitive) of tensors that may be there and are not used, for example
            "vision.attn_pool.*".
    Raises:
        UnsupportedModel: tensors are missing, unexpected, of another shape or of a dtype that is not read; one
            message on one line names them all, runs of numbers as "experts.{0..63}", with the count of each group.
    """
    sources = [source for rule in rules.values() for source in rule.sources]
    names = {name for name, _ in sources}
    missing = [name for name in sorted(names) if name not in checkpoint.tensors]
    unused = [name for name in checkpoint.tensors if name not in names]
    unexpected = [name for name in unused if not any(fnmatchcase(name, pattern) for pattern in drop)]
    shapes: dict[str, list[str]] = {}
    dtypes: dict[str, list[str]] = {}
    for name, expected in dict.fromkeys(sources):
        info = checkpoint.tensors.get(name)
        if info is None:
            continue
        if info.shape != expected:
            shapes.setdefault(f" is {list(info.shape)}, expected {list(expected)}", []).append(name)
        if info.dtype not in _DTYPE_BYTES:
            dtypes.setdefault(f" is {info.dtype}", []).append(name)
    problems = [
        _problem("missing", {"": missing}),
        _problem("unexpected", {"": unexpected}),
        _problem("of another shape", shapes),
        _problem(f"of a dtype that is not read ({_EXPECTED_DTYPES})", dtypes),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise UnsupportedModel(
            f"{checkpoint.path}: the weights do not fit {CONFIG_FILE}: {'; '.join(found)}; "
            "check that both belong to the same model and were downloaded completely"
        )


def _problem(what: str, groups: dict[str, list[str]]) -> str:
    """One clause of the accounting message ("" if there is nothing to tell); keys of `groups` follow the names."""
    count = sum(len(names) for names in groups.values())
    if count == 0:
        return ""
    entries = [pattern + suffix for suffix, names in groups.items() for pattern in abbreviate(names)]
    more = f", and {len(entries) - _MAX_LISTED} more such groups" if len(entries) > _MAX_LISTED else ""
    return f"{count} tensor{'s' if count > 1 else ''} {what}: {', '.join(entries[:_MAX_LISTED])}{more}"


def abbreviate(names: Iterable[str]) -> list[str]:
    """Join dotted names that differ in numbers only: a.0.w, a.1.w, a.2.w -> a.{0..2}.w. Exact: nothing else matches."""
    groups: set[tuple[Any, ...]] = {
        tuple((int(p),) if p.isdecimal() and p == str(int(p)) else p for p in name.split(".")) for name in names
    }
    # From the right, so that experts are joined within their layer before layers are joined with each other.
    for position in range(max((len(parts) for parts in groups), default=0) - 1, -1, -1):
        numbers: dict[tuple[Any, ...], set[int]] = {}
        for parts in [p for p in groups if len(p) > position and isinstance(p[position], tuple)]:
            groups.remove(parts)
            rest = (parts[:position], parts[position + 1 :])
            numbers.setdefault(rest, set()).update(parts[position])
        for (before, after), joined in numbers.items():
            groups.add((*before, tuple(sorted(joined)), *after))
    return sorted(".".join(p if isinstance(p, str) else _number_set(p) for p in parts) for parts in groups)


def _number_set(numbers: tuple[int, ...]) -> str:
    """(4,) -> "4"; (0, 1, 2, 5) -> "{0..2,5}"."""
    runs = []
    for _, members in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in members]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return str(numbers[0]) if len(numbers) == 1 else "{" + ",".join(runs) + "}"


# ---- the directory and its JSON files


def _check_directory(path: Path) -> None:
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
    if not (path / CONFIG_FILE).is_file():
        raise UnsupportedModel(f"{path}: no {CONFIG_FILE} in it; give the directory of a checkpoint")


def _read_bytes(path: Path, count: int = -1, offset: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read ({error.strerror})") from error


def _damaged(path: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{path}: damaged or incomplete: {what}; download it again")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} occurs twice")
        result[key] = value
    return result


def _parse_object(data: bytes, path: Path, what: str = "file") -> dict[str, Any]:
    """The JSON object in `data`; a key that occurs twice is refused, since one of the values would get lost."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _damaged(path, f"the {what} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"the {what} holds a JSON {type(value).__name__}, expected an object")
    return value


# ---- the weight files


@dataclass(frozen=True)
class _Header:
    file: Path
    size: int
    raw: bytes
    tensors: dict[str, TensorInfo]


def _identity(config_bytes: bytes, headers: list[_Header]) -> str:
    digest = hashlib.sha256()
    parts = [config_bytes]
    for header in sorted(headers, key=lambda header: header.file.name):
        parts += [header.file.name.encode(), str(header.size).encode(), header.raw]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _read_weights(model_dir: Path) -> list[_Header]:
    """The headers of the files that hold the weights; every tensor name is in exactly one of them."""
    single, index = model_dir / WEIGHTS_FILE, model_dir / INDEX_FILE
    if not index.is_file():
        if not single.is_file():
            raise UnsupportedModel(_no_weights(model_dir))
        return [_read_header(single)]
    sharded = _read_shards(model_dir)
    if not single.is_file() or any(header.file == single for header in sharded):
        return sharded
    header = _read_header(single)
    in_shards = {n: (t.shape, t.dtype) for shard in sharded for n, t in shard.tensors.items()}
    in_single = {n: (t.shape, t.dtype) for n, t in header.tensors.items()}
    if in_single != in_shards:
        differing = sorted(n for n in in_single.keys() | in_shards.keys() if in_single.get(n) != in_shards.get(n))
        raise UnsupportedModel(
            f"{model_dir}: {WEIGHTS_FILE} and the shards of {INDEX_FILE} contradict each other: "
            f"{_problem('differing', {'': differing})}; remove the one that is not meant"
        )
    return [header]


def _no_weights(model_dir: Path) -> str:
    names = sorted(path.name for path in model_dir.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    found = "no weights in it"
    if shards:
        found = f"{len(shards)} .safetensors file(s) ({shards[0]}), but the index is missing: download it"
    elif pickles:
        found = f"pickle weights only ({pickles[0]}), not opened because they can run code: convert them to safetensors"
    return f"{model_dir}: {found}; expected {WEIGHTS_FILE} or {INDEX_FILE}"


def _read_shards(model_dir: Path) -> list[_Header]:
    index = model_dir / INDEX_FILE
    weight_map = _parse_object(_read_bytes(index), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, f"weight_map is {weight_map!r:.60}, expected an object of tensor name: file name")
    for name, file in weight_map.items():
        if not isinstance(file, str) or file in {"", ".", ".."} or re.search(r"[/\\\0]", file):
            raise UnsupportedModel(
                f"{index}: tensor {name!r} is in {file!r}, expected the bare name of a file in the same directory"
            )
    headers = [_read_header(model_dir / file) for file in sorted(set(weight_map.values()))]
    _check_index(index, weight_map, headers)
    return headers


def _check_index(index: Path, weight_map: dict[str, str], headers: list[_Header]) -> None:
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
        _problem("listed but not in the shard", absent),
        _problem("in a shard but not listed", unlisted),
        _problem("in more than one shard", duplicate),
    ]
    if any(problems):
        raise UnsupportedModel(
            f"{index}: does not fit the shards: {'; '.join(p for p in problems if p)}; download the checkpoint again"
        )


def _read_header(path: Path) -> _Header:
    """Read and check the header of a safetensors file: 8 bytes little-endian length n, n bytes JSON, then the data."""
    if not path.is_file():
        raise UnsupportedModel(f"{path}: no such file, though {INDEX_FILE} names it; download it")
    size = path.stat().st_size
    prefix = _read_bytes(path, 8)
    if prefix == b"version ":
        raise UnsupportedModel(f"{path}: a Git LFS pointer, not the weights; fetch them with: git lfs pull")
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > _MAX_HEADER_BYTES or 8 + length > size:
        raise _damaged(path, f"{size} bytes, with a header of {length} bytes")
    raw = _read_bytes(path, length, offset=8)
    entries = _parse_object(raw, path, "header")
    entries.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in entries.items():
        tensors[name], span = _tensor_info(path, name, entry)
        spans.append(span)
    _check_spans(path, spans, size - 8 - length)
    return _Header(path, size, raw, tensors)


def _tensor_info(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """The header's entry of one tensor, checked, and its first and last-plus-one byte within the data."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise _damaged(path, f"header entry {name!r} is {entry!s:.100}, expected dtype, shape and data_offsets")
    size = span[1] - span[0]
    expected = math.prod(shape) * _DTYPE_BYTES.get(dtype, 0)
    if dtype in _DTYPE_BYTES and size != expected:
        raise _damaged(path, f"tensor {name!r} has {size} bytes, expected {expected} for {dtype} {list(shape)}")
    return TensorInfo(shape, dtype, path), (span[0], span[1])


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A JSON list of non-negative integers as a tuple, None for anything else."""
    return tuple(value) if isinstance(value, list) and all(type(v) is int and v >= 0 for v in value) else None


def _check_spans(path: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Raise UnsupportedModel unless the spans cover the data exactly: no gap, no overlap, nothing cut off."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position or end < begin:
            raise _damaged(path, f"a tensor's data is at {begin} to {end}, expected to start at {position}")
        position = end
    if position != data_bytes:
        raise _damaged(path, f"{data_bytes} bytes of data, the header says {position}")
