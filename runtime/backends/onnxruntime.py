# SPDX-License-Identifier: Apache-2.0
"""Runs a bundle's graphs in ONNX Runtime (CPU): vision, embedding, and the language model with its caches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastmmoe.runtime.backends.feeds import Chunk, call_feeds
from fastmmoe.runtime.backends.finite import check_finite
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.fit import check_fit, check_operators, check_weight_files
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, graph_file, weights_file
from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.bundle.signatures import signatures
from fastmmoe.runtime.errors import BundleMismatch, RunFailed
from fastmmoe.runtime.machines.threads import check_threads, usable_cores

Array = npt.NDArray[Any]

CPU_TARGET = "cpu"


class Graphs:
    """The three graphs of a bundle, loaded. One object may serve several threads, each with its own `Batch`.

    Args:
        portable: run the variant whose operators have function bodies, without the native library.
        threads: of ONNX Runtime's pool; 0 = one for each core that this process may use.
        spinning: idle threads ask for work without a pause. They find it sooner, and take the cores from whatever
            else runs: on a busy machine requests take several times as long (docs/benchmark.md).
    Raises:
        InvalidRequest: threads below 0 or more than four for each core.
        BundleMismatch: the bundle is for another target, has no portable variant, or the native library does not fit.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        portable: bool = False,
        threads: int = 0,
        spinning: bool = False,
    ) -> None:
        if manifest.target != CPU_TARGET:
            raise BundleMismatch(
                f"{directory}: exported for {manifest.target}, which needs TensorRT engines built on the device; "
                f"this version runs bundles exported with --target {CPU_TARGET}"
            )
        if portable and not manifest.portable:
            raise BundleMismatch(f"{directory}: the bundle has no portable variant")
        self.manifest = manifest
        load = functools.partial(load_graph, directory, manifest, portable=portable, threads=threads, spinning=spinning)
        self._vision, self._embedding, self._language_model = (load(graph) for graph in GRAPHS)
        self._weights = MappedFiles(directory / name for name in map(weights_file, GRAPHS) if name in manifest.files)

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] of every visual position."""
        self._weights.check_unchanged()
        return image_features(self._vision, vision_inputs)

    def embed(self, input_ids: Array) -> Array:
        """Token embeddings [T, H] of input_ids [T]."""
        self._weights.check_unchanged()
        return embed(self._embedding, input_ids)

    def new_batch(self, size: int = 1) -> Batch:
        """So many empty sequences."""
        return Batch(self.manifest, self._language_model, size, self._weights)


def image_features(vision: ort.InferenceSession, vision_inputs: dict[str, Array]) -> Array:
    """Features [V, H] of every visual position."""
    with _naming_the_graph("vision"):
        return vision.run([graph_io.IMAGE_FEATURES], vision_inputs)[0]


def embed(embedding: ort.InferenceSession, input_ids: Array) -> Array:
    """Token embeddings [T, H] of input_ids [T]."""
    with _naming_the_graph("embedding"):
        return embedding.run([graph_io.INPUTS_EMBEDS], {graph_io.INPUT_IDS: input_ids.astype(np.int32)})[0]


class Batch:
    """Sequences that share calls, and their key-value caches, which differ in length by layer group.

    Args:
        weights: files that must not change while it runs.
    Attributes:
        lengths: original positions of every sequence so far; its next token takes this one.
        kept_index: after `extend`, the rows of each site's input that survive it.
    """

    def __init__(
        self, manifest: Manifest, session: ort.InferenceSession, size: int, weights: MappedFiles | None = None
    ) -> None:
        self._session, self._weights = session, MappedFiles(()) if weights is None else weights
        self._info, self._policy = manifest.language_model, manifest.policy
        self._output_names = [output.name for output in session.get_outputs()]
        self._cache: dict[str, ort.OrtValue] = {}
        self._groups = graph_io.layer_groups(self._info.layers, self._policy.sites)
        dtype = np.dtype(manifest.activation_dtype)
        *heads, width = self._info.cache_shape
        for layer in range(self._info.layers):
            for name in graph_io.past_names(layer, self._info.cache_parts):
                self._cache[name] = _ort_value(np.zeros((1, *heads, 0, width), dtype))
        for group in range(len(self._groups)):
            self._cache[graph_io.past_sequence_ids(group)] = _ort_value(np.zeros(0, np.int32))
            if self._info.sliding_layers:
                self._cache[graph_io.past_position_ids(group)] = _ort_value(np.zeros(0, np.int32))
        self.lengths = [0] * size
        self.kept_index: list[Array] = []

    @property
    def cache_lengths(self) -> Array:
        """Cached tokens, int64 [sequences, layers]."""
        lengths = np.zeros((len(self.lengths), self._info.layers), np.int64)
        for group, layers in enumerate(self._groups):
            ids = self._cache[graph_io.past_sequence_ids(group)].numpy()
            lengths[:, list(layers)] = np.bincount(ids, minlength=len(self.lengths))[:, None]
        return lengths

    def extend(self, chunks: Sequence[Chunk], *, alpha: float, seed: int = 0) -> Array:
        """Append rows to some of the sequences: prompts, whose visual tokens are pruned, or one decoded token each.

        Args:
            chunks: one for each sequence of the call. alpha, seed: see `call_feeds`.
        Returns:
            logits [B, vocab] float32 of each chunk's last row.
        Raises:
            InvalidRequest: see `call_feeds`. NotFinite: the logits hold NaN or infinity. BundleMismatch: the files that
                the weights are read from have been written to. RunFailed: an operator refuses its inputs.
        """
        self._weights.check_unchanged()
        lengths = [self.lengths[chunk.sequence_id] for chunk in chunks]
        feeds = call_feeds(self._policy, chunks, lengths, alpha=alpha, seed=seed)
        values = {name: _ort_value(np.ascontiguousarray(value)) for name, value in feeds.items()}
        with _naming_the_graph("language_model"):
            outputs = self._session.run_with_ort_values(self._output_names, values | self._cache)
        by_name = dict(zip(self._output_names, outputs, strict=True))
        self._cache = {name: by_name[graph_io.present_name(name)] for name in self._cache}
        self.kept_index = [by_name[graph_io.kept_index(site)].numpy() for site in range(len(self._policy.sites))]
        for chunk in chunks:
            self.lengths[chunk.sequence_id] += len(chunk.inputs_embeds)
        logits = by_name[graph_io.LOGITS].numpy()
        self._weights.check_unchanged()
        check_finite(logits, chunks)
        return logits


@contextmanager
def _naming_the_graph(graph: str) -> Iterator[None]:
    """Have an error of ONNX Runtime, whose classes share no base of their own, come with the graph on one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RunFailed(f"{graph}: onnxruntime {ort.__version__} cannot run it: {reason}") from error


def _ort_value(value: Array) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(value)


def load_graph(
    directory: Path,
    manifest: Manifest,
    graph: str,
    *,
    portable: bool = False,
    threads: int = 0,
    spinning: bool = False,
) -> ort.InferenceSession:
    """One of GRAPHS as a session.

    Args:
        portable, threads, spinning: as of `Graphs`.
    Raises:
        BundleMismatch: ONNX Runtime cannot load it, the native library does not fit, or the graph does not fit the
            manifest.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = check_threads("threads", threads) or usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # Errors are raised; their lines would stand among the command's own.
    options.log_severity_level = 4
    if graph == "language_model" and not portable:
        register_native_ops(options, manifest.ops)
    path = directory / graph_file(graph, portable=portable)
    check_weight_files(path, graph, manifest)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise BundleMismatch(f"{path}: onnxruntime {ort.__version__} cannot load it: {reason}") from error
    check_fit(path, session, signatures(manifest)[graph])
    if graph == "language_model":
        check_operators(path, manifest)
    return session
