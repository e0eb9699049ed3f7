# SPDX-License-Identifier: Apache-2.0
"""The kernels through ctypes, on memory of torch's device: with guard zones, or on tensors that are there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fastmmoe.runtime.types import Array

OPERATORS = ("attention", "linear", "sparse_moe", "token_prune")
GUARD = 1024
ALIGNMENT = 256
INPUT_GUARD = 0xFF
"""NaN and -1: what is read beyond an input shows."""
Spec = tuple[tuple[int, ...], Any]


class KernelError(Exception):
    """A kernel was refused, could not be launched, or wrote where it must not."""


class Kernels:
    """The library of plugins/testing/kernels/entry.cpp.

    Args:
        device: where the pointers lead: "cuda", or "cpu" for the emulator.
    """

    def __init__(self, library: Path, device: torch.device) -> None:
        loaded = ctypes.CDLL(str(library))
        self.device = device
        self._functions = {name: loaded[f"fmm_{name}"] for name in OPERATORS}
        self._sizes = {name: loaded[f"fmm_{name}_workspace"] for name in OPERATORS}
        for function in (*self._functions.values(), *self._sizes.values()):
            function.restype = ctypes.c_char_p

    def workspace_bytes(self, operator: str, params: ctypes.Structure) -> int:
        """What a call needs beside its tensors."""
        size = ctypes.c_size_t()
        self._check(self._sizes[operator](ctypes.byref(params), ctypes.byref(size)))
        return size.value

    def launch(self, operator: str, params: ctypes.Structure, workspace: int, stream: int | None = None) -> None:
        """Queue a call: on torch's current stream, or the one whose handle is given."""
        if stream is None and self.device.type == "cuda":
            stream = torch.cuda.current_stream().cuda_stream
        self._check(
            self._functions[operator](ctypes.byref(params), ctypes.c_void_p(workspace), ctypes.c_void_p(stream))
        )

    @staticmethod
    def _check(message: bytes | None) -> None:
        if message is not None:
            raise KernelError(message.decode())


@dataclass(frozen=True)
class Place:
    """Where an array is in the block of a guarded call, and what surrounds it."""

    start: int
    size: int
    fill: int


def guarded_call(
    kernels: Kernels,
    operator: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Spec],
    params_of: Callable[[dict[str, int]], ctypes.Structure],
    *,
    poison: int,
    aliases: Mapping[str, str] = MappingProxyType({}),
    offsets: Mapping[str, int] = MappingProxyType({}),
) -> tuple[dict[str, Array], Array]:
    """Call once; the outputs, and the bytes of the workspace.

    Every array lies between guard zones of one block, which is copied back whole.

    Args:
        outputs: shape and dtype of each.
        params_of: addresses by name -> the kernel's parameters.
        poison: fills outputs and workspace before.
        aliases: outputs that have the address of an input.
        offsets: bytes by which an array lies behind an aligned address.
    Raises:
        KernelError: see there; also where an input has changed.
    """
    workspace_bytes = kernels.workspace_bytes(operator, params_of({}))
    sizes = {name: (value.nbytes, INPUT_GUARD) for name, value in inputs.items()}
    for name, (shape, dtype) in outputs.items():
        if name not in aliases:
            sizes[name] = int(np.prod(shape)) * np.dtype(dtype).itemsize, poison
    places = _lay_out(sizes | {"workspace": (workspace_bytes, poison)}, offsets)
    end = places["workspace"].start + workspace_bytes
    before = _image(places, end + GUARD, inputs)
    block = torch.from_numpy(before).to(kernels.device, copy=True)
    base = block.data_ptr()
    addresses = {name: base + p.start for name, p in places.items() if name != "workspace"}
    addresses |= {output: addresses[name] for output, name in aliases.items() if output in outputs}
    kernels.launch(operator, params_of(addresses), base + places["workspace"].start)
    after = block.cpu().numpy()
    _check_untouched(before, after, places, set(outputs) - set(aliases) | {"workspace"} | set(aliases.values()))

    def read(name: str) -> Array:
        p = places[aliases.get(name, name)]
        shape, dtype = outputs[name]
        # A copy: what lies behind an offset is no view of a wider type.
        return after[p.start : p.start + p.size].copy().view(dtype).reshape(shape)

    found = places["workspace"]
    return {name: read(name) for name in outputs}, after[found.start : found.start + found.size]


def _lay_out(sizes: Mapping[str, tuple[int, int]], offsets: Mapping[str, int]) -> dict[str, Place]:
    """Arrays of (bytes, fill), one after the other, so far apart that each has guard zones."""
    places, end = {}, 0
    for name, (size, fill) in sizes.items():
        start = -(-(end + GUARD) // ALIGNMENT) * ALIGNMENT + offsets.get(name, 0)
        places[name], end = Place(start, size, fill), start + size
    return places


def _image(places: Mapping[str, Place], size: int, inputs: Mapping[str, Array]) -> Array:
    """The block before the call."""
    image = np.full(size, INPUT_GUARD, np.uint8)
    for p in places.values():
        image[p.start - GUARD // 2 : p.start + p.size + GUARD // 2] = p.fill
    for name, value in inputs.items():
        p = places[name]
        image[p.start : p.start + p.size] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return image


def _check_untouched(before: Array, after: Array, places: Mapping[str, Place], written: set[str]) -> None:
    """Everything but what the call may write is as it was."""
    changed = before != after
    for name in written & set(places):
        p = places[name]
        changed[p.start : p.start + p.size] = False
    if changed.any():
        at = int(np.flatnonzero(changed)[0])
        near = min(places, key=lambda name: abs(places[name].start + places[name].size // 2 - at))
        p = places[near]
        raise KernelError(
            f"byte {at - p.start} of {near}, which has {p.size}, was written: {int(changed.sum())} in all"
        )
