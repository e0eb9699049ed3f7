# SPDX-License-Identifier: Apache-2.0
"""Looks at every value that an export will use before anything is traced: finite, and within the exported dtype."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.reader import build
from fastmmoe.exporter.model import EXPERT_WEIGHTS, Model
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.types import Say

# A chunk is read, reduced and forgotten: its pages are the file's own.
_CHUNK = 1 << 24
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
        is_packed = model.precision.packing is not None and name.endswith(EXPERT_WEIGHTS)
        for source, _ in rule.sources:
            dtypes.setdefault(source, set()).update([] if is_packed else [model.parameter_dtype(name)])
    ranges: dict[str, tuple[float, float]] = {}
    progress = _progress(sum(checkpoint.size_bytes(source) for source in dtypes), say)
    for source, exported in dtypes.items():
        tensor = checkpoint.load(source)
        ranges[source] = _check_finite(model, source, tensor)
        for dtype in exported:
            _check_dtype(model, source, tensor, ranges[source], dtype)
        progress(checkpoint.size_bytes(source))
    if model.precision.packing is not None:
        _check_scales(model, model.precision.packing, ranges)


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


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, flat.numel(), _CHUNK))


def _check_finite(model: Model, name: str, tensor: torch.Tensor) -> tuple[float, float]:
    """The least and the greatest value of a tensor, (0, 0) of an empty one."""
    extremes = [chunk.aminmax() for chunk in _chunks(tensor)]
    if not extremes:
        return 0.0, 0.0
    least = torch.stack([e.min for e in extremes]).min().item()
    greatest = torch.stack([e.max for e in extremes]).max().item()
    if not (np.isfinite(least) and np.isfinite(greatest)):
        what = _describe(tensor, lambda chunk: ~chunk.isfinite())
        raise UnsupportedModel(
            f"{model.checkpoint.path}: tensor {name!r} {list(tensor.shape)} has {what}: expected finite numbers; the "
            "file is damaged or its training failed: take another copy of the checkpoint"
        )
    return least, greatest


def _check_dtype(
    model: Model, name: str, tensor: torch.Tensor, extremes: tuple[float, float], dtype: torch.dtype
) -> None:
    if torch.tensor(extremes, dtype=torch.float64).to(tensor.dtype).to(dtype).isfinite().all():
        return
    what = _describe(tensor, lambda chunk: ~chunk.to(dtype).isfinite())
    short = str(dtype).removeprefix("torch.")
    raise UnsupportedModel(
        f"{model.checkpoint.path}: tensor {name!r} {list(tensor.shape)} has {what}, beyond what {short} holds "
        f"({torch.finfo(dtype).max:g}): export with a --dtype of greater range "
        f"({'bf16 or fp32' if dtype == torch.float16 else 'fp32'}, where the target takes it)"
    )


def _describe(tensor: torch.Tensor, is_bad: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Count of the bad values, the first of them and where it is."""
    count, first = 0, -1
    for i, chunk in enumerate(_chunks(tensor)):
        found = is_bad(chunk).nonzero()
        if first < 0 and len(found):
            first = i * _CHUNK + int(found[0])
        count += len(found)
    where = [int(axis) for axis in np.unravel_index(first, tensor.shape)]
    value = tensor.reshape(-1)[first].item()
    return f"{value:g} at {where}" if count == 1 else f"{count} values like {value:g} at {where}"


def _check_scales(model: Model, packing: Packing, ranges: dict[str, tuple[float, float]]) -> None:
    """Integers have float16 scales; whole tensors are looked at only where the range does not say that all fit."""
    for name, rule in model.rules.items():
        sources = [source for source, _ in rule.sources]
        if not name.endswith(EXPERT_WEIGHTS) or all(packing.fits(*ranges[source]) for source in sources):
            continue
        for e, expert in enumerate(build(model.checkpoint, rule)):
            scale = packing.quantise(expert.float().numpy()).scale
            if not np.isfinite(scale).all():
                least, greatest = min(ranges[s][0] for s in sources), max(ranges[s][1] for s in sources)
                raise UnsupportedModel(
                    f"{model.checkpoint.path}: expert {e} of {sources[0]!r}{' and others' if sources[1:] else ''} "
                    f"needs a scale beyond what float16 holds as {packing.weight_format} (values from {least:g} to "
                    f"{greatest:g}): export with --experts float"
                )
