# SPDX-License-Identifier: Apache-2.0
"""Key-value caches on the device, each with what its decode steps need, and a pool of those that are free."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fastmmoe.runtime.backends.elements import item_size, tensor_bytes
from fastmmoe.runtime.backends.tensorrt.device import Address, Device, Event, Graph, Stream
from fastmmoe.runtime.backends.tensorrt.memory import Layout, aligned, host_view
from fastmmoe.runtime.backends.tensorrt.pool import Pool
from fastmmoe.runtime.types import Array

MOST_IDLE = 4
"""Caches that are kept for requests to come; their graphs are kept with them."""
SLOTS = 2
"""Steps whose tokens the host has not read yet."""


@dataclass(eq=False)
class Storage:
    """Caches of some sequences, and the state of their decode steps: what a captured graph has the addresses of.

    Attributes:
        tensors: name -> (shape, dtype, address) of each cache.
        state: address of the inputs of a decode step, which stay on the device.
        following: address of what the step finds for the next one, laid out as the first part of `state`.
        ring: pinned memory for the tokens of `SLOTS` steps, `ring_bytes` each.
        tokens: the same as arrays, int32 [B] each.
        graphs: captured decode steps, by how many sequences they extend.
        reading: held while the host waits for tokens and reads them; nothing is freed meanwhile.
    """

    key: tuple[int, tuple[int, ...]]
    tensors: dict[str, tuple[tuple[int, ...], str, Address]]
    block: Address
    bytes: int
    state: Address
    following: Address
    ring: Address
    ring_bytes: int
    tokens: list[Array]
    read: list[Event]
    graphs: dict[int, Graph] = field(default_factory=dict)
    reading: threading.Lock = field(default_factory=threading.Lock)

    def addresses(self) -> dict[str, Address]:
        """Of the caches, by input."""
        return {name: address for name, (_, _, address) in self.tensors.items()}


class DeviceCaches:
    """A backend's caches of one batch. When nobody has them any more, their memory serves another.

    Attributes:
        storage: the memory.
    """

    def __init__(self, pool: CachePool, storage: Storage) -> None:
        self.storage = storage
        # At the end of the process there is nobody to serve.
        weakref.finalize(self, pool.give, storage).atexit = False


class CachePool:
    """Makes caches, and keeps a few that are free.

    All work on caches is queued in one stream, so memory may be used again at once, and freed when the stream is done.

    Args:
        state: layout of the inputs of a decode step of the most sequences.
        following: bytes of the first part of it, which a step finds for the next.
    """

    def __init__(self, device: Device, stream: Stream, state: Layout, following: int) -> None:
        self._device, self._stream, self._state, self._following = device, stream, state, following
        self._pool = Pool[Storage](MOST_IDLE, self._free)

    def take(self, sequences: int, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Storage:
        """Memory for caches of these shapes and dtypes.

        Raises:
            OutOfDeviceMemory: there is not enough, even without what is kept.
        """
        key = (sequences, tuple(shape[-2] if len(shape) > 2 else shape[-1] for shape, _ in shapes.values()))
        return self._pool.take(lambda storage: storage.key == key, lambda: self._make(key, sequences, shapes))

    def give(self, storage: Storage) -> None:
        """Keep caches for another; see `Pool.give`."""
        self._pool.give(storage)

    def close(self) -> None:
        """Free everything; see `Pool.close`."""
        self._pool.close()

    def _make(
        self, key: tuple[int, tuple[int, ...]], sequences: int, shapes: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> Storage:
        layout = Layout.of({name: tensor_bytes(shape, dtype) for name, (shape, dtype) in shapes.items()})
        size = layout.size + self._state.size + self._following
        ring_bytes, device = aligned(4 * sequences), self._device
        with contextlib.ExitStack() as stack:
            block = device.allocate(size)
            stack.callback(device.free, block)
            ring = device.allocate_pinned(SLOTS * ring_bytes)
            stack.callback(device.free_pinned, ring)
            read = []
            for _ in range(SLOTS):
                read.append(device.make_event())
                stack.callback(device.destroy_event, read[-1])
            stack.pop_all()
        places = layout.at(block)
        return Storage(
            key,
            {name: (shape, dtype, places[name]) for name, (shape, dtype) in shapes.items()},
            block,
            size,
            state=block + layout.size,
            following=block + layout.size + self._state.size,
            ring=ring,
            ring_bytes=ring_bytes,
            tokens=[host_view(ring + slot * ring_bytes, 4 * sequences).view(np.int32) for slot in range(SLOTS)],
            read=read,
        )

    def _free(self, storage: Storage) -> None:
        self._device.synchronize(self._stream)
        with storage.reading:
            for graph in storage.graphs.values():
                self._device.destroy_graph(graph)
            for event in storage.read:
                self._device.destroy_event(event)
            self._device.free_pinned(storage.ring)
            self._device.free(storage.block)


def copy_caches(device: Device, target: Storage, source: Storage, stream: Stream) -> None:
    """Queue copies of all rows of smaller caches to the beginning of greater ones."""
    for name, (shape, dtype, address) in source.tensors.items():
        greater, _, place = target.tensors[name]
        # [B, Nkv, C, D], or positions [B, C].
        axis = 2 if len(shape) > 2 else 1
        row = math.prod(shape[axis + 1 :]) * item_size(dtype)
        rows = math.prod(shape[:axis])
        device.copy_rows(place, greater[axis] * row, address, shape[axis] * row, shape[axis] * row, rows, stream)
