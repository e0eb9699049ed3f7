# SPDX-License-Identifier: Apache-2.0
"""Parts of stored tensors as places in a file, and how they are read in blocks of bounded size.

A rule's view of a tensor is taken on a tensor without values: its strides say where the values are in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from fastmmoe.exporter.checkpoint.open_file import OpenFile, torch_dtype
from fastmmoe.exporter.checkpoint.reader import Checkpoint, WeightRule


@dataclass(frozen=True)
class Region:
    """Values of a file in some order.

    Attributes:
        offset: of the first value, in bytes.
        shape, strides: as torch's, strides in values.
    """

    file: OpenFile
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Bytes from the first value to the end of the last one."""
        if self.size == 0:
            return 0
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the values stand in the file one after the other."""
        step = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != step:
                return self.size == 0
            step *= n
        return True

    def narrow(self, axis: int, start: int, count: int) -> Region:
        """The part of `count` from `start` on along an axis."""
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        return replace(self, shape=shape, offset=self.offset + start * self.strides[axis] * self.dtype.itemsize)

    def blocks(self, most: int) -> Iterator[tuple[tuple[int, ...], Region]]:
        """Where each block begins along the axes, and the block; its span is at most `most` bytes where it can be.

        Cut along the axis of the greatest stride, so that each byte is read once.
        """
        axes = [axis for axis, n in enumerate(self.shape) if n > 1]
        if self.span <= most or not axes:
            if self.size:
                yield (0,) * len(self.shape), self
            return
        axis = max(axes, key=lambda axis: self.strides[axis])
        n = self.shape[axis]
        step = max(1, min(most // (self.strides[axis] * self.dtype.itemsize), -(-n // 2)))
        for start in range(0, n, step):
            for inner, block in self.narrow(axis, start, min(step, n - start)).blocks(most):
                yield (*inner[:axis], inner[axis] + start, *inner[axis + 1 :]), block

    def read(self, buffer: torch.Tensor) -> torch.Tensor:
        """The values, as a view of the buffer, which the file's bytes are read into.

        Args:
            buffer: uint8, of at least `span` bytes.
        Raises:
            UnsupportedModel: the file ends before.
        """
        part = buffer[: self.span]
        self.file.read(part.numpy().data, self.offset)
        return part.view(self.dtype).as_strided(self.shape, self.strides)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch look at values and convert them with one thread: it does so at the rate of memory.

    More of them wait for each other wherever other work is done, and take ten times the processor's time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def whole(checkpoint: Checkpoint, name: str) -> Region:
    """All values of a stored tensor, along one axis.

    Raises:
        UnsupportedModel: as `Checkpoint.open`.
    """
    info = checkpoint.info(name)
    return Region(checkpoint.open(info), torch_dtype(info.dtype), info.offset, (math.prod(info.shape),), (1,))


def regions(checkpoint: Checkpoint, rule: WeightRule) -> list[Region]:
    """The pieces of a parameter, in its order.

    Raises:
        UnsupportedModel: as `Checkpoint.open`.
    """
    found: list[Region] = []
    for name, _ in rule.sources:
        info = checkpoint.info(name)
        file, dtype = checkpoint.open(info), torch_dtype(info.dtype)
        for piece in rule.pieces([torch.empty(info.shape, dtype=dtype, device="meta")]):
            offset = info.offset + int(piece.storage_offset()) * dtype.itemsize
            found.append(Region(file, dtype, offset, tuple(piece.shape), piece.stride()))
    return found
