# SPDX-License-Identifier: Apache-2.0
"""A native operator in a session of one node."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from fastmmoe.exporter.ops import DOMAIN, OPS
from fastmmoe.runtime.backends.native import EXACT_ENTRY, register_native_ops
from fastmmoe.runtime.types import Array

_SPECS = {spec.name: spec for spec in OPS}


_WEIGHTS = ("gate_up", "down", "weight")


def _one_node_model(op: str, inputs: dict[str, Array], attributes: dict[str, Any], may_replace: bool) -> bytes:
    """A model whose inputs are `inputs` with any shape, except the weights, which are initializers."""
    spec = _SPECS[op]
    outputs = [t.name for t in spec.outputs_for(attributes)]
    weights = [onnx.numpy_helper.from_array(inputs[name], name) for name in _WEIGHTS if name in inputs]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, list(inputs), outputs, domain=DOMAIN, **attributes)],
        "one_node",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in inputs.items()
            if may_replace or name not in _WEIGHTS
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        weights,
    )
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, spec.version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


class NativeNode:
    """One node in a session of its own, with the operators of the installed library or of another one."""

    def __init__(
        self,
        op: str,
        inputs: dict[str, Array],
        attributes: dict[str, Any],
        threads: int = 1,
        library: Path | None = None,
        is_exact: bool | str = False,
        may_replace: bool = False,
    ) -> None:
        """may_replace: whether a request may give the weights, too."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # a refused input is logged as well as raised
        if is_exact:
            options.add_session_config_entry(EXACT_ENTRY, "1" if is_exact is True else is_exact)
        if library is None:
            register_native_ops(options, {})
        else:
            options.register_custom_ops_library(str(library))
        model = _one_node_model(op, inputs, attributes, may_replace)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, Array]) -> list[Array]:
        values = {name: to_ort_value(array) for name, array in inputs.items() if name not in _WEIGHTS}
        names = [output.name for output in self.session.get_outputs()]
        return [to_array(value) for value in self.session.run_with_ort_values(names, values)]


def to_ort_value(array: Array) -> onnxruntime.OrtValue:
    """The array, which ONNX Runtime takes with bfloat16 by its bits only."""
    if array.dtype != ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(order="C"))
    bits = array.copy(order="C").view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)


def to_array(value: onnxruntime.OrtValue) -> Array:
    """A copy of the value; ONNX Runtime gives none of bfloat16."""
    if value.element_type() != onnx.TensorProto.BFLOAT16:
        copy: Array = value.numpy().copy()
        return copy
    count = math.prod(value.shape())
    bits = np.ctypeslib.as_array(ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), (count,))
    return bits.copy().view(ml_dtypes.bfloat16).reshape(value.shape())


def run_native(op: str, inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> list[Array]:
    """The node's outputs, in a session for this call."""
    return NativeNode(op, inputs, attributes, threads)(inputs)
