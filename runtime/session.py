# SPDX-License-Identifier: Apache-2.0
"""Runs a bundle's graphs in ONNX Runtime (CPU): vision, embedding, and the language model with its caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastmmoe.runtime import abi
from fastmmoe.runtime.bundle import Manifest, graph_file
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.native import register_native_ops
from fastmmoe.runtime.policy import Schedule

Array = npt.NDArray[Any]

CPU_TARGET = "cpu"


class Graphs:
    """The three graphs of a bundle, loaded. One object may serve several threads, each with its own `Sequence`.

    Args:
        portable: run the variant whose operators have function bodies, without the native library.
        threads: of ONNX Runtime's pool; 0 = one per core.
    Raises:
        BundleMismatch: the bundle is for another target, has no portable variant, or the native library does not fit.
    """

    def __init__(self, directory: Path, manifest: Manifest, *, portable: bool = False, threads: int = 0) -> None:
        if manifest.target != CPU_TARGET:
            raise BundleMismatch(
                f"{directory}: exported for {manifest.target}, which needs TensorRT engines built on the device; "
                f"this version runs bundles exported with --target {CPU_TARGET}"
            )
        if portable and not manifest.portable:
            raise BundleMismatch(f"{directory}: the bundle has no portable variant")
        self.manifest = manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._vision = _load(directory / graph_file("vision"), options)
        self._embedding = _load(directory / graph_file("embedding"), options)
        if not portable:
            register_native_ops(options, manifest.ops)
        self._language_model = _load(directory / graph_file("language_model", portable=portable), options)

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] of every visual position."""
        return self._vision.run([abi.IMAGE_FEATURES], vision_inputs)[0]

    def embed(self, input_ids: Array) -> Array:
        """Token embeddings [T, H] of input_ids [T]."""
        return self._embedding.run([abi.INPUTS_EMBEDS], {abi.INPUT_IDS: input_ids.astype(np.int32)})[0]

    def new_sequence(self) -> Sequence:
        """An empty sequence."""
        return Sequence(self.manifest, self._language_model)


class Sequence:
    """One sequence's key-value caches, which differ in length by layer group once visual tokens are pruned.

    Attributes:
        length: original positions so far; the next token takes this one.
        kept_index: after `extend`, the surviving rows of each stage's input.
    """

    def __init__(self, manifest: Manifest, session: ort.InferenceSession) -> None:
        self._session = session
        self._info, self._policy = manifest.language_model, manifest.policy
        self._groups = abi.layer_groups(self._info.layers, self._policy.prune_layers)
        self._output_names = [output.name for output in session.get_outputs()]
        self._cache: dict[str, ort.OrtValue] = {}
        dtype = np.dtype(manifest.activation_dtype)
        *heads, width = self._info.cache_shape
        for layer in range(self._info.layers):
            for name in abi.past_names(layer, self._info.cache_parts):
                self._cache[name] = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, *heads, 0, width), dtype))
        if self._info.sliding_layers:
            for group in range(len(self._groups)):
                empty = ort.OrtValue.ortvalue_from_numpy(np.zeros(0, np.int32))
                self._cache[abi.past_position_ids(group)] = empty
        self.length = 0
        self.kept_index: list[Array] = []

    @property
    def cache_lengths(self) -> list[int]:
        """Cached tokens of every layer."""
        names = (abi.past_names(layer, self._info.cache_parts)[0] for layer in range(self._info.layers))
        return [self._cache[name].shape()[-2] for name in names]

    def extend(self, inputs_embeds: Array, visual_index: Array, schedule: Schedule, alpha: float) -> Array:
        """Append tokens: a prompt, whose visual tokens are pruned by the schedule, or one decoded token.

        Args:
            inputs_embeds: [T, H]. visual_index: int32 [V], ascending; the schedule is for this V.
        Returns:
            logits [vocab] float32 of the last token.
        """
        tokens = len(inputs_embeds)
        feeds = {
            abi.INPUTS_EMBEDS: inputs_embeds,
            abi.POSITION_IDS: np.arange(self.length, self.length + tokens, dtype=np.int32),
            abi.VISUAL_INDEX: visual_index.astype(np.int32),
        }
        if self._policy.method != "none":
            feeds[abi.VISUAL_TOP_K] = np.array(schedule.visual_top_k, np.int32)
            feeds[abi.ALPHA] = np.full(len(self._policy.prune_layers), alpha, np.float32)
        for stage in range(len(self._policy.prune_layers)):
            feeds[abi.keep_slots(stage)] = np.zeros(schedule.keep[stage], np.int8)
            feeds[abi.merge_slots(stage)] = np.zeros(schedule.merge[stage], np.int8)
        values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for name, v in feeds.items()}
        outputs = self._session.run_with_ort_values(self._output_names, values | self._cache)
        by_name = dict(zip(self._output_names, outputs, strict=True))
        self._keep_caches(by_name)
        self.kept_index = [by_name[abi.kept_index(s)].numpy() for s in range(len(self._policy.prune_layers))]
        self.length += tokens
        return by_name[abi.LOGITS].numpy()[0]

    def _keep_caches(self, outputs: dict[str, ort.OrtValue]) -> None:
        for layer in range(self._info.layers):
            parts = self._info.cache_parts
            for past, present in zip(abi.past_names(layer, parts), abi.present_names(layer, parts), strict=True):
                self._cache[past] = outputs[present]
        if self._info.sliding_layers:
            for group in range(len(self._groups)):
                self._cache[abi.past_position_ids(group)] = outputs[abi.present_position_ids(group)]


def _load(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise BundleMismatch(f"{path}: onnxruntime {ort.__version__} cannot load it: {reason}") from error
