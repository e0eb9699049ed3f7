# SPDX-License-Identifier: Apache-2.0
"""Looks at every value that an export will use before anything is traced: finite, and within the exported dtype."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.open_file import torch_dtype
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.checkpoint.regions import one_thread, whole
from fastmmoe.exporter.model import EXPERT_WEIGHTS, Model
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.weight_stream import WeightStream
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.types import Say

# A chunk is read into one buffer, which stays in the processor's cache, and reduced.
_CHUNK = 1 << 20
_QUIET_BYTES = 2e9
_PROGRESS_SECONDS = 30.0


def check_weights(model: Model, say: Say) -> None:
    """Read every used tensor once, a chunk at a time; its range decides.

    Args:
        say: is called with a line for each half minute of a large checkpoint.
    Raises:
        UnsupportedModel: a weight file changed; a value is not finite or overflows the dtype that its tensor
            is exported in; the float16 scale of packed experts would overflow.
    """
    checkpoint = model.checkpoint
    dtypes: dict[str, set[torch.dtype]] = {}
    for name, rule in model.rules.items():
        for source, _ in rule.sources:
            dtypes.setdefault(source, set()).update(_stored_dtypes(model, name))
    ranges: dict[str, tuple[float, float]] = {}
    progress = _progress(sum(checkpoint.size_bytes(source) for source in dtypes), say)
    with one_thread():
        for source, exported in dtypes.items():
            ranges[source] = _check_finite(model, source)
            for dtype in exported:
                _check_dtype(model, source, ranges[source], dtype)
            progress(checkpoint.size_bytes(source))
    if model.precision.packing is not None:
        _check_scales(model, model.precision.packing, ranges)
    _check_linear_scales(model, ranges)


def _stored_dtypes(model: Model, name: str) -> list[torch.dtype]:
    """The floating-point type that a parameter is stored in; none of integers."""
    linear = model.linear_packing(name)
    if linear is not None:
        return [torch.bfloat16] if linear.weight_format == "bf16" else []
    is_packed = model.precision.packing is not None and name.endswith(EXPERT_WEIGHTS)
    return [] if is_packed else [model.parameter_dtype(name)]


def _check_linear_scales(model: Model, ranges: dict[str, tuple[float, float]]) -> None:
    """The greatest scale that a linear layer's range could need must fit float16: no trained weight comes near."""
    for name, rule in model.rules.items():
        linear = model.linear_packing(name)
        if linear is None or linear.weight_format == "bf16":
            continue
        packing = Packing(linear.weight_format, linear.group_size, linear.zero_points)
        for source, _ in rule.sources:
            if not packing.fits(*ranges[source]):
                least, greatest = ranges[source]
                option = "--vision" if name.startswith("vision.") else "--dense"
                raise UnsupportedModel(
                    f"{model.checkpoint.path}: {source!r} may need a scale beyond what float16 holds as "
                    f"{linear.weight_format} (values from {least:g} to {greatest:g}): export with {option} bf16 or "
                    "float"
                )


def _progress(total_bytes: int, say: Say) -> Callable[[int], None]:
    """A function that counts bytes and reports them now and then, where there are many."""
    done, last = 0, time.monotonic()
    if total_bytes > _QUIET_BYTES:
        say(f"reading {total_bytes / 1e9:.1f} GB of weights once: every value must be finite and fit its dtype")

    def add(count: int) -> None:
        nonlocal done, last
        done += count
        if total_bytes > _QUIET_BYTES and time.monotonic() - last > _PROGRESS_SECONDS:
            last = time.monotonic()
            say(f"read {done / 1e9:.1f} of {total_bytes / 1e9:.1f} GB")

    return add


def _chunks(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, torch.Tensor]]:
    """The values of a tensor in parts, and the number of values before each; a part is gone with the next one."""
    region = whole(checkpoint, name)
    buffer = torch.empty(min(region.span, _CHUNK), dtype=torch.uint8)
    return ((start, block.read(buffer)) for (start,), block in region.blocks(_CHUNK))


def _check_finite(model: Model, name: str) -> tuple[float, float]:
    """The least and the greatest value of a tensor, (0, 0) of an empty one."""
    extremes = [chunk.aminmax() for _, chunk in _chunks(model.checkpoint, name)]
    if not extremes:
        return 0.0, 0.0
    least = torch.stack([e.min for e in extremes]).min().item()
    greatest = torch.stack([e.max for e in extremes]).max().item()
    if not (np.isfinite(least) and np.isfinite(greatest)):
        what = _describe(model.checkpoint, name, lambda chunk: ~chunk.isfinite())
        raise UnsupportedModel(
            f"{model.checkpoint.path}: tensor {name!r} {_shape(model, name)} has {what}: expected finite numbers; the "
            "file is damaged or its training failed: take another copy of the checkpoint"
        )
    return least, greatest


def _check_dtype(model: Model, name: str, extremes: tuple[float, float], dtype: torch.dtype) -> None:
    stored = torch_dtype(model.checkpoint.info(name).dtype)
    if torch.tensor(extremes, dtype=torch.float64).to(stored).to(dtype).isfinite().all():
        return
    what = _describe(model.checkpoint, name, lambda chunk: ~chunk.to(dtype).isfinite())
    short = str(dtype).removeprefix("torch.")
    raise UnsupportedModel(
        f"{model.checkpoint.path}: tensor {name!r} {_shape(model, name)} has {what}, beyond what {short} holds "
        f"({torch.finfo(dtype).max:g}): export with a --dtype of greater range "
        f"({'bf16 or fp32' if dtype == torch.float16 else 'fp32'}, where the target takes it)"
    )


def _shape(model: Model, name: str) -> list[int]:
    return list(model.checkpoint.info(name).shape)


def _describe(checkpoint: Checkpoint, name: str, is_bad: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Count of the bad values, the first of them and where it is."""
    count, first, value = 0, -1, 0.0
    for start, chunk in _chunks(checkpoint, name):
        found = is_bad(chunk).nonzero()
        if first < 0 and len(found):
            first, value = start + int(found[0]), chunk[int(found[0])].item()
        count += len(found)
    where = [int(axis) for axis in np.unravel_index(first, checkpoint.info(name).shape)]
    return f"{value:g} at {where}" if count == 1 else f"{count} values like {value:g} at {where}"


def _check_scales(model: Model, packing: Packing, ranges: dict[str, tuple[float, float]]) -> None:
    """Integers have float16 scales; whole tensors are looked at only where the range does not say that all fit."""
    for name, rule in model.rules.items():
        sources = [source for source, _ in rule.sources]
        if not name.endswith(EXPERT_WEIGHTS) or all(packing.fits(*ranges[source]) for source in sources):
            continue
        graph, _, own = name.partition(".")
        for e, expert in enumerate(WeightStream(model, graph).experts(own)):
            scale = packing.quantise(expert.float().numpy()).scale
            if not np.isfinite(scale).all():
                least, greatest = min(ranges[s][0] for s in sources), max(ranges[s][1] for s in sources)
                raise UnsupportedModel(
                    f"{model.checkpoint.path}: expert {e} of {sources[0]!r}{' and others' if sources[1:] else ''} "
                    f"needs a scale beyond what float16 holds as {packing.weight_format} (values from {least:g} to "
                    f"{greatest:g}): export with --experts float"
                )
