# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs in ONNX Runtime, on the CPU; onnxruntime_cuda.py has them on a GPU.

Raises BackendMissing on import where ONNX Runtime is not installed.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastmmoe.runtime.backends.base import CLOSED, Features, Feeds, Observed, OfManifest, place_features
from fastmmoe.runtime.backends.device_memory import ort_value
from fastmmoe.runtime.backends.distribution import check_onnxruntime
from fastmmoe.runtime.backends.fit import check_fit, check_linears, check_operators, check_weight_files
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.backends.node_times import Call, read_trace
from fastmmoe.runtime.backends.settings import CPU, DEFAULTS, Settings
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, graph_file, weights_file
from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.errors import BackendMissing, BundleMismatch, FastmmoeError, InvalidRequest, RunFailed
from fastmmoe.runtime.machines.threads import check_threads, usable_cores
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk, Rows
from fastmmoe.runtime.types import Array

check_onnxruntime()
import onnxruntime as ort  # noqa: E402  (only once it is known to be whole)

if TYPE_CHECKING:
    import onnx

_LINE = 64
_WEIGHTS = {graph: weights_file(graph) for graph in GRAPHS}
ONNXRUNTIME_VERSION: str = ort.__version__
_SPINNING = "session.intra_op.allow_spinning"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Bindings:
    """Inputs and outputs of a session, bound once: a call writes its feeds where those of the call before are.

    Attributes:
        values: key-value caches by input; each is bound to the input and to the output that has its address.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        values: Mapping[str, ort.OrtValue],
        constants: Mapping[str, ort.OrtValue] | None = None,
    ) -> None:
        """constants: inputs that nothing writes to."""
        self.values, self._session, self._binding = values, session, session.io_binding()
        for name, value in (constants or {}).items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._fed: dict[str, Array | ort.OrtValue] = {}
        self._arrays: dict[str, Array] = {}
        self._found: dict[str, Array] | None = None

    def run(self, feeds: Mapping[str, Array | ort.OrtValue], fetched: list[str]) -> dict[str, Array]:
        """One call: these outputs, in the host's memory; the caches get its rows.

        Args:
            feeds: nobody may have written to what was fed before and comes again. Their shapes decide the outputs'.
        """
        fed = self._fed
        for name, value in feeds.items():
            if value is not fed.get(name):
                self._feed(name, value)
        if self._found is None or [*self._found] != fetched:
            return self._run_first(fetched)
        self._session.run_with_iobinding(self._binding)
        # The next call writes over them.
        return {name: found.copy() for name, found in self._found.items()}

    def _feed(self, name: str, value: Array | ort.OrtValue) -> None:
        before, bound = self._fed.get(name), self._arrays.get(name)
        if isinstance(value, ort.OrtValue):
            is_alike = isinstance(before, ort.OrtValue) and before.shape() == value.shape()
            self._binding.bind_ortvalue_input(name, value)
        elif is_alike := bound is not None and (bound.shape, bound.dtype) == (value.shape, value.dtype):
            bound[...] = value
        else:
            # A copy, as the next call writes to it.
            bound = np.array(value, order="C")
            self._binding.bind_ortvalue_input(name, ort_value(bound))
            self._arrays[name] = bound
        if not is_alike:
            self._found = None
        self._fed[name] = value

    def _run_first(self, fetched: list[str]) -> dict[str, Array]:
        """A call that finds outputs of other names or shapes than the one before, for which it binds memory."""
        self._found = None
        self._binding.clear_binding_outputs()
        for name, value in self.values.items():
            self._binding.bind_ortvalue_output(graph_io.present_name(name), value)
        for name in fetched:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()[len(self.values) :]
        outputs = {name: value.numpy() for name, value in zip(fetched, values, strict=True)}
        self._found = {name: np.empty_like(output) for name, output in outputs.items()}
        for name, found in self._found.items():
            self._binding.bind_ortvalue_output(name, ort_value(found))
        return outputs


class BoundCaches(Bindings):
    """Key-value caches that a language model's session reads and writes where they are.

    Attributes:
        arrays: by input; of bfloat16 they hold the bits (`ort_value`).
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        arrays: dict[str, Array],
        constants: Mapping[str, ort.OrtValue] | None = None,
    ) -> None:
        super().__init__(session, {name: ort_value(array) for name, array in arrays.items()}, constants)
        self.arrays = arrays


