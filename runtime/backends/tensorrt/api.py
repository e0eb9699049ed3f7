# SPDX-License-Identifier: Apache-2.0
"""One engine from one graph, through TensorRT's Python API: every call of it, and all that differs by version, is here.

    python -m fastmmoe.runtime.backends.tensorrt.api REQUEST.json REPLY.json

A process of its own, because TensorRT ends the process where it meets a defect, cannot be interrupted while it builds,
and gives its memory back only at the end.

The same calls serve TensorRT 10.3, 10.16 and 11.4 and TensorRT-RTX 1.7, but for these:

* Strong typing is a flag of the network up to 10; from 11 on every network has it and the flag is ignored.
* `build_serialized_network_to_stream` came after 10.3. It saves a copy of the whole engine in memory.
* Only TensorRT-RTX takes compute capabilities to build for; TensorRT builds for the GPU of the machine.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import IO, Any

import msgspec

from fastmmoe.runtime.backends.tensorrt.profiles import Profile
from fastmmoe.runtime.bundle.manifest import FileEntry
from fastmmoe.runtime.errors import FastmmoeError

MIB = 1 << 20
DYNAMIC = -1
LONGEST_MESSAGE = 400
OPERATORS = "Fmm"
"""How the names of the plugin's operators begin, and with them its messages."""


KNOWN_FAILURES = {
    "libnvdla_compiler.so": "JetPack 7.2 has no such library any more, and images made for JetPack 6 or with TensorRT "
    "10.11 for integrated GPUs ask for it: take an image made for JetPack 7.2, or build outside of the container with "
    "JetPack's own TensorRT 10.16",
}
"""Libraries that known containers lack -> what to do."""


class EngineBuildFailed(FastmmoeError):
    """TensorRT is missing, cannot start, or refuses a graph."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one process.

    Attributes:
        module: "tensorrt" or "tensorrt_rtx".
        graph: ONNX file.
        plugin: library with the operators; None: the graph has none of ours.
        output: the engine.
        profiles: optimisation profiles, in the engine's order.
        compute_capabilities: those to build for; empty = that of this machine's GPU.
        workspace_mib: the most scratch memory a layer may use; None = TensorRT's own limit.
        timing_cache: file of what was measured before, which is read if it is there and written again; None: without.
    """

    module: str
    graph: str
    plugin: str | None
    output: str
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[int, ...]
    workspace_mib: int | None
    timing_cache: str | None


class EngineReply(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that was written, or why there is none."""

    engine: FileEntry | None
    error: str = ""


def load_module(name: str, install: str) -> Any:
    """The package `tensorrt` or `tensorrt_rtx`.

    Args:
        install: how to get it, for the message.
    Raises:
        EngineBuildFailed: it is not installed for this Python, or cannot be loaded.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise EngineBuildFailed(f"no Python package {name} for {sys.executable}: {install}") from error
    except (ImportError, OSError) as error:
        said = one_line(str(error))
        advice = next((f"; {words}" for library, words in KNOWN_FAILURES.items() if library in said), "")
        raise EngineBuildFailed(f"the Python package {name} cannot be loaded: {said}{advice}") from error


def build_engine(trt: Any, request: EngineRequest) -> FileEntry:
    """Build the engine and write it to the request's output.

    Raises:
        EngineBuildFailed: TensorRT cannot start, cannot load the plugin, or refuses the graph or the profiles.
        OSError: the engine cannot be written.
    """
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what its bindings make of a builder that is a null pointer
        raise _failure(trt, logger, "cannot start, which needs a GPU and its driver") from error
    if request.plugin is not None and trt.get_plugin_registry().load_library(request.plugin) is None:
        raise _failure(trt, logger, f"cannot load {request.plugin}")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.graph):
        raise _failure(trt, logger, f"cannot read {request.graph}", *_parser_errors(parser))
    config = builder.create_builder_config()
    # Outputs of FmmAttention have the addresses of inputs; no plugin may say so without this.
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib * MIB)
    # The runtime gives a context no streams beside the one it queues in.
    config.max_aux_streams = 0
    _set_compute_capabilities(trt, config, request.compute_capabilities)
    _read_timing_cache(config, request)
    # What it said of an unfit cache, which it does without, is no reason of what comes.
    logger.errors.clear()
    for profile in request.profiles:
        if _add_profile(builder, network, config, profile) < 0:
            raise _failure(trt, logger, f"refuses a profile of {request.graph}")
    with Path(request.output).open("wb") as file:
        entry = _write_engine(trt, builder, network, config, file)
    if entry is None:
        raise _failure(trt, logger, f"builds no engine from {request.graph}")
    _write_timing_cache(config, request)
    return entry


