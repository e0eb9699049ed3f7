# SPDX-License-Identifier: Apache-2.0
"""The routed experts' weights on the device: read once, from the bundle's own file, through pinned windows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from fastmmoe.runtime.backends.tensorrt.device import Address, Device, Event, Stream
from fastmmoe.runtime.backends.tensorrt.memory import Layout, host_view
from fastmmoe.runtime.bundle.manifest import ExpertTensor
from fastmmoe.runtime.errors import BundleMismatch

WINDOW = 64 << 20
"""Bytes that are read while those before are copied."""


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
        BundleMismatch: the file is gone, or has become shorter.
    """
    places = experts_layout(inputs).at(address)
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BundleMismatch(f"{path}: {error.strerror}; copy the bundle or export again") from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, file)
        # On Jetson the page cache and the device's memory are the same: what was read would be there twice.
        stack.callback(os.posix_fadvise, file, 0, 0, os.POSIX_FADV_DONTNEED)
        windows = _Windows(device, min(WINDOW, max(tensor.bytes for tensor in inputs.values())))
        stack.callback(windows.close, stream)
        for name, tensor in sorted(inputs.items(), key=lambda item: item[1].offset):
            for start in range(0, tensor.bytes, windows.size):
                size = min(windows.size, tensor.bytes - start)
                if not windows.copy(file, tensor.offset + start, size, places[name] + start, stream):
                    raise BundleMismatch(f"{path}: ends before {name} does; copy the bundle or export again")
        device.synchronize(stream)
    return places


class _Windows:
    """Two windows of pinned memory, used in turn."""

    def __init__(self, device: Device, size: int) -> None:
        self.size, self._device, self._turn = size, device, 0
        self._address = device.allocate_pinned(2 * size)
        self._copied: list[Event] = []

    def copy(self, file: int, offset: int, size: int, target: Address, stream: Stream) -> bool:
        """Read bytes of the file and queue their copy to the device; False where the file has fewer."""
        turn = self._turn % 2
        if len(self._copied) > turn:
            self._device.wait_on_host(self._copied[turn])
        else:
            self._copied.append(self._device.make_event())
        window = self._address + turn * self.size
        done, view = 0, memoryview(host_view(window, size).data)
        while done < size:
            count = os.preadv(file, [view[done:]], offset + done)
            if count == 0:
                return False
            done += count
        self._device.copy(target, window, size, stream)
        self._device.record(self._copied[turn], stream)
        self._turn += 1
        return True

    def close(self, stream: Stream) -> None:
        self._device.synchronize(stream)
        for event in self._copied:
            self._device.destroy_event(event)
        self._device.free_pinned(self._address)