class OnnxRuntime(OfManifest):
    """The graphs of a bundle as sessions of ONNX Runtime (see `Backend`).

    Args:
        graphs: those to load; only these may be used.
        observed: what the language model returns beside its outputs (see `Observable`).
    Raises:
        InvalidRequest: threads below 0 or more than four for each core.
        BackendMissing: ONNX Runtime starts without the provider.
        BundleMismatch: ONNX Runtime cannot load a graph, it does not fit the manifest, the bundle has no portable
            variant, or the library of our operators does not fit.

    Attributes:
        provider: its name in statistics.
        PROVIDERS: ONNX Runtime's own names and options, the first of which must be there.
    """

    provider: str = CPU
    PROVIDERS: ClassVar[list[Any]] = ["CPUExecutionProvider"]
    # Of all threads: most calls embed one token.
    _embedding: Bindings | None
    # Inputs of the language model that nothing writes to.
    _constants: Mapping[str, ort.OrtValue] = MappingProxyType({})

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        settings: Settings = DEFAULTS,
        *,
        graphs: Sequence[str] = GRAPHS,
        observed: Observed | None = None,
    ) -> None:
        if settings.portable and not manifest.portable:
            raise BundleMismatch(f"{directory}: the bundle has no portable variant")
        self.manifest, self._directory, self._settings = manifest, directory, settings
        self._shown: dict[str, str] = {}
        if settings.profile:
            self._traces = tempfile.TemporaryDirectory(prefix="fastmmoe-")
        self._sessions = {graph: self._load(graph, observed) for graph in graphs}
        self._embedding, self._embedding_lock = None, threading.Lock()
        self._weights = MappedFiles(directory / name for name in map(weights_file, graphs) if name in manifest.files)
        given = {tensor.name for tensor in signatures.signatures(manifest)["language_model"].inputs}
        self._unasked = [name for name in self._shown.values() if name not in given]

    def close(self) -> None:
        """Let the sessions go."""
        self._sessions.clear()
        self._embedding = None

    def image_features(self, vision_inputs: dict[str, Array]) -> Features:
        """Features [V, H] of every visual position."""
        session = self._session("vision")
        self._weights.check_unchanged(_WEIGHTS["vision"])
        with naming_the_graph("vision"):
            features: Array = session.run([graph_io.IMAGE_FEATURES], vision_inputs)[0]
        return features

    def embed(self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: Features | None = None) -> Rows:
        """Embeddings [T, H] of a prompt; see `Backend.embed`."""
        session, ids = self._session("embedding"), input_ids.astype(np.int32)
        self._weights.check_unchanged(_WEIGHTS["embedding"])
        with naming_the_graph("embedding"), self._embedding_lock:
            self._embedding = self._embedding or Bindings(session, {})
            outputs = self._embedding.run({graph_io.INPUT_IDS: ids}, [graph_io.INPUTS_EMBEDS])
        return place_features(outputs[graph_io.INPUTS_EMBEDS], visual_index, features)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Any | None = None) -> Bindings:
        """See `Backend.new_caches`."""
        shapes = self._cache_shapes(sequences, capacities)
        arrays = {name: _aligned(shape, of_cache) for name, (shape, of_cache) in shapes.items()}
        for name, old in {} if before is None else before.arrays.items():
            arrays[name][tuple(map(slice, old.shape))] = old
        return BoundCaches(self._session("language_model"), arrays, self._constants)

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """A call takes any number of prompts."""
        return True

    def extend(self, feeds: Feeds, caches: Bindings, wanted: Sequence[str]) -> dict[str, Array]:
        """One call of the language model; see `Backend.extend`."""
        self._session("language_model")
        self._weights.check_unchanged(_WEIGHTS["language_model"])
        with naming_the_graph("language_model"):
            outputs = caches.run(feeds, list(dict.fromkeys((*wanted, *self._unasked))))
        self._weights.check_unchanged()
        if not self._shown:
            return outputs
        # A value that is observed may be an input of the graph, and the same one for several nodes.
        shown = {label: outputs[name] if name in outputs else feeds[name] for label, name in self._shown.items()}
        return {name: outputs[name] for name in wanted} | shown

    def decode(self, feeds: Feeds, caches: Bindings, steps: int) -> None:
        """None: each step is a call of its own."""

    def observe(self, observed: Observed) -> OnnxRuntime:
        """The same language model with further outputs; see `Observable`. Needs the package onnx, to name them."""
        return type(self)(self._directory, self.manifest, self._settings, graphs=("language_model",), observed=observed)

    def end_profiling(self) -> dict[str, list[Call]]:
        """See `Profilable`."""
        return {graph: read_trace(Path(session.end_profiling())) for graph, session in self._sessions.items()}

    def _session(self, graph: str) -> ort.InferenceSession:
        """Raises InvalidRequest once the model is closed."""
        if not self._sessions:
            raise InvalidRequest(CLOSED)
        return self._sessions[graph]

    def _cache_shapes(self, sequences: int, capacities: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        dtype = self.manifest.cache_dtype
        return signatures.cache_shapes(self.info, self.policy, dtype, sequences, capacities)

    def _load(self, graph: str, observed: Observed | None) -> ort.InferenceSession:
        manifest, is_portable = self.manifest, self._settings.portable
        path = self._directory / graph_file(graph, portable=is_portable and graph in manifest.operator_graphs)
        options = self._session_options(graph)
        check_weight_files(path, graph, manifest)
        model: str | bytes = str(path)
        if observed is not None:
            import onnx

            shown = onnx.load(str(path), load_external_data=False)
            self._shown = _show(shown.graph, observed)
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(self._directory))
            model = shown.SerializeToString()
        try:
            session = ort.InferenceSession(model, options, providers=self.PROVIDERS)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise BundleMismatch(f"{path}: onnxruntime {ONNXRUNTIME_VERSION} cannot load it: {reason}") from error
        self._check_provider(session)
        if observed is None:
            check_fit(path, session, signatures.signatures(manifest)[graph])
        if graph == "language_model":
            check_operators(path, manifest)
        elif graph in manifest.operator_graphs:
            check_linears(path, manifest)
        return session

    def _session_options(self, graph: str) -> ort.SessionOptions:
        settings, options = self._settings, ort.SessionOptions()
        options.intra_op_num_threads = check_threads("threads", settings.threads) or usable_cores()
        options.add_session_config_entry(_SPINNING, str(int(settings.spinning)))
        # Errors are raised; their lines would stand among the command's own.
        options.log_severity_level = 4
        if settings.profile:
            options.enable_profiling, options.profile_file_prefix = True, str(Path(self._traces.name) / graph)
        if graph in self.manifest.operator_graphs and not settings.portable:
            self._register(options)
        return options

    def _register(self, options: ort.SessionOptions) -> None:
        """Make our operators known to a session."""
        register_native_ops(options, self.manifest.ops)

    def _check_provider(self, session: ort.InferenceSession) -> None:
        """ONNX Runtime goes on with the CPU alone where a provider does not start."""
        wanted = self.PROVIDERS[0] if isinstance(self.PROVIDERS[0], str) else self.PROVIDERS[0][0]
        found = session.get_providers()
        if wanted not in found:
            raise BackendMissing(
                f"onnxruntime {ONNXRUNTIME_VERSION} has started {', '.join(found)} alone, expected {wanted}: see that "
                f"driver and CUDA libraries are those that it was built for"
            )