def make_logger(trt: Any) -> Any:
    """A logger of TensorRT's that keeps errors, in `errors`."""

    class Logger(trt.ILogger):
        """Keeps the errors: the first is the cause of those after it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Logger()


def make_profiler(trt: Any) -> Any:
    """A profiler of TensorRT's that notes layers as they ran, (name, milliseconds), in `layers`."""

    class Profiler(trt.IProfiler):
        """Is told of every layer before the call that queued them returns."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append((layer_name, ms))

    return Profiler()


def _failure(trt: Any, logger: Any, what: str, *reasons: str) -> EngineBuildFailed:
    # The plugin's own message says more than what TensorRT makes of it.
    ours = [message for message in logger.errors if OPERATORS in message]
    first = next(iter((*ours, *reasons, *logger.errors)), "no reason given")
    return EngineBuildFailed(f"{trt.__name__} {trt.__version__} {what}: {one_line(first)}")


def one_line(message: str) -> str:
    """A message of TensorRT's as part of a line."""
    text = " ".join(message.split())
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " ..."


def _parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return [f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors]


def _set_compute_capabilities(trt: Any, config: Any, capabilities: tuple[int, ...]) -> None:
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)


def _read_timing_cache(config: Any, request: EngineRequest) -> None:
    """Give the configuration the times of earlier builds; an empty cache where they do not fit this machine."""
    if request.timing_cache is None:
        return
    saved = Path(request.timing_cache)
    for data in (saved.read_bytes() if saved.is_file() else b"", b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _write_timing_cache(config: Any, request: EngineRequest) -> None:
    cache = None if request.timing_cache is None else config.get_timing_cache()
    if request.timing_cache is None or cache is None:
        return
    unfinished = Path(f"{request.output}.timing")
    unfinished.write_bytes(memoryview(cache.serialize()))
    unfinished.replace(request.timing_cache)


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> int:
    """Add a profile to the configuration; its index, or a negative number where TensorRT refuses it."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = {tensor.name for tensor in inputs if DYNAMIC in tuple(tensor.shape)}
    if dynamic != set(profile):
        names = ", ".join(sorted(dynamic ^ set(profile)))
        raise EngineBuildFailed(
            f"the graph's inputs are not those of its manifest, they differ in {names}; export again"
        )
    added = builder.create_optimization_profile()
    for name, (smallest, typical, greatest) in profile.items():
        added.set_shape(name, smallest, typical, greatest)
    return int(config.add_optimization_profile(added))


def _write_engine(trt: Any, builder: Any, network: Any, config: Any, file: IO[bytes]) -> FileEntry | None:
    """Build and write; None where TensorRT builds nothing."""
    writer = _HashingWriter(file)
    if not hasattr(builder, "build_serialized_network_to_stream"):
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            return None
        writer.write(memoryview(engine))
        return writer.entry()

    class Stream(trt.IStreamWriter):
        """Hands TensorRT's pieces on. TensorRT drops exceptions, so the first is kept."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                writer.write(data)
            except OSError as error:
                self.error = self.error or error
                return 0
            return len(data)

    stream = Stream()
    built = builder.build_serialized_network_to_stream(network, config, stream)
    if stream.error is not None:
        raise stream.error
    return writer.entry() if built else None


class _HashingWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def entry(self) -> FileEntry:
        return FileEntry(bytes=self._bytes, sha256=self._digest.hexdigest())


def main(request_file: str, reply_file: str) -> None:
    """Do what the request file says and write the reply file."""
    request = msgspec.json.decode(Path(request_file).read_bytes(), type=EngineRequest)
    try:
        reply = EngineReply(engine=build_engine(load_module(request.module, ""), request))
    except FastmmoeError as error:
        reply = EngineReply(engine=None, error=str(error))
    except OSError as error:
        reply = EngineReply(engine=None, error=f"cannot write {request.output}: {error.strerror}")
    Path(reply_file).write_bytes(msgspec.json.encode(reply))


if __name__ == "__main__":
    main(*sys.argv[1:])
