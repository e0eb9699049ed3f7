# SPDX-License-Identifier: Apache-2.0
"""What each of fastmmoe's stages did to every visual token of a prompt, seen in a graph that shows its inner values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune.reference import choose_reference, windows_reference
from fastmmoe.runtime.backends.feeds import Chunk
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.backends.onnxruntime import Batch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import Manifest, graph_file
from fastmmoe.runtime.errors import InvalidRequest

Array = npt.NDArray[Any]

FASTMMOE = "fastmmoe"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Of FmmTokenPrune.
_RESIDUAL, _ROUTING, _ATTENTION, _VISUAL_INDEX = (
    [tensor.name for tensor in TOKEN_PRUNE.inputs].index(name)
    for name in ("residual", "routing_probs", "attention", "visual_index")
)
_RESIDUAL_OUT, _KEPT_INDEX = 1, 2


class Fate(IntEnum):
    """Of a visual token at a stage. MERGED: its window became one vector, which stands where its first token stood."""

    KEPT, MERGED, DROPPED, GONE = range(4)


@dataclass(frozen=True)
class Stage:
    """One stage of fastmmoe.

    Attributes:
        layer: between whose attention and MoE block it prunes.
        fates: uint8 [V], a `Fate` for each visual token of the prompt; GONE = an earlier stage dropped or merged it.
        similarity: float32 [V], how alike the routing of its window is (s_g of spec section 2); NaN for tokens that
            are GONE.
    """

    layer: int
    fates: Array
    similarity: Array

    def count(self, fate: Fate) -> int:
        """Tokens of this fate."""
        return int((self.fates == fate).sum())


class StageTracer:
    """A bundle's language model with the values that its prune stages choose by as further outputs.

    Needs the package onnx, to name these outputs; the weights are those of the bundle.

    Raises:
        InvalidRequest: the graph has no stages of fastmmoe.
    """

    def __init__(self, bundle: Path, manifest: Manifest, *, threads: int = 1) -> None:
        import onnx

        self._manifest = manifest
        self._sites = [s for s, site in enumerate(manifest.policy.sites) if FASTMMOE in site.methods]
        if not self._sites:
            raise InvalidRequest(f"{bundle}: holds method {manifest.policy.method}: expected {FASTMMOE} or all")
        model = onnx.load(str(bundle / graph_file("language_model")), load_external_data=False)
        by_output = {name: node for node in model.graph.node for name in node.output}
        self._nodes = [by_output[graph_io.kept_index(site)] for site in self._sites]
        known = {value.name for value in (*model.graph.input, *model.graph.output)}
        inner = [node.input[i] for node in self._nodes for i in (_RESIDUAL, _ROUTING, _ATTENTION, _VISUAL_INDEX)]
        inner += [node.output[_RESIDUAL_OUT] for node in self._nodes]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(inner) if n not in known)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(bundle))
        register_native_ops(options, manifest.ops)
        self._session = _Recorder(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def trace(self, chunk: Chunk, *, alpha: float | None = None) -> list[Stage]:
        """Prefill one prompt by fastmmoe and say what its stages did.

        Args:
            chunk: of sequence 0, its schedule by fastmmoe. alpha: None = the bundle's.
        """
        policy = self._manifest.policy
        batch = Batch(self._manifest, self._session, 1)
        batch.extend([chunk], alpha=policy.alpha if alpha is None else alpha)
        values = {name: value.numpy() for name, value in self._session.values.items()}
        values.setdefault(graph_io.VISUAL_INDEX, chunk.visual_index)
        alive = np.arange(len(chunk.visual_index))
        stages = []
        for site, node in zip(self._sites, self._nodes, strict=True):
            fates = np.full(len(chunk.visual_index), Fate.GONE, np.uint8)
            similarity = np.full(len(chunk.visual_index), np.nan, np.float32)
            own, similarity[alive], survivors = self._stage(node, values)
            fates[alive] = own
            stages.append(Stage(policy.sites[site].layer, fates, similarity))
            alive = alive[survivors]
        return stages

    def _stage(self, node: Any, values: dict[str, Array]) -> tuple[Array, Array, Array]:
        """Fate and similarity of the tokens that a stage meets, and the numbers of those that go on."""
        visual_index, kept_index = values[node.input[_VISUAL_INDEX]], values[node.output[_KEPT_INDEX]]
        before, after = values[node.input[_RESIDUAL]], values[node.output[_RESIDUAL_OUT]]
        # A kept row is passed on bit by bit; a merged one has other values than the first of its window.
        has_changed = (before[kept_index] != after).any(axis=1)
        survivors = np.flatnonzero(np.isin(visual_index, kept_index))
        merged_rows = kept_index[has_changed]
        first, length = windows_reference(visual_index, self._manifest.policy.window)
        fates = np.full(len(visual_index), Fate.DROPPED, np.uint8)
        fates[survivors] = Fate.KEPT
        window_of = np.repeat(np.arange(len(first)), length)
        is_merged = np.isin(visual_index[first], merged_rows)
        fates[is_merged[window_of]] = Fate.MERGED
        # With all weight on redundancy a window's score is its similarity.
        routing, attention = values[node.input[_ROUTING]], values[node.input[_ATTENTION]]
        window = self._manifest.policy.window
        similarity = choose_reference(routing, attention, visual_index, len(survivors), 0, 1.0, window)[2]
        return fates, similarity[window_of], survivors


class _Recorder(ort.InferenceSession):  # type: ignore[misc]
    """An inference session that keeps the outputs of its last run."""

    values: dict[str, ort.OrtValue]

    def run_with_ort_values(self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None) -> Any:
        outputs = super().run_with_ort_values(output_names, input_dict_ort_values, run_options)
        self.values = dict(zip(output_names, outputs, strict=True))
        return outputs
