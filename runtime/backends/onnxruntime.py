# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs in ONNX Runtime, on the CPU. Raises BackendMissing on import where that is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastmmoe.runtime.backends.base import Observed
from fastmmoe.runtime.backends.distribution import check_onnxruntime
from fastmmoe.runtime.backends.fit import check_fit, check_operators, check_weight_files
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.backends.settings import DEFAULTS, Settings
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, LanguageModelInfo, Manifest, graph_file, weights_file
from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.errors import BundleMismatch, RunFailed
from fastmmoe.runtime.machines.threads import check_threads, usable_cores
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.types import Array

check_onnxruntime()
import onnxruntime as ort  # noqa: E402  (only once it is known to be whole)

if TYPE_CHECKING:
    import onnx

Values: TypeAlias = dict[str, ort.OrtValue]

PROVIDERS = ["CPUExecutionProvider"]
ONNXRUNTIME_VERSION: str = ort.__version__
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRuntime:
    """The graphs of a bundle as sessions of ONNX Runtime (see `Backend`).

    Args:
        graphs: those to load; only these may be used.
        observed: what the language model returns beside its outputs (see `Observable`).
    Raises:
        InvalidRequest: threads below 0 or more than four for each core.
        BundleMismatch: ONNX Runtime cannot load a graph, it does not fit the manifest, the bundle has no portable
            variant, or the native library does not fit.
    """

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
        self._sessions = {graph: self._load(graph, observed) for graph in graphs}
        self._weights = MappedFiles(directory / name for name in map(weights_file, graphs) if name in manifest.files)
        language_model = self._sessions.get("language_model")
        # Asked once: a decode step has no use for it.
        self._output_names = [] if language_model is None else [output.name for output in language_model.get_outputs()]
        self._outputs = {output.name for output in signatures.signatures(manifest)["language_model"].outputs}

    @property
    def info(self) -> LanguageModelInfo:
        """Sizes of the language model."""
        return self.manifest.language_model

    @property
    def policy(self) -> Policy:
        """The prune sites in its graph."""
        return self.manifest.policy

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] of every visual position."""
        return self._run("vision", graph_io.IMAGE_FEATURES, vision_inputs)

    def embed(self, input_ids: Array) -> Array:
        """Token embeddings [T, H] of input_ids [T]."""
        return self._run("embedding", graph_io.INPUTS_EMBEDS, {graph_io.INPUT_IDS: input_ids.astype(np.int32)})

    def new_caches(self) -> Values:
        """Caches that hold no tokens."""
        caches = signatures.empty_caches(self.info, self.policy, self.manifest.activation_dtype)
        return {name: _ort_value(value) for name, value in caches.items()}

    def extend(self, feeds: dict[str, Array], caches: Values) -> tuple[dict[str, Array], Values]:
        """One call of the language model; see `Backend.extend`."""
        session = self._sessions["language_model"]
        self._weights.check_unchanged()
        values = {name: _ort_value(np.ascontiguousarray(value)) for name, value in feeds.items()}
        names = self._output_names
        with _naming_the_graph("language_model"):
            outputs = dict(zip(names, session.run_with_ort_values(names, values | caches), strict=True))
        self._weights.check_unchanged()
        carried = {name: outputs.pop(graph_io.present_name(name)) for name in caches}
        # A value that is observed may be an input of the graph, and the same one for several nodes.
        shown = {
            label: outputs[name].numpy() if name in outputs else feeds[name] for label, name in self._shown.items()
        }
        return {name: value.numpy() for name, value in outputs.items() if name in self._outputs} | shown, carried

    def observe(self, observed: Observed) -> OnnxRuntime:
        """The same language model with further outputs; see `Observable`. Needs the package onnx, to name them."""
        return OnnxRuntime(
            self._directory, self.manifest, self._settings, graphs=("language_model",), observed=observed
        )

    def end_profiling(self) -> Path:
        """The language model's node times, where the settings ask for them; no more are written."""
        return Path(self._sessions["language_model"].end_profiling())

    def _run(self, graph: str, output: str, inputs: dict[str, Array]) -> Array:
        self._weights.check_unchanged()
        with _naming_the_graph(graph):
            values: Array = self._sessions[graph].run([output], inputs)[0]
        return values

    def _load(self, graph: str, observed: Observed | None) -> ort.InferenceSession:
        manifest, is_portable = self.manifest, self._settings.portable
        path = self._directory / graph_file(graph, portable=is_portable)
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
            session = ort.InferenceSession(model, options, providers=PROVIDERS)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise BundleMismatch(f"{path}: onnxruntime {ONNXRUNTIME_VERSION} cannot load it: {reason}") from error
        if observed is None:
            check_fit(path, session, signatures.signatures(manifest)[graph])
        if graph == "language_model":
            check_operators(path, manifest)
        return session

    def _session_options(self, graph: str) -> ort.SessionOptions:
        settings, options = self._settings, ort.SessionOptions()
        options.intra_op_num_threads = check_threads("threads", settings.threads) or usable_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
        # Errors are raised; their lines would stand among the command's own.
        options.log_severity_level = 4
        if graph == "language_model":
            if settings.profile is not None:
                options.enable_profiling, options.profile_file_prefix = True, settings.profile
            if not settings.portable:
                register_native_ops(options, self.manifest.ops)
        return options


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


@contextmanager
def _naming_the_graph(graph: str) -> Iterator[None]:
    """Have an error of ONNX Runtime, whose classes share no base of their own, come with the graph on one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RunFailed(f"{graph}: onnxruntime {ONNXRUNTIME_VERSION} cannot run it: {reason}") from error


def _ort_value(value: Array) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(value)
