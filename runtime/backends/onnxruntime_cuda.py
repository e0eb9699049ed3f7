# SPDX-License-Identifier: Apache-2.0
"""An engine target's graphs in ONNX Runtime's CUDA provider. What the host does not ask for never leaves the device.

The experts' weights are inputs of the language model, read once into the device's memory; caches are made there, bound
once and written where they are. Features go from the vision graph's output to the rows of their visual tokens. Outputs
are fetched by name, so logits leave the device only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastmmoe.runtime.backends.base import Feeds, Observed
from fastmmoe.runtime.backends.device_memory import DeviceMemory, ort_value
from fastmmoe.runtime.backends.elements import as_dtype, no_room, tensor_bytes
from fastmmoe.runtime.backends.native import register_cuda_ops
from fastmmoe.runtime.backends.onnxruntime import Bindings, OnnxRuntime, naming_the_graph, ort
from fastmmoe.runtime.backends.rows import PromptRows, placements
from fastmmoe.runtime.backends.settings import CUDA, DEFAULTS, Settings
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, weights_file
from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS
from fastmmoe.runtime.types import Array


@dataclass(frozen=True)
class DeviceFeatures:
    """Features [V, H] in the device's memory."""

    value: ort.OrtValue

    def __len__(self) -> int:
        return int(self.value.shape()[0])


class CudaOnnxRuntime(OnnxRuntime):
    """The graphs of an engine target's bundle on a GPU (see `Backend`).

    Raises:
        RunFailed: the device has too little memory for the experts' weights.

    Attributes:
        DEVICE: what ONNX Runtime calls it.
    """

    provider: str = CUDA
    DEVICE: ClassVar[str] = "cuda"
    # Every number of tiles is a shape of its own, for which the default would time all convolutions of cuDNN.
    PROVIDERS: ClassVar[list[Any]] = [
        ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"})
    ]

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        settings: Settings = DEFAULTS,
        *,
        graphs: Sequence[str] = GRAPHS,
        observed: Observed | None = None,
    ) -> None:
        super().__init__(directory, manifest, settings, graphs=graphs, observed=observed)
        self._memory = DeviceMemory(self.DEVICE, self.PROVIDERS)
        self._dtypes = {tensor.name: tensor.dtype for tensor in signatures.signatures(manifest)["vision"].inputs}
        experts = manifest.experts.inputs if "language_model" in graphs else {}
        with naming_the_graph("language_model"):
            self._experts = self._memory.load(directory / weights_file("language_model"), experts)

    def close(self) -> None:
        """Let the sessions and the experts' weights go."""
        super().close()
        self._experts.clear()

    def image_features(self, vision_inputs: dict[str, Array]) -> DeviceFeatures:
        """Features [V, H] of every visual position."""
        values = {name: ort_value(as_dtype(value, self._dtypes[name])) for name, value in vision_inputs.items()}
        return DeviceFeatures(self._compute("vision", values, graph_io.IMAGE_FEATURES))

    def embed(
        self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: DeviceFeatures | None = None
    ) -> PromptRows[DeviceFeatures]:
        """See `Backend.embed`."""
        return PromptRows(np.asarray(input_ids, np.int32), np.asarray(visual_index), features)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Bindings | None = None) -> Bindings:
        """See `Backend.new_caches`."""
        shapes = self._cache_shapes(sequences, capacities)
        try:
            values = self._cache_values(shapes, {} if before is None else before.values)
        except Exception as error:
            raise RunFailed(no_room(shapes, " ".join(str(error).split()))) from error
        return Bindings(self._session("language_model"), values, self._experts)

    def extend(self, feeds: Feeds, caches: Bindings, wanted: Sequence[str]) -> dict[str, Array]:
        """One call of the language model; see `Backend.extend`."""
        return super().extend(
            feeds | {graph_io.INPUTS_EMBEDS: self._embeds(feeds[graph_io.INPUTS_EMBEDS])}, caches, wanted
        )

    def _embeds(self, prompts: Sequence[PromptRows[DeviceFeatures]]) -> ort.OrtValue:
        """Embeddings [T, H] of a call, with the pictures' features at its visual tokens."""
        ids = np.concatenate([prompt.input_ids for prompt in prompts])
        embeds = self._compute("embedding", {graph_io.INPUT_IDS: ort_value(ids)}, graph_io.INPUTS_EMBEDS)
        row = tensor_bytes((self.info.hidden_size,), self.manifest.activation_dtype)
        with naming_the_graph("embedding"):
            for features, copies in placements(prompts):
                for place, start, count in copies:
                    source = features.value.data_ptr() + start * row
                    self._memory.copy(embeds.data_ptr() + place * row, source, count * row)
        return embeds

    def _compute(self, graph: str, inputs: Mapping[str, ort.OrtValue], output: str) -> ort.OrtValue:
        """An output of a graph, left in the device's memory."""
        self._weights.check_unchanged(weights_file(graph))
        session = self._session(graph)
        with naming_the_graph(graph):
            binding = session.io_binding()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_output(output, self.DEVICE, 0)
            session.run_with_iobinding(binding)
            return binding.get_outputs()[0]

    def _cache_values(
        self, shapes: Mapping[str, tuple[tuple[int, ...], str]], before: Mapping[str, ort.OrtValue]
    ) -> dict[str, ort.OrtValue]:
        """Caches of these shapes; those that do not grow are the ones there were."""
        values = {}
        for name, (shape, dtype) in shapes.items():
            old = before.get(name)
            if old is None:
                values[name] = self._memory.empty(shape, dtype)
            else:
                is_enough = tuple(old.shape()) == shape
                values[name] = old if is_enough else self._memory.grow(old, shape, dtype)
        return values

    def _register(self, options: ort.SessionOptions) -> None:
        register_cuda_ops(options, self.manifest.ops)
