# SPDX-License-Identifier: Apache-2.0
"""Builder, network, parser and configuration: from an ONNX file to an engine file of the double."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnxruntime as ort

from device_double.device import current
from device_double.engine_file import EngineFile, Shapes
from device_double.plugins import IPluginRegistry, get_plugin_registry
from device_double.trt_types import (
    ELEMENT_TYPES,
    DataType,
    Dims,
    ErrorCode,
    IHostMemory,
    ILogger,
    IStreamWriter,
    MemoryPoolType,
)
from device_double.twin import aliases, make_twin, operators, shape_of
from fastmmoe.exporter.ops import OPS
from fastmmoe.runtime.backends.native import register_native_ops

WRITE_BYTES = 1 << 20
ALIASED = "ALIASED_PLUGIN_IO_10_03"
TIMINGS = "timings of the double "
OLDEST_SM = 75
"""Of the GPUs that TensorRT 10 and 11 build for."""


class ITensor:
    """An input or output of a network."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._value.name)

    @property
    def dtype(self) -> DataType:
        """Its element type."""
        return ELEMENT_TYPES[self._value.type.tensor_type.elem_type]

    @property
    def shape(self) -> Dims:
        """-1 where it may change."""
        return Dims(d if isinstance(d, int) else -1 for d in shape_of(self._value))


class INetworkDefinition:
    """A graph, once a parser has filled it."""

    def __init__(self) -> None:
        self._model: onnx.ModelProto | None = None

    @property
    def num_inputs(self) -> int:
        """Inputs without initializer."""
        return len(self._inputs())

    @property
    def num_outputs(self) -> int:
        """Outputs."""
        return 0 if self._model is None else len(self._model.graph.output)

    def get_input(self, index: int) -> ITensor:
        """In the graph's order."""
        return ITensor(self._inputs()[index])

    def get_output(self, index: int) -> ITensor:
        """In the graph's order."""
        assert self._model is not None
        return ITensor(self._model.graph.output[index])

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        if self._model is None:
            return []
        constant = {tensor.name for tensor in self._model.graph.initializer}
        return [value for value in self._model.graph.input if value.name not in constant]


class ParserError:
    """Why a graph was refused."""

    def __init__(self, code: ErrorCode, desc: str, node: onnx.NodeProto | None = None, number: int = -1) -> None:
        self._code, self._desc, self._node, self._number = code, desc, node, number

    def code(self) -> ErrorCode:
        """Its kind."""
        return self._code

    def desc(self) -> str:
        """In words."""
        return self._desc

    def node(self) -> int:
        """Number of the node; -1: none."""
        return self._number

    def node_name(self) -> str:
        """Name of the node."""
        return "" if self._node is None else str(self._node.name)

    def node_operator(self) -> str:
        """Operator of the node."""
        return "" if self._node is None else str(self._node.op_type)


