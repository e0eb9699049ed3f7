# SPDX-License-Identifier: Apache-2.0
"""Memory of a device: blocks that are laid out in parts, pinned memory that arrays pass through."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmmoe.runtime.backends.elements import BFLOAT16, tensor_bytes
from fastmmoe.runtime.backends.tensorrt.device import Address, Device, Event, Stream
from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.types import Array

ALIGNMENT = 256
"""What TensorRT asks of the address of a tensor."""


def aligned(size: int) -> int:
    """The least multiple of the alignment that holds so many bytes; a tensor without elements has an address too."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def host_view(address: Address, size: int) -> Array:
    """Host memory as bytes, uint8 [size]."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


@dataclass(frozen=True)
class Layout:
    """Parts of a block, one after the other, each aligned. offsets: by name. size: of the whole."""

    offsets: Mapping[str, int]
    size: int

    @staticmethod
    def of(sizes: Mapping[str, int]) -> Layout:
        """Parts of so many bytes."""
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += aligned(size)
        return Layout(offsets, max(end, ALIGNMENT))

    def at(self, address: Address) -> dict[str, Address]:
        """The parts of the block at this address."""
        return {name: address + offset for name, offset in self.offsets.items()}


class Staging:
    """Pinned memory in two halves: the host fills one while copies out of the other run.

    Args:
        size: the most bytes of one upload.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device, self.size = device, aligned(size)
        self._address = device.allocate_pinned(2 * self.size)
        self._half = 0
        self._events: list[Event] = []
        self._is_pending = [False, False]

    def upload(self, arrays: Mapping[str, Array], layout: Layout, target: Address, stream: Stream) -> None:
        """Queue one copy of arrays, laid out, to a block."""
        if layout.size > self.size:
            raise RunFailed(f"an upload of {layout.size} bytes: expected at most {self.size}, by the engines' limits")
        self._half ^= 1
        if not self._events:
            self._events = [self._device.make_event(), self._device.make_event()]
        if self._is_pending[self._half]:
            self._device.wait_on_host(self._events[self._half])
        start = self._address + self._half * self.size
        for name, array in arrays.items():
            if array.size:
                host_view(start + layout.offsets[name], array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        with self._device.marked(self._events[self._half], stream):
            self._device.copy(target, start, layout.size, stream)
        self._is_pending[self._half] = True

    def close(self) -> None:
        """Give it back; its copies have run."""
        for event in self._events:
            self._device.destroy_event(event)
        self._device.free_pinned(self._address)


class Results:
    """Pinned memory that outputs are copied to.

    Args:
        size: bytes for all outputs of one call.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device, self._size = device, aligned(size)
        self._event = device.make_event()
        try:
            self._address = device.allocate_pinned(self._size)
        except RunFailed:
            device.destroy_event(self._event)
            raise

    def fetch(self, tensors: Iterable[tuple[str, Address, Sequence[int], str]], stream: Stream) -> dict[str, Array]:
        """Copies of (name, address, shape, dtype), once the stream has come here."""
        tensors = list(tensors)
        layout = Layout.of({name: tensor_bytes(shape, dtype) for name, _, shape, dtype in tensors})
        if layout.size > self._size:
            raise RunFailed(f"outputs of {layout.size} bytes: expected at most {self._size}, by the engines' limits")
        host = layout.at(self._address)
        for name, address, shape, dtype in tensors:
            if size := tensor_bytes(shape, dtype):
                self._device.copy(host[name], address, size, stream)
        self._device.record(self._event, stream)
        self._device.wait_on_host(self._event)
        found = {}
        for name, _, shape, dtype in tensors:
            values = host_view(host[name], tensor_bytes(shape, dtype)).copy()
            found[name] = values.view(np.uint16 if dtype == BFLOAT16 else dtype).reshape(shape)
        return found

    def close(self) -> None:
        """Give it back; its copies have run."""
        self._device.destroy_event(self._event)
        self._device.free_pinned(self._address)
