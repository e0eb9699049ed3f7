# SPDX-License-Identifier: Apache-2.0
"""Kinds of damage to a directory of JSON, safetensors, ONNX and raw data files, drawn from a seeded generator."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = (0, -1, 1, 2**31, 2**63, 1e308, 0.5, float("nan"), float("inf"))
JSON_VALUES: tuple[Any, ...] = (*NUMBERS, None, True, False, "", "x", "../x", [], {}, [1], "9" * 5000)
HEADER_LENGTH_BYTES = 8
DEPTH = 100_000
ELSEWHERE_MODEL = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"

Damage = Callable[[random.Random, Path], str]
"""Changes one file of a directory and says how."""


def pick(rng: random.Random, directory: Path, *suffixes: str) -> Path:
    """One of the directory's files with one of these endings, or any file where none is named."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and (not suffixes or p.suffix in suffixes))
    return rng.choice(files)


# ---- bytes


def flip_bits(rng: random.Random, directory: Path) -> str:
    """1 to 8 bits anywhere in a file."""
    path = pick(rng, directory)
    data = bytearray(path.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 8)))] if data else []
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{path.name}: bits at {places}"


def change_length(rng: random.Random, directory: Path) -> str:
    """A file cut off, or with bytes too many, at its end or inside."""
    path = pick(rng, directory)
    data = path.read_bytes()
    place = rng.randrange(len(data) + 1)
    count = rng.choice((1, 7, 4096))
    kind = rng.choice(("cut", "removed", "added", "appended", "emptied"))
    changed = {
        "cut": data[:place],
        "removed": data[:place] + data[place + count :],
        "added": data[:place] + rng.randbytes(count) + data[place:],
        "appended": data + rng.randbytes(count),
        "emptied": b"",
    }[kind]
    path.write_bytes(changed)
    return f"{path.name}: {kind} at {place} of {len(data)}"


def overwrite_range(rng: random.Random, directory: Path) -> str:
    """A stretch of a file replaced by zeros, by noise or by another stretch: a torn write, a bad sector."""
    path = pick(rng, directory)
    data = bytearray(path.read_bytes())
    count = min(len(data), rng.choice((16, 512, 4096, len(data))))
    place = rng.randrange(len(data) - count + 1)
    kind = rng.choice(("zeros", "noise", "copy"))
    other = rng.randrange(len(data) - count + 1)
    piece = {"zeros": bytes(count), "noise": rng.randbytes(count), "copy": bytes(data[other : other + count])}[kind]
    data[place : place + count] = piece
    path.write_bytes(data)
    return f"{path.name}: {count} bytes of {kind} at {place}"


# ---- files


def replace_file(rng: random.Random, directory: Path) -> str:
    """A file gone, or something else in its place."""
    path = pick(rng, directory)
    kind = rng.choice(("gone", "folder", "dangling link", "FIFO", "LFS pointer", "another file", "unreadable link"))
    other = pick(rng, directory).read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(directory / "blobs" / "missing")
    elif kind == "unreadable link":
        path.symlink_to(path.name)
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "LFS pointer":
        path.write_bytes(ELSEWHERE_MODEL)
    elif kind == "another file":
        path.write_bytes(other)
    return f"{path.name}: {kind}"


def add_file(rng: random.Random, directory: Path) -> str:
    """A file that does not belong there, with a name that some reader looks for."""
    names = (
        "model.safetensors.index.json",
        "extra.bin",
        "engines.json",
        "vision.engine",
        "added_tokens.json",
        "a b.json",
    )
    path = directory / rng.choice([name for name in names if not (directory / name).exists()])
    path.write_bytes(rng.choice((b"", b"{}", b'{"weight_map": {}}', rng.randbytes(100))))
    return f"{path.name}: added"