class OnnxParser:
    """Reads an ONNX file and its weights into a network."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger, self._errors = network, logger, list[ParserError]()

    @property
    def num_errors(self) -> int:
        """Of the last file."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """One of them."""
        return self._errors[index]

    def clear_errors(self) -> None:
        """Forget them."""
        self._errors.clear()

    def parse_from_file(self, model: str) -> bool:
        """Read a file; False and errors where that cannot be done."""
        try:
            parsed = onnx.load(model)
        except Exception as error:  # noqa: BLE001  (protobuf's, the loader's and the system's share no base)
            self._refuse(ParserError(ErrorCode.MODEL_DESERIALIZE_FAILED, f"Failed to parse {model}: {error}"))
            return False
        if not current().libraries:
            for number, node in enumerate(parsed.graph.node):
                if node.op_type in operators(parsed.graph):
                    text = "Assertion failed: creator && Plugin not found, are the plugin name, version, and namespace"
                    self._refuse(ParserError(ErrorCode.UNSUPPORTED_NODE, f"{text} correct?", node, number))
                    return False
        self._network._model = parsed
        return True

    def _refuse(self, error: ParserError) -> None:
        self._errors.append(error)
        self._logger.log(ILogger.ERROR, f"ModelImporter.cpp: ERROR: {error.desc()}")


class IOptimizationProfile:
    """Shapes that an engine must be able to take."""

    def __init__(self) -> None:
        self._shapes: dict[str, Shapes] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        """Smallest, typical and greatest shape of an input; ValueError where they do not ascend."""
        shapes = (tuple(min), tuple(opt), tuple(max))
        if len({*map(len, shapes)}) > 1 or any(not a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise ValueError(f"Shape provided for {input} is inconsistent with other shapes: {shapes}")
        self._shapes[input] = shapes

    def get_shape(self, input: str) -> list[Dims]:
        """As set."""
        return [Dims(shape) for shape in self._shapes.get(input, ())]


class ITimingCache:
    """What builds have measured: here how many there were, and by which version."""

    def __init__(self, version: str, builds: int = 0) -> None:
        self._version, self._builds = version, builds

    def serialize(self) -> IHostMemory:
        """As `create_timing_cache` reads it."""
        return IHostMemory(f"{TIMINGS}{self._version} {self._builds}".encode())


class IBuilderConfig:
    """Settings of a build. `_capabilities`: the GPUs to build for; none: that of the machine."""

    _version = ""

    def __init__(self) -> None:
        self._aux_streams = -1
        self._timings: ITimingCache | None = None
        self._profiles: list[dict[str, Shapes]] = []
        self._features: set[str] = set()
        self._limits: dict[MemoryPoolType, int] = {}
        self._capabilities: list[Any] = []

    @property
    def num_optimization_profiles(self) -> int:
        """Profiles that were added."""
        return len(self._profiles)

    @property
    def max_aux_streams(self) -> int:
        """Streams beside the one that a context queues in; -1: TensorRT chooses."""
        return self._aux_streams

    @max_aux_streams.setter
    def max_aux_streams(self, count: int) -> None:
        self._aux_streams = count

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        """A cache from saved bytes; an empty one where there are none, or they are damaged."""
        text = bytes(serialized_timing_cache).decode("latin-1")
        if not text.startswith(TIMINGS):
            return ITimingCache(self._version)
        version, builds = text.removeprefix(TIMINGS).split()
        return ITimingCache(version, int(builds))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Take a cache; False for one of another version, unless that is to be ignored."""
        if cache._version != self._version and not ignore_mismatch:
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        """As set, with what was measured since."""
        return self._timings

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Its number; -1 for one without shapes."""
        if not profile._shapes:
            return -1
        self._profiles.append(dict(profile._shapes))
        return len(self._profiles) - 1

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        """Switch a feature."""
        (self._features.add if enable else self._features.discard)(feature.name)

    def get_preview_feature(self, feature: Any) -> bool:
        """As set."""
        return feature.name in self._features

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """Kept, without effect."""
        self._limits[pool] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        """As set."""
        return self._limits.get(pool, current().memory.total)


class Builder:
    """Makes engine files.

    Raises:
        TypeError: no GPU, where the builder needs one (what the real bindings make of a null pointer).
    """

    _module, _version, _needs_gpu = "", "", False
    _config = IBuilderConfig

    def __init__(self, logger: ILogger) -> None:
        self._logger, self._device = logger, current()
        if self._needs_gpu and self._device.gpu.state:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    @property
    def logger(self) -> ILogger:
        """As given."""
        return self._logger

    def get_plugin_registry(self) -> IPluginRegistry:
        """The registry of the process."""
        return get_plugin_registry()

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        """An empty network."""
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        """Default settings."""
        config = self._config()
        config._version = self._version
        return config

    def create_optimization_profile(self) -> IOptimizationProfile:
        """An empty profile."""
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """An engine file; None and messages where the network or the settings are wrong."""
        errors = list(self._errors(network, config))
        for error in errors:
            self._logger.log(ILogger.ERROR, f"IBuilder::buildSerializedNetwork: Error Code 4: {error}")
        if errors:
            return None
        if config._timings is not None:
            config._timings._builds += 1
        return IHostMemory(self._file(network, config).encode())

    def build_serialized_network_to_stream(
        self, network: INetworkDefinition, config: IBuilderConfig, writer: IStreamWriter
    ) -> bool:
        """Write an engine file in pieces; False where there is none or the writer takes less."""
        engine = self.build_serialized_network(network, config)
        if engine is None:
            return False
        pieces = (bytes(engine[at : at + WRITE_BYTES]) for at in range(0, len(engine), WRITE_BYTES))
        return all(writer.write(piece) == len(piece) for piece in pieces)

    def _errors(self, network: INetworkDefinition, config: IBuilderConfig) -> Iterator[str]:
        if network._model is None:
            yield "Network must have at least one output"
            return
        if self._needs_gpu and self._device.gpu.sm < OLDEST_SM:
            yield f"Target GPU SM {self._device.gpu.sm} is not supported by this TensorRT release."
        inputs = {tensor.name: tensor.shape for tensor in map(ITensor, network._inputs())}
        dynamic = {name for name, shape in inputs.items() if -1 in shape}
        if dynamic and not config._profiles:
            yield "Network has dynamic or shape inputs, but no optimization profile has been defined."
        for number, profile in enumerate(config._profiles):
            for name in sorted(dynamic - set(profile)):
                yield f"Dynamic input tensor {name} is missing dimensions in profile {number}."
            for name, shapes in profile.items():
                static = inputs.get(name)
                if static is None:
                    yield f"profile {number} names {name}, which is no input"
                elif not all(_fits(shape, static) for shape in shapes):
                    yield f"profile {number} gives {name} {shapes}, the network has {list(static)}"
        if aliases(network._model.graph) and ALIASED not in config._features:
            yield f"a plugin has aliased I/O, which needs the preview feature k{ALIASED}"
        yield from self._session_errors(network._model)

    def _session_errors(self, model: onnx.ModelProto) -> Iterator[str]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        used = operators(model.graph)
        if used:
            register_native_ops(options, {op.name: op.version for op in OPS if op.name in used})
        twin = make_twin(model).model.SerializeToString()
        try:
            ort.InferenceSession(twin, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (ONNX Runtime's classes share no base)
            yield " ".join(str(error).split())

    def _file(self, network: INetworkDefinition, config: IBuilderConfig) -> EngineFile:
        assert network._model is not None
        graph = network._model.graph
        capabilities = [int(c) for c in config._capabilities] or [self._device.gpu.sm]
        return EngineFile(
            module=self._module,
            version=self._version,
            compute_capabilities=tuple(capabilities),
            profiles=tuple(config._profiles),
            aliases=aliases(graph),
            operators=tuple(sorted(operators(graph))),
            model=network._model.SerializeToString(),
        )


def _fits(shape: tuple[int, ...], static: Dims) -> bool:
    """Whether a shape is one of an input that may change where static is -1."""
    return len(shape) == len(static) and all(f in (-1, d) for f, d in zip(static, shape, strict=True))
