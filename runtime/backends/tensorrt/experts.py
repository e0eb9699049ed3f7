# SPDX-License-Identifier: Apache-2.0
"""The routed experts' weights on the device: read once, from the bundle's own file, through pinned windows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from fastmmoe.runtime.backends.expert_file import read_experts, window_size
from fastmmoe.runtime.backends.tensorrt.device import Address, Device, Event, Stream
from fastmmoe.runtime.backends.tensorrt.memory import Layout, host_view
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.types import Array


def experts_layout(inputs: Mapping[str, ExpertTensor]) -> Layout:
    """Where each tensor is in the block of them all."""
    return Layout.of({name: tensor.bytes for name, tensor in inputs.items()})


def load_experts(
    device: Device, path: Path, inputs: Mapping[str, ExpertTensor], address: Address, stream: Stream
) -> dict[str, Address]:
    """Fill a block with the tensors of a file of weights.

    Args:
        address: of the block, which has room for `experts_layout`.
    Returns:
        The address of each tensor, all of whose values are there.
    Raises:
        BundleMismatch: see `read_experts`.
    """
    places = experts_layout(inputs).at(address)
    with contextlib.ExitStack() as stack:
        windows = _Windows(device, window_size(inputs), stream)
        stack.callback(windows.close)
        for name, start, part in stack.enter_context(contextlib.closing(read_experts(path, inputs, windows.next))):
            windows.copy(places[name] + start, len(part))
        device.synchronize(stream)
    return places


class _Windows:
    """Two windows of pinned memory, used in turn."""

    def __init__(self, device: Device, size: int, stream: Stream) -> None:
        self._size, self._device, self._stream, self._turn = size, device, stream, 0
        self._address = device.allocate_pinned(2 * size)
        self._copied: list[Event] = []

    def next(self) -> Array:
        """The window whose turn it is, once what was in it has been copied."""
        if len(self._copied) > self._turn:
            self._device.wait_on_host(self._copied[self._turn])
        else:
            self._copied.append(self._device.make_event())
        return host_view(self._address + self._turn * self._size, self._size)

    def copy(self, target: Address, size: int) -> None:
        """Queue a copy of its first bytes to the device; the other window is next."""
        self._device.copy(target, self._address + self._turn * self._size, size, self._stream)
        self._device.record(self._copied[self._turn], self._stream)
        self._turn = 1 - self._turn

    def close(self) -> None:
        self._device.synchronize(self._stream)
        for event in self._copied:
            self._device.destroy_event(event)
        self._device.free_pinned(self._address)
