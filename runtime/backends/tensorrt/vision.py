# SPDX-License-Identifier: Apache-2.0
"""The vision graph on a stream of its own: it computes a picture's features while answers are decoded."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastmmoe.runtime.backends.elements import as_dtype, tensor_bytes
from fastmmoe.runtime.backends.tensorrt.device import Address, Device, Event, OutOfDeviceMemory, Stream
from fastmmoe.runtime.backends.tensorrt.engine import Context, Shape
from fastmmoe.runtime.backends.tensorrt.memory import Layout, Staging
from fastmmoe.runtime.backends.tensorrt.pool import Pool
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.signatures import Tensor
from fastmmoe.runtime.types import Array

MOST_IDLE = 2
"""Blocks for features that are kept for pictures to come."""


@dataclass(eq=False)
class Block:
    """Device memory for features, and events of when they are begun, done and read.

    Attributes:
        timing: held while the host reads the events; nothing is freed meanwhile.
    """

    address: Address
    bytes: int
    begun: Event
    done: Event
    read: Event
    was_read: bool = False
    timing: threading.Lock = field(default_factory=threading.Lock)


class DeviceFeatures:
    """Features [V, H] of a request's pictures on the device.

    Attributes:
        block: where they are, or will be once the event `done` has passed.
    """

    def __init__(self, vision: Vision, block: Block, rows: int) -> None:
        self.block, self._rows, self._device = block, rows, vision.device
        weakref.finalize(self, vision.give, block).atexit = False

    def __len__(self) -> int:
        return self._rows

    def elapsed_ms(self) -> float:
        """Milliseconds that the vision graph took; waits for it."""
        with self.block.timing:
            self._device.check_open()
            self._device.wait_on_host(self.block.done)
            return self._device.milliseconds(self.block.begun, self.block.done)


class Vision:
    """Runs the vision graph.

    Args:
        inputs: of the graph.
        block: device memory for its inputs.
        row_bytes: of one position's features.
    """

    def __init__(
        self,
        device: Device,
        context: Context,
        inputs: list[Tensor],
        block: Address,
        staging: Staging,
        stream: Stream,
        row_bytes: int,
    ) -> None:
        self.device, self._context, self._inputs, self._block = device, context, inputs, block
        self._staging, self._stream, self._row_bytes = staging, stream, row_bytes
        self._pool = Pool[Block](MOST_IDLE, self._free)
        self._lock = threading.Lock()

    def run(self, vision_inputs: Mapping[str, Array], rows: int) -> DeviceFeatures:
        """Queue the graph for pictures that give so many rows of features."""
        dtypes = {tensor.name: tensor.dtype for tensor in self._inputs}
        arrays = {name: as_dtype(vision_inputs[name], dtype) for name, dtype in dtypes.items()}
        shapes: dict[str, Shape] = {name: array.shape for name, array in arrays.items()}
        sizes = {name: tensor_bytes(shape, dtypes[name]) for name, shape in shapes.items()}
        width = self._row_bytes // tensor_bytes((1,), dtypes[graph_io.PIXEL_VALUES])
        with self._lock:
            self.device.check_open()
            block = self._take(rows * self._row_bytes)
            # Whatever happens from here on, the block comes back.
            features = DeviceFeatures(self, block, rows)
            if block.was_read:
                self.device.wait(self._stream, block.read)
            layout = Layout.of(sizes)
            self._staging.upload(arrays, layout, self._block, self._stream)
            with self.device.marked(block.done, self._stream):
                self.device.record(block.begun, self._stream)
                self._context.run(
                    shapes,
                    {graph_io.IMAGE_FEATURES: (rows, width)},
                    layout.at(self._block) | {graph_io.IMAGE_FEATURES: block.address},
                    self._stream,
                )
            return features

    def give(self, block: Block) -> None:
        """Keep a block for other features; see `Pool.give`."""
        self._pool.give(block)

    def close(self) -> None:
        """Free everything, features that somebody has too: nobody may use them any more."""
        with self._lock:
            self.device.synchronize(self._stream)
            # It goes before the memory that it uses.
            del self._context
            self._pool.close()

    def _take(self, size: int) -> Block:
        try:
            return self._pool.take(lambda block: block.bytes >= size, lambda: self._make(size))
        except OutOfDeviceMemory as error:
            raise OutOfDeviceMemory(
                f"features of pictures, {size / 1e6:.1f} MB, do not fit on the device: give fewer pictures or tiles "
                f"(--max-tiles), or end other programs ({error})"
            ) from error

    def _make(self, size: int) -> Block:
        with contextlib.ExitStack() as stack:
            address = self.device.allocate(max(size, 1))
            stack.callback(self.device.free, address)
            events = []
            for is_timed in (True, True, False):
                events.append(self.device.make_event(is_timed=is_timed))
                stack.callback(self.device.destroy_event, events[-1])
            stack.pop_all()
        return Block(address, size, *events)

    def _free(self, block: Block) -> None:
        # Its last reader is queued in the other stream, its last writer in this one.
        self.device.wait_on_host(block.done)
        if block.was_read:
            self.device.wait_on_host(block.read)
        with block.timing:
            for event in (block.begun, block.done, block.read):
                self.device.destroy_event(event)
            self.device.free(block.address)
