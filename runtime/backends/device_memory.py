# SPDX-License-Identifier: Apache-2.0
"""Tensors in the memory of one of ONNX Runtime's providers, and copies of parts of them.

Its Python API copies whole tensors only, so parts are copied by graphs of one node over bytes, whose inputs and outputs
are bound by address. They are written here as the bytes of their protobuf messages (onnx.proto of ONNX 1.12), as the
runtime does without the package onnx.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.distribution import check_onnxruntime
from fastmmoe.runtime.backends.elements import BFLOAT16
from fastmmoe.runtime.backends.expert_file import read_experts, window_size
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.types import Array

check_onnxruntime()
import onnxruntime as ort  # noqa: E402  (only once it is known to be whole)

ONNX_BFLOAT16 = 16
"""TensorProto.BFLOAT16, which NumPy lacks."""
_UINT8, _INT_ATTRIBUTE = 2, 2
_IR_VERSION, _OPSET = 8, 13


class DeviceMemory:
    """Memory of a device.

    Args:
        device: as ONNX Runtime calls it: "cuda", "cpu".
        providers: those of the sessions that copy.
    """

    def __init__(self, device: str, providers: Sequence[Any]) -> None:
        self.device = device
        self._copying = _session(_graph("Identity", ["x"], {}), providers)
        self._joining = _session(_graph("Concat", ["x", "y"], {"axis": 1}), providers)

    def empty(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """A tensor with anything in it."""
        of = ONNX_BFLOAT16 if dtype == BFLOAT16 else np.dtype(dtype).type
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), of, self.device, 0)

    def write(self, target: int, values: Array) -> None:
        """Copy bytes uint8 [N] of the host to an address."""
        binding = self._copying.io_binding()
        binding.bind_cpu_input("x", values[None])
        self._bind_output(binding, target, (1, len(values)))
        self._copying.run_with_iobinding(binding)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy so many bytes from one address to another."""
        binding = self._copying.io_binding()
        self._bind_input(binding, "x", source, (1, size))
        self._bind_output(binding, target, (1, size))
        self._copying.run_with_iobinding(binding)

    def grow(self, old: ort.OrtValue, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """A greater tensor [..., C, D] or [B, C] that begins with the rows [..., C', D] or [B, C'] of another."""
        new, before = self.empty(shape, dtype), old.shape()
        # The dimension that grows comes after B, and after the heads where there are any.
        axis = len(shape) // 2
        rows = math.prod(shape[:axis])
        item = new.tensor_size_in_bytes() // math.prod(shape)
        width, width_before = (math.prod(one[axis:]) * item for one in (shape, before))
        rest = self.empty((rows, width - width_before), "uint8")
        binding = self._joining.io_binding()
        self._bind_input(binding, "x", old.data_ptr(), (rows, width_before))
        self._bind_input(binding, "y", rest.data_ptr(), (rows, width - width_before))
        self._bind_output(binding, new.data_ptr(), (rows, width))
        self._joining.run_with_iobinding(binding)
        return new

    def load(self, path: Path, tensors: Mapping[str, ExpertTensor]) -> dict[str, ort.OrtValue]:
        """The tensors of a file of weights, read a window at a time.

        Raises:
            BundleMismatch: see `read_experts`.
        """
        if not tensors:
            return {}
        found = {name: self.empty(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        window = np.empty(window_size(tensors), np.uint8)
        for name, start, part in read_experts(path, tensors, lambda: window):
            self.write(found[name].data_ptr() + start, part)
        return found

    def _bind_input(self, binding: ort.IOBinding, name: str, address: int, shape: tuple[int, int]) -> None:
        binding.bind_input(name, self.device, 0, np.uint8, shape, address)

    def _bind_output(self, binding: ort.IOBinding, address: int, shape: tuple[int, int]) -> None:
        binding.bind_output("z", self.device, 0, np.uint8, shape, address)


def ort_value(value: Array) -> ort.OrtValue:
    """The array itself, not a copy. uint16 are the bits of bfloat16: no graph has uint16."""
    if value.dtype == np.uint16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value, ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(value)


def _session(model: bytes, providers: Sequence[Any]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(model, options, providers=list(providers))


def _graph(operator: str, inputs: Sequence[str], attributes: Mapping[str, int]) -> bytes:
    """A model of one node from inputs to z, all of them tables of bytes of any size."""
    node = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, b"z") + _field(4, operator.encode())
    for name, value in attributes.items():
        node += _field(5, _field(1, name.encode()) + _number(3, value) + _number(20, _INT_ATTRIBUTE))
    graph = _field(1, node) + _field(2, b"graph")
    graph += b"".join(_field(11, _table(name)) for name in inputs) + _field(12, _table("z"))
    opset = _field(1, b"") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


def _table(name: str) -> bytes:
    """A ValueInfoProto of uint8 with two dimensions of their own names."""
    shape = b"".join(_field(1, _field(2, f"{name}{axis}".encode())) for axis in range(2))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, _UINT8) + _field(2, shape)))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
