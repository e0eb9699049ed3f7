# SPDX-License-Identifier: Apache-2.0
"""Writes a model's parameters into open files: by the system where bytes stay what they are, else in blocks.

No parameter is ever whole in memory. Blocks go through two buffers that are used again, as fresh memory costs more time
than the copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.open_file import write_all
from fastmmoe.exporter.checkpoint.regions import Region, regions
from fastmmoe.exporter.model import Model

_COPY_BYTES = 64 << 20
"""Of one call to the system: progress is told between them."""
_BLOCK_BYTES = 4 << 20
_STRIDED_BYTES = 40 << 20
"""Values that change places are read in greater blocks, an expert of GPT-OSS at once, for they are scattered."""
_RUN = 64
"""Values of a row that is transposed at a time: as many cache lines of the source are in use at once."""


@dataclass(frozen=True)
class _Place:
    """Where a parameter goes.

    Attributes:
        shape: of its pieces, one after the other along the first axis.
        axes: the order in which they are stored.
        dtypes: that values pass through; the last one is stored.
        file: descriptor, and the offset of the first byte.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    file: tuple[int, int]

    def stored(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Values, one for each axis, in the order of the stored axes."""
        return tuple(values[axis] for axis in self.axes)

    @property
    def is_in_order(self) -> bool:
        return self.axes == tuple(range(len(self.axes)))


class WeightStream:
    """Parameters of one graph on their way into a file; not for several threads.

    Args:
        model: whose parameters, in their exported dtypes.
        graph: in which the names are.
    """

    def __init__(self, model: Model, graph: str) -> None:
        self._model, self._graph = model, graph
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]

    def write(
        self, name: str, order: tuple[int, ...] | None, target: int, at: int, report: Callable[[int], None]
    ) -> None:
        """Write a parameter: the bytes that `Model.load` would give.

        Args:
            order: its axes in the order in which they are stored; None = as they are.
            target, at: descriptor of the file, and the offset of the first byte.
            report: is told the number of bytes that were written, now and then.
        Raises:
            UnsupportedModel: the checkpoint's file changed meanwhile. OSError: they cannot be written.
        """
        model, full = self._model, f"{self._graph}.{name}"
        if model.is_computed(full):
            values = model.load(full)
            values = values if order is None else values.permute(order)
            _write_box(values.contiguous(), (0,) * values.ndim, tuple(values.shape), target, at)
            report(values.nbytes)
            return
        rounding = model.rounding(full)
        if rounding is not None:
            assert order is None, f"{name}: experts are stored as they are"
            for expert in self.experts(name):
                rounded = rounding.round(expert.float().numpy()).data.cast("B")
                write_all(target, rounded, at)
                at += len(rounded)
                report(len(rounded))
            return
        pieces = regions(model.checkpoint, model.rules[full])
        shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
        assert order is None or shape == model.rules[full].parameter_shape, f"{name}: has no axes to permute"
        axes = tuple(range(len(shape))) if order is None else order
        place = _Place(shape, axes, model.conversions(full), (target, at))
        row = 0
        for piece in pieces:
            self._write_piece(piece, row, place, report)
            row += piece.shape[0]

    def experts(self, name: str) -> Iterator[torch.Tensor]:
        """The experts of a stack, [rows, columns] each, as the checkpoint has them; each is a tensor of its own."""
        rule = self._model.rules[f"{self._graph}.{name}"]
        pieces = regions(self._model.checkpoint, rule)
        count, *shape = rule.parameter_shape
        each = sum(piece.shape[0] for piece in pieces) // count
        parts = [part for piece in pieces for part in _cut(piece, each)]
        of_expert = len(parts) // count
        for e in range(count):
            found = [self._values(part) for part in parts[e * of_expert : (e + 1) * of_expert]]
            yield torch.cat(found).reshape(shape)

    def rows(self, name: str, count: int) -> Iterator[torch.Tensor]:
        """The rows of a matrix as the checkpoint has them, so many at a time [count, columns], fewer at the end."""
        held: list[torch.Tensor] = []
        for piece in regions(self._model.checkpoint, self._model.rules[f"{self._graph}.{name}"]):
            for part in _cut(piece, count):
                held.append(self._values(part))
                whole = torch.cat(held) if len(held) > 1 else held[0]
                while len(whole) >= count:
                    yield whole[:count]
                    whole = whole[count:]
                held = [whole] if len(whole) else []
        if held:
            yield held[0]

    def _values(self, part: Region) -> torch.Tensor:
        values = torch.empty(part.shape, dtype=part.dtype)
        for start, block in part.blocks(_STRIDED_BYTES):
            box = tuple(slice(i, i + n) for i, n in zip(start, block.shape, strict=True))
            _copy(values[box], block.read(self._buffer(0, block.span)))
        return values

    def _write_piece(self, piece: Region, row: int, place: _Place, report: Callable[[int], None]) -> None:
        sizes = (piece.dtype.itemsize, *(dtype.itemsize for dtype in place.dtypes))
        is_straight = place.is_in_order and piece.is_contiguous
        if is_straight and set(place.dtypes) <= {piece.dtype}:
            target, at = place.file
            at += row * math.prod(place.shape[1:]) * sizes[0]
            for done in range(0, piece.span, _COPY_BYTES):
                count = min(_COPY_BYTES, piece.span - done)
                piece.file.copy(piece.offset + done, count, target, at + done)
                report(count)
            return
        limit = _BLOCK_BYTES if is_straight else _STRIDED_BYTES
        for start, block in piece.blocks(limit * sizes[0] // max(sizes)):
            values = block.read(self._buffer(0, block.span))
            for dtype in place.dtypes[:-1]:
                values = values.to(dtype)
            values = values.permute(place.axes)
            last = place.dtypes[-1] if place.dtypes else piece.dtype
            corner = place.stored((start[0] + row, *start[1:]))
            for part in _parts(tuple(values.shape), max(_BLOCK_BYTES // last.itemsize, 1)):
                some = values[part]
                out = self._buffer(1, some.numel() * last.itemsize).view(last).view(some.shape)
                _copy(out, some)
                begin = tuple(at + cut.start for at, cut in zip(corner, part, strict=True))
                _write_box(out, begin, place.stored(place.shape), *place.file)
                report(out.nbytes)

    def _buffer(self, which: int, size: int) -> torch.Tensor:
        if len(self._buffers[which]) < size:
            # The old one goes before the new one comes.
            self._buffers[which] = torch.empty(0, dtype=torch.uint8)
            self._buffers[which] = torch.empty(size, dtype=torch.uint8)
        return self._buffers[which][:size]


def _cut(piece: Region, rows: int) -> Iterator[Region]:
    """A piece in parts of at most so many rows."""
    total = piece.shape[0]
    return (piece.narrow(0, start, min(rows, total - start)) for start in range(0, total, rows))


def _parts(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """An array of this shape in contiguous parts of at most so many values, or of one row."""
    axis = len(shape) - 1
    while axis > 0 and math.prod(shape[axis:]) <= most:
        axis -= 1
    step = max(most // math.prod(shape[axis + 1 :]), 1)
    for outer in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            cut = slice(start, min(start + step, shape[axis]))
            yield (*(slice(i, i + 1) for i in outer), cut, *(slice(0, n) for n in shape[axis + 1 :]))


def _copy(out: torch.Tensor, values: torch.Tensor) -> None:
    """Copy values of any strides, converted, into a contiguous tensor; a transposition stays within the cache."""
    if values.ndim < 2 or values.stride(-1) == 1:
        out.copy_(values)
        return
    for start in range(0, values.shape[-1], _RUN):
        out[..., start : start + _RUN].copy_(values[..., start : start + _RUN])


def _write_box(values: torch.Tensor, start: tuple[int, ...], shape: tuple[int, ...], target: int, at: int) -> None:
    """Write contiguous values to their place in a stored array of this shape, run by run."""
    strides = [math.prod(shape[axis + 1 :]) * values.dtype.itemsize for axis in range(len(shape))]
    at += sum(i * stride for i, stride in zip(start, strides, strict=True))
    # What follows an axis that is stored whole stands in one run with it.
    inner = len(shape)
    while inner > 0 and values.shape[inner - 1] == shape[inner - 1]:
        inner -= 1
    outer = values.shape[: max(inner - 1, 0)]
    data = values.reshape(-1).view(torch.uint8).numpy().data
    run = len(data) // math.prod(outer)
    for i, index in enumerate(np.ndindex(*outer)):
        place = at + sum(k * stride for k, stride in zip(index, strides, strict=False))
        write_all(target, data[i * run : (i + 1) * run], place)
