# SPDX-License-Identifier: Apache-2.0
"""Writes a random checkpoint: one value after the other, as fast as the disk, in the memory of some blocks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from checkpoint_tools.published import CHECKPOINTS, Cut, Published, cut_config
from checkpoint_tools.tensors import RandomValues, Shape, tensors_of
from checkpoint_tools.tokenizer import write_tokenizer
from fastmmoe.exporter.checkpoint.weight_files import INDEX_FILE, WEIGHTS_FILE
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import size_text

SEED = 20251117
SHARD_BYTES = 5_000_000_000
"""What transformers makes of a checkpoint by default."""
BYTES = 2
"""Of a bfloat16 number."""

Wanted = Callable[[str, Shape], bool]


def every(name: str, shape: Shape) -> bool:
    """All tensors get values."""
    return True


def none(name: str, shape: Shape) -> bool:
    """No tensor gets values: they are holes, which read as zeros and take no room."""
    return False


def write_checkpoint(
    directory: Path,
    published: Published,
    cut: Cut,
    *,
    seed: int = SEED,
    shard_bytes: int = SHARD_BYTES,
    wanted: Wanted = every,
) -> dict[str, int]:
    """Write config.json, weights in shards with their index, a tokenizer and the processor's files.

    Args:
        directory: new or empty, so that no weights of another run stay beside these.
        wanted: which tensors get values; the others are holes.
    Returns:
        Bytes of tensors by weight file.
    Raises:
        InvalidRequest: the directory holds something, there is no room, or the cut does not fit the model.
    """
    config, specials = cut_config(published, cut)
    tensors = tensors_of(config)
    values = RandomValues(tensors, seed)
    if directory.exists() and any(directory.iterdir()):
        raise InvalidRequest(f"{directory} is not empty; give a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    _check_room(directory, sum(_size(shape) for name, shape in tensors.items() if wanted(name, shape)))
    shards = split(tensors, shard_bytes)
    for file, of_file in shards.items():
        _write_file(directory / file, of_file, values, wanted)
    sizes = {file: sum(map(_size, of_file.values())) for file, of_file in shards.items()}
    if WEIGHTS_FILE not in shards:
        weight_map = {name: file for file, of_file in shards.items() for name in of_file}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file in (CHECKPOINTS / published.files).iterdir() if published.files else ():
        shutil.copyfile(file, directory / file.name)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(directory, specials)
    return sizes


def split(tensors: dict[str, Shape], shard_bytes: int) -> dict[str, dict[str, Shape]]:
    """File name -> its tensors, in order, none larger than `shard_bytes` but for a tensor that is itself."""
    shards: list[dict[str, Shape]] = [{}]
    size = 0
    for name, shape in tensors.items():
        if shards[-1] and size + _size(shape) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += _size(shape)
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _size(shape: Shape) -> int:
    return BYTES * math.prod(shape)


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InvalidRequest(f"{directory}: the weights take {size_text(needed)}, the disk has {size_text(free)} free")


def _write_file(path: Path, tensors: dict[str, Shape], values: RandomValues, wanted: Wanted) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    entries: dict[str, object] = {}
    for name, shape in tensors.items():
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + _size(shape)]}
        end += _size(shape)
    text = json.dumps(header | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            if wanted(name, shape):
                for run in values.runs(name):
                    file.write(run.data)
            else:
                file.seek(_size(shape), 1)
        file.truncate(8 + len(text) + end)
