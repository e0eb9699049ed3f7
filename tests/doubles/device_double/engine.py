# SPDX-License-Identifier: Apache-2.0
"""Runtime and ICudaEngine: reading engine files of the double, and what an engine says of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, NamedTuple

import onnxruntime as ort

from device_double.context import IExecutionContext
from device_double.device import Device, current
from device_double.engine_file import DamagedEngine, EngineFile
from device_double.memory import Watch
from device_double.misuse import Misuse
from device_double.plugins import IPluginRegistry, get_plugin_registry
from device_double.trt_types import (
    ELEMENT_TYPES,
    DataType,
    Dims,
    ExecutionContextAllocationStrategy,
    ILogger,
    IStreamReaderV2,
    TensorIOMode,
    TensorLocation,
)
from device_double.twin import Twin, make_twin, numpy_type, shape_of
from fastmmoe.exporter.ops import OPS
from fastmmoe.runtime.backends.native import register_native_ops

READ_BYTES = 1 << 20
SCRATCH_STEP, SCRATCH_LEAST = 512, 4096
DYNAMIC = -1


class Tensor(NamedTuple):
    """An input or output. shape: sizes, and names or sums of names where they may change."""

    name: str
    onnx_type: int
    shape: tuple[int | str, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return numpy_type(self.onnx_type).itemsize

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape; DYNAMIC where a name has no size."""
        return tuple(d if isinstance(d, int) else _evaluate(d, sizes) for d in self.shape)

    def bytes_of(self, dims: tuple[int, ...]) -> int:
        """Bytes of a tensor of this type."""
        return math.prod(dims) * self.item_bytes


def _evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """A name, or a sum of products such as "T - V + 4*tiles"; DYNAMIC where a name has no size."""
    total = 0
    for sign, factors in _terms(text):
        values = [int(one) if one.isdecimal() else sizes.get(one) for one in factors]
        if None in values:
            return DYNAMIC
        total += sign * math.prod(value for value in values if value is not None)
    return total


@cache
def _terms(text: str) -> list[tuple[int, list[str]]]:
    """Sign, and numbers or names that are multiplied, of each term."""
    terms: list[tuple[int, list[str]]] = []
    sign = 1
    for part in re.findall(r"[+-]|[^+-]+", text.replace(" ", "")) or ["?"]:
        if part in "+-":
            sign = 1 if part == "+" else -1
        else:
            terms.append((sign, part.split("*")))
    return terms


