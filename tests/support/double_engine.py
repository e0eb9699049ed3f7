# SPDX-License-Identifier: Apache-2.0
"""Engines on the double: one built from a graph of one operator, and one run with arrays."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastmmoe.exporter.ops import DOMAIN, OPS
from fastmmoe.runtime.backends.tensorrt.api import EngineRequest, build_engine
from fastmmoe.runtime.types import Array
from tests.support.double import Modules

SPECS = {spec.name: spec for spec in OPS}
BLOCK = 256


def operator_model(
    op: str,
    inputs: dict[str, Array],
    attributes: dict[str, Any],
    *,
    dynamic: dict[str, str],
    constant: tuple[str, ...] = (),
    outputs: dict[str, tuple[Any, tuple[int | str, ...]]],
) -> onnx.ModelProto:
    """A graph of one node.

    Args:
        dynamic: input -> name of its first dimension, which may change.
        constant: inputs that are initializers.
        outputs: in the node's order: name -> type and shape.
    """

    def value(name: str, dtype: Any, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def shape(name: str, array: Array) -> tuple[int | str, ...]:
        return (dynamic[name], *array.shape[1:]) if name in dynamic else array.shape

    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), list(outputs), domain=DOMAIN, name="the_node", **attributes)],
        "one_node",
        [value(n, a.dtype, shape(n, a)) for n, a in inputs.items() if n not in constant],
        [value(n, dtype, dims) for n, (dtype, dims) in outputs.items()],
        [numpy_helper.from_array(inputs[n], n) for n in constant],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, SPECS[op].version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def request(model: onnx.ModelProto, folder: Path, plugin: Path, module: str, most: int) -> EngineRequest:
    """What the project's build is asked for: one profile, whose dimensions are 0 to `most`; writes the graph."""
    graph, profile = folder / "graph.onnx", {}
    onnx.save(model, graph)
    for tensor in model.graph.input:
        dims = tensor.type.tensor_type.shape.dim
        if any(d.dim_param for d in dims):
            shapes = [tuple(n if d.dim_param else d.dim_value for d in dims) for n in (0, 1, most)]
            profile[tensor.name] = (shapes[0], shapes[1], shapes[2])
    return EngineRequest(
        module=module,
        graph=str(graph),
        plugin=str(plugin),
        output=str(folder / "graph.engine"),
        profiles=(profile,) if profile else (),
        compute_capabilities=(89,) if module == "tensorrt_rtx" else (),
        workspace_mib=None,
        timing_cache=None,
    )


def build(modules: Modules, model: onnx.ModelProto, folder: Path, plugin: Path, most: int = 256) -> bytes:
    """The engine of a graph, by the project's own calls."""
    asked = request(model, folder, plugin, modules.trt.__name__, most)
    build_engine(modules.trt, asked)
    return Path(asked.output).read_bytes()


class Runner:
    """An engine, a context and a stream; each tensor in memory of its own."""

    def __init__(self, modules: Modules, engine: bytes) -> None:
        self.trt, self.cudart = modules.trt, modules.cudart
        self.engine = self.trt.Runtime(self.trt.Logger()).deserialize_cuda_engine(engine)
        self.context = self.engine.create_execution_context()
        self.stream = self.cudart.cudaStreamCreateWithPriority(1, 0)[1]
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = self.trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == is_input]
        self.outputs = [name for name in names if name not in self.inputs]

    def upload(self, array: Array, address: int | None = None) -> int:
        """Copy an array to the device; its address."""
        size = max(array.nbytes, BLOCK)
        _, staging = self.cudart.cudaHostAlloc(size, 0)
        address = self.cudart.cudaMalloc(size)[1] if address is None else address
        if array.nbytes:
            ctypes.memmove(staging, np.ascontiguousarray(array).ctypes.data, array.nbytes)
            self._copy(address, staging, array.nbytes)
        return address

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array from the device."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        _, staging = self.cudart.cudaHostAlloc(max(count, BLOCK), 0)
        if count:
            self._copy(staging, address, count)
        return np.frombuffer(ctypes.string_at(staging, count), dtype).reshape(shape)

    def set(self, inputs: dict[str, Array]) -> None:
        """Upload the inputs and bind everything; an aliased output has its input's address."""
        for name, array in inputs.items():
            if name in self.inputs:
                assert self.context.set_input_shape(name, array.shape)
                self.context.set_tensor_address(name, self.upload(array))
        for name in self.outputs:
            source = self.engine.get_aliased_input_tensor(name)
            size = int(np.prod(self.context.get_tensor_shape(name))) * 8
            new = self.cudart.cudaMalloc(max(size, BLOCK))[1] if source is None else 0
            self.context.set_tensor_address(name, new or self.context.get_tensor_address(source))

    def run(self, dtypes: dict[str, Any]) -> dict[str, Array]:
        """One run; outputs of these NumPy types."""
        assert self.context.execute_async_v3(self.stream)
        context = self.context
        return {
            name: self.download(context.get_tensor_address(name), tuple(context.get_tensor_shape(name)), dtype)
            for name, dtype in dtypes.items()
        }

    def _copy(self, target: int, source: int, count: int) -> None:
        assert self.cudart.cudaMemcpyAsync(target, source, count, 4, self.stream) == (0,)
        assert self.cudart.cudaStreamSynchronize(self.stream) == (0,)
