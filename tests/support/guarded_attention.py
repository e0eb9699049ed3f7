# SPDX-License-Identifier: Apache-2.0
"""A call of FmmAttention whose caches lie on pages that may not be touched, but for the rows that it is about.

    python -m tests.support.guarded_attention cpu|EMULATED_LIBRARY CASE CACHE_DTYPE [apart]

Prints "done" where the outputs are right. A kernel that touches another row ends the process (signal 11), as one must
that copies the caches: apart.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import UNUSED_POSITION, Case, make_inputs
from tests.support.attention_checks import DTYPES, check_outputs
from tests.support.attention_params import make_params, output_types
from tests.support.native_node import NativeNode, to_array, to_ort_value

CAPACITY = 1 << 16
KEYS = 128  # so many follow each other from a multiple on in the kernels' tiles: the first may be before a window

# Rows in use are whole pages, in every type, and so are those from the first tile of a window on.
CASES = {
    "decode": Case("decode", 6, 3, 64, 256, (255,), ((0, 1),)),
    "many rows": Case("many rows", 6, 3, 64, 256, (156,), ((0, 100),)),
    "window, decode": Case("window, decode", 6, 3, 64, 1024, (1023,), ((0, 1),), window=16),
    "window, many rows": Case("window, many rows", 6, 3, 64, 1024, (924,), ((0, 100),), window=16),
    "latent, decode": Case("latent, decode", 16, 1, 576, 256, (255,), ((0, 1),), value_width=512),
    "latent, many rows": Case("latent, many rows", 16, 1, 576, 256, (235,), ((0, 21),), value_width=512),
}
FIRST_ROW = {"window, decode": 896, "window, many rows": 896}

LIBC = ctypes.CDLL(None, use_errno=True)
READ_WRITE, NONE = mmap.PROT_READ | mmap.PROT_WRITE, 0


class GuardedCache:
    """A cache of which only the rows [begin, end) of each head may be touched."""

    def __init__(self, small: Array, begin: int) -> None:
        """small: the rows up to `end`."""
        _, heads, end, width = small.shape
        row = width * small.itemsize
        self.memory = mmap.mmap(-1, heads * CAPACITY * row)
        self.array: Array = np.frombuffer(self.memory, small.dtype).reshape(1, heads, CAPACITY, width)
        self.array[:, :, :end] = small
        start = self.array.ctypes.data
        self.ranges = []
        for head in range(heads):
            first = start + head * CAPACITY * row
            for low, high in ((0, begin), (end, CAPACITY)):
                assert (first + low * row) % mmap.PAGESIZE == 0 and (high - low) * row % mmap.PAGESIZE == 0
                self.ranges.append((first + low * row, (high - low) * row))
        self.protect(NONE)

    def protect(self, access: int) -> None:
        for address, size in self.ranges:
            if size > 0:
                assert LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access) == 0


def main() -> None:
    kernels, name, dtype, *ways = sys.argv[1:]
    case = CASES[name]
    small = make_inputs(case, 0, np.float32 if kernels == "cpu" else DTYPES[dtype], DTYPES[dtype])
    caches = {n: GuardedCache(small[n], FIRST_ROW.get(name, 0)) for n in small if n in ("past_key", "past_value")}
    inputs = small | {n: cache.array for n, cache in caches.items()}
    if "past_position_ids" in inputs:
        inputs["past_position_ids"] = np.full((1, CAPACITY), UNUSED_POSITION, np.int32)
        inputs["past_position_ids"][:, : case.capacity] = small["past_position_ids"]
    large = replace(case, capacity=CAPACITY)
    output = run_cpu(large, inputs, bool(ways)) if kernels == "cpu" else run_emulated(kernels, large, inputs)
    for cache in caches.values():
        cache.protect(READ_WRITE)
    check_outputs(case, small, [output, *(cache.array[:, :, : case.capacity] for cache in caches.values())])
    print("done")


def run_cpu(case: Case, inputs: dict[str, Array], is_apart: bool) -> Array:
    """The output; caches are in place unless `is_apart`."""
    binding = (session := NativeNode(ATTENTION.name, inputs, case.attributes, 2).session).io_binding()
    values: dict[str, Any] = {name: to_ort_value(array) for name, array in inputs.items() if not is_cache(name)}
    for name, array in inputs.items():
        if is_cache(name):
            is_float = array.dtype == np.float32
            values[name] = (
                ort.OrtValue.ortvalue_from_numpy(array)
                if is_float
                else ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
            )
            assert values[name].data_ptr() == array.ctypes.data
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in ATTENTION.outputs_for(case.attributes):
        if output.alias and not is_apart:
            binding.bind_ortvalue_output(output.name, values[output.alias])
        else:
            binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    return to_array(binding.get_outputs()[0])


def is_cache(name: str) -> bool:
    return name in ("past_key", "past_value")


def run_emulated(library: str, case: Case, inputs: dict[str, Array]) -> Array:
    """The output of the CUDA kernels, with caches in place."""
    kernels = ctypes.CDLL(library)
    kernels.workspace_bytes.restype = kernels.run_attention.restype = ctypes.c_char_p
    size = ctypes.c_size_t()
    assert kernels.workspace_bytes(ctypes.byref(make_params(case, inputs, {})), ctypes.byref(size)) is None
    workspace = np.zeros(size.value + 16, np.uint8)
    outputs = {
        tensor.name: inputs[tensor.alias] if tensor.alias else np.zeros(*output_types(case, inputs)[tensor.name])
        for tensor in ATTENTION.outputs_for(case.attributes)
    }
    addresses = {name: array.ctypes.data for name, array in (inputs | outputs).items()}
    aligned = workspace.ctypes.data + -workspace.ctypes.data % 16
    message = kernels.run_attention(ctypes.byref(make_params(case, inputs, addresses)), ctypes.c_void_p(aligned))
    assert message is None, message
    return outputs["output"]


if __name__ == "__main__":
    main()