class ICudaEngine:
    """An engine: a graph whose twin ONNX Runtime runs."""

    def __init__(self, device: Device, file: EngineFile, logger: ILogger) -> None:
        self._device, self._file, self._logger = device, file, logger
        self._contexts = 0
        self._kept: dict[tuple[Any, ...], tuple[list[Watch], Any]] = {}
        graph = file.graph().graph
        constant = {tensor.name for tensor in graph.initializer}

        def tensors(values: Any) -> dict[str, Tensor]:
            kept = [value for value in values if value.name not in constant]
            return {v.name: Tensor(v.name, v.type.tensor_type.elem_type, shape_of(v)) for v in kept}

        self._inputs, self._outputs = tensors(graph.input), tensors(graph.output)
        self._tensors = {**self._inputs, **self._outputs}

    @cached_property
    def _twin(self) -> Twin:
        return make_twin(self._file.graph())

    @cached_property
    def _session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        if self._file.operators:
            register_native_ops(options, {op.name: op.version for op in OPS if op.name in self._file.operators})
        return ort.InferenceSession(self._twin.model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        """Profiles; at least one."""
        return max(1, len(self._file.profiles))

    @property
    def num_aux_streams(self) -> int:
        """Streams that it uses besides."""
        return 0

    @property
    def device_memory_size_v2(self) -> int:
        """Scratch memory that is enough for every profile."""
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_tensor_name(self, index: int) -> str:
        """Inputs first."""
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input, output or none."""
        if name in self._inputs:
            return TensorIOMode.INPUT
        return TensorIOMode.OUTPUT if name in self._outputs else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        """Its element type."""
        return ELEMENT_TYPES[self._tensors[name].onnx_type]

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 where it may change."""
        return Dims(self._tensors[name].dims({}))

    def get_tensor_location(self, name: str) -> TensorLocation:
        """All lie on the device."""
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """Smallest, typical and greatest shape of an input."""
        static = self.get_tensor_shape(name)
        profile = self._file.profiles[profile_index] if self._file.profiles else {}
        return [Dims(shape) for shape in profile.get(name, (static,) * 3)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """Scratch memory of a context: grows with the greatest shapes of the profile."""
        greatest = [self.get_tensor_profile_shape(name, profile_index)[2] for name in self._inputs]
        elements = sum(math.prod(shape) for shape in greatest if DYNAMIC not in shape)
        return SCRATCH_LEAST + -(-elements // SCRATCH_STEP) * SCRATCH_STEP

    def get_aliased_input_tensor(self, name: str) -> str | None:
        """The input whose address an output has; None: it has its own."""
        return self._file.aliases.get(name)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        """A context; None and a message where the device has no memory for its scratch."""
        with self._device.lock:
            scratch = None
            if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
                scratch = self._device.memory.allocate(self.device_memory_size_v2, is_device=True)
                if scratch is None:
                    size = self.device_memory_size_v2
                    self._logger.log(ILogger.ERROR, f"Error Code 2: OutOfMemory (Requested size was {size} bytes.)")
                    return None
            return IExecutionContext(self, scratch)


class Runtime:
    """Reads engines. Without a GPU it says so to the logger and is made all the same, as the real one."""

    _module, _version, _engine = "", "", ICudaEngine

    def __init__(self, logger: ILogger) -> None:
        self._logger, self._device = logger, current()
        if self._device.gpu.state:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")

    @property
    def logger(self) -> ILogger:
        """As given."""
        return self._logger

    def get_plugin_registry(self) -> IPluginRegistry:
        """The registry of the process."""
        return get_plugin_registry()

    def deserialize_cuda_engine(self, serialized_engine: bytes | IStreamReaderV2) -> ICudaEngine | None:
        """An engine from a buffer or a reader; None and a message where that is not one for this device."""
        if self._device.gpu.state:
            raise Misuse("no-gpu", "deserialize_cuda_engine without a GPU: the real call ends the process")
        reader = serialized_engine
        data = _read_all(reader) if isinstance(reader, IStreamReaderV2) else bytes(reader)
        try:
            file = EngineFile.decode(data)
        except DamagedEngine as error:
            self._fail(f"Error Code 1: Serialization (Serialization assertion failed: the {error} does not match)")
            return None
        if why := self._why_not(file):
            self._fail(why)
            return None
        return self._engine(self._device, file, self._logger)

    def _why_not(self, file: EngineFile) -> str:
        sm = self._device.gpu.sm
        if file.module != self._module or file.version != self._version:
            return (
                "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of "
                f"{self._module}, expecting library version {self._version} got {file.module} {file.version})"
            )
        if sm not in file.compute_capabilities:
            return (
                f"Error Code 6: API Usage Error (The engine was built for compute capabilities "
                f"{list(file.compute_capabilities)}, the device has {sm})"
            )
        if file.operators and not self._device.libraries:
            return f"Error Code 1: Cannot find plugin: {file.operators[0]}, version: 1, namespace: fastmmoe"
        return ""

    def _fail(self, message: str) -> None:
        self._logger.log(ILogger.ERROR, f"IRuntime::deserializeCudaEngine: {message}")


def _read_all(reader: IStreamReaderV2) -> bytes:
    pieces = []
    while piece := reader.read(READ_BYTES, 0):
        pieces.append(bytes(piece))
    return b"".join(pieces)