def open_graph(path: str) -> ort.InferenceSession:
    """A session of any graph with our operators, on the CPU, for programs that bring its inputs themselves.

    Raises:
        BundleMismatch: see `register_native_ops`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry(_SPINNING, str(int(DEFAULTS.spinning)))
    register_native_ops(options, {})
    return ort.InferenceSession(path, options, providers=OnnxRuntime.PROVIDERS)


def _show(graph: onnx.GraphProto, observed: Observed) -> dict[str, str]:
    """What `observed` calls a value -> its name in the graph; those that it does not give yet become outputs."""
    import onnx

    shown: dict[str, str] = {}
    for n, node in enumerate(node for node in graph.node if node.op_type == observed.operator):
        shown |= {f"{node.op_type}.{name}.{n}": node.input[place] for name, place in observed.inputs.items()}
        shown |= {f"{node.op_type}.{name}.{n}": node.output[place] for name, place in observed.outputs.items()}
    known = {value.name for value in (*graph.input, *graph.output)}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(shown.values()) if name not in known)
    return shown


class naming_the_graph:  # noqa: N801  (a context manager; as a generator it would take a decode step longer)
    """Have an error of ONNX Runtime, whose classes share no base of their own, come with the graph on one line."""

    def __init__(self, graph: str) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, FastmmoeError):
            reason = " ".join(str(error).split())
            raise RunFailed(f"{self._graph}: onnxruntime {ONNXRUNTIME_VERSION} cannot run it: {reason}") from error


def _aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """An array with anything in it, whose rows begin where cache lines do: decoding reads nothing else.

    Of bfloat16 it holds the bits, uint16.
    """
    dtype = "uint16" if dtype == "bfloat16" else dtype
    count = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(count + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + count].view(dtype).reshape(shape)


def run_model(model: bytes, inputs: Mapping[str, Array]) -> list[Array]:
    """All outputs of a model, in a session of its own; uint16 inputs are the bits of bfloat16.

    Raises:
        RunFailed: ONNX Runtime cannot load or run it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = usable_cores(), 4
    with naming_the_graph("a model"):
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        values = session.run_with_ort_values(None, {name: ort_value(value) for name, value in inputs.items()})
    return [value.numpy() for value in values]