# ---- JSON


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value; of long lists and objects some alone."""
    if isinstance(value, dict):
        members: list[tuple[Any, Any]] = list(value.items())[:200]
    elif isinstance(value, list):
        members = list(enumerate(value))[:4]
    else:
        return []
    return [p for key, inner in members for p in [(*path, key), *_places(inner, (*path, key))]]


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def _changed_value(rng: random.Random, value: Any) -> Any:
    """Another value in its place: of the kinds that trouble readers, or near to it."""
    near: list[Any] = []
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        near = [value + 1, value - 1, value * 2, -value, float(value), str(value)]
    elif isinstance(value, str):
        near = [value + "x", value[:-1], value.upper(), [value]]
    elif isinstance(value, bool):
        near = [not value]
    elif isinstance(value, list):
        near = [value[:-1], value * 2, value[::-1], value * 1000 if len(value) < 10 else value]
    return rng.choice([*near, *near, *JSON_VALUES])


def change_json(rng: random.Random, directory: Path) -> str:
    """A value of a JSON file changed, removed, renamed or moved."""
    path = pick(rng, directory, ".json")
    values = json.loads(path.read_bytes())
    place = rng.choice(_places(values))
    parent, key = _parent(values, place), place[-1]
    kind = rng.choice(("changed", "changed", "changed", "changed", "removed", "renamed"))
    old = parent[key]
    if kind == "changed":
        parent[key] = _changed_value(rng, old)
    else:
        del parent[key]
        if kind == "renamed" and isinstance(parent, dict):
            parent[f"{key}_"] = old
    path.write_text(json.dumps(values), encoding="utf-8")
    return f"{path.name}: {'.'.join(map(str, place))} {kind}"


def twist_json(rng: random.Random, directory: Path) -> str:
    """A JSON file with a key twice, nested too deep, of another type, in another encoding or with trailing text."""
    path = pick(rng, directory, ".json")
    text = path.read_text(encoding="utf-8")
    kind = rng.choice(("key twice", "deep", "array", "UTF-16", "BOM", "trailing text", "lone surrogate"))
    key = next(iter(json.loads(text)), "x")
    deep = "[" * DEPTH + "]" * DEPTH
    changed = {
        "key twice": text.replace("{", f'{{"{key}": 0, ', 1),
        "deep": text.replace("{", f'{{"x": {deep}, ', 1),
        "array": f"[{text}]",
        "UTF-16": text,
        "BOM": "\ufeff" + text,
        "trailing text": text + "\n{}",
        "lone surrogate": text.replace("{", '{"\\ud800": "\\udfff", ', 1),
    }[kind]
    path.write_text(changed, encoding="utf-16" if kind == "UTF-16" else "utf-8")
    return f"{path.name}: {kind}"


# ---- safetensors


def change_header(rng: random.Random, directory: Path) -> str:
    """A safetensors file whose header lies: shapes, types, offsets, names, its own length."""
    path = pick(rng, directory, ".safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
    header = json.loads(data[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
    name = rng.choice([n for n in header if n != "__metadata__"])
    entry = header[name]
    kind = rng.choice(("shape", "dtype", "offsets", "gone", "renamed", "length"))
    if kind == "shape":
        entry["shape"] = rng.choice((entry["shape"][::-1], [], [0], [-1], [2**62, 4], [*entry["shape"], 1], "x"))
    elif kind == "dtype":
        entry["dtype"] = rng.choice(("F64", "I32", "F16", "F8_E4M3", "BF16", "bfloat16", 3, None))
    elif kind == "offsets":
        entry["data_offsets"] = rng.choice(([0, 4], [4, 0], [0, 2**62], [-4, 4], [], [0], None))
    elif kind in ("gone", "renamed"):
        del header[name]
        if kind == "renamed":
            header[f"{name}.x"] = entry
    raw = json.dumps(header).encode()
    size = rng.choice((0, 2**40, 2**63, length + 1)) if kind == "length" else len(raw)
    path.write_bytes(size.to_bytes(HEADER_LENGTH_BYTES, "little") + raw + data[HEADER_LENGTH_BYTES + length :])
    return f"{path.name}: {name} {kind}"


def change_weights(rng: random.Random, directory: Path) -> str:
    """A safetensors file of which one value is not finite, or a finite other one."""
    import torch
    from safetensors.torch import load_file, save_file

    path = pick(rng, directory, ".safetensors")
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name].clone()
    value = rng.choice((float("nan"), float("inf"), float("-inf"), 0.25))
    tensor.view(-1)[rng.randrange(tensor.numel())] = torch.tensor(value, dtype=tensor.dtype)
    tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{path.name}: {name} holds {value}"


# ---- bundles


def change_unseen(rng: random.Random, directory: Path) -> str:
    """Bits of a file changed behind the back of its size and modification time."""
    path = pick(rng, directory)
    before = path.stat()
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"{path.name}: bit at {place}, time put back"


def exchange_parts(rng: random.Random, directory: Path) -> str:
    """Two graphs in each other's place, as after copying by hand."""
    first, second = rng.sample(["vision", "embedding", "language_model"], 2)
    for suffix in (".onnx", ".data"):
        a, b = directory / f"{first}{suffix}", directory / f"{second}{suffix}"
        if a.exists() and b.exists():
            a.rename(directory / "swap")
            b.rename(a)
            (directory / "swap").rename(b)
    return f"{first} and {second} exchanged"


def copy_of(base: Path, directory: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(base, directory, copy_function=shutil.copyfile)
    return directory


CHECKPOINT_DAMAGES: dict[str, tuple[int, Damage]] = {
    "JSON value changed, removed, renamed": (12, change_json),
    "JSON key twice, deep, encoding, trailing text": (3, twist_json),
    "safetensors header": (4, change_header),
    "weight not finite, or another one": (1, change_weights),
    "bits flipped": (3, flip_bits),
    "cut off, bytes removed or added": (3, change_length),
    "stretch overwritten": (2, overwrite_range),
    "file gone or replaced": (3, replace_file),
    "file added": (1, add_file),
}
"""Kind -> (share of the trials, damage)."""

BUNDLE_DAMAGES: dict[str, tuple[int, Damage]] = {
    "JSON value changed, removed, renamed": (6, change_json),
    "JSON key twice, deep, encoding, trailing text": (2, twist_json),
    "bits flipped": (5, flip_bits),
    "cut off, bytes removed or added": (3, change_length),
    "stretch overwritten": (3, overwrite_range),
    "file gone or replaced": (3, replace_file),
    "file added": (1, add_file),
    "bit flipped after a first answer, time put back": (2, change_unseen),
    "graphs exchanged": (1, exchange_parts),
}
