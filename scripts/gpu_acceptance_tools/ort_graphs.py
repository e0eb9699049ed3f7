# SPDX-License-Identifier: Apache-2.0
"""A float16 bundle of engines' graphs in ONNX Runtime, with our operators on the GPU: a small `Backend`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from fastmmoe.runtime.backends.base import Feeds, OfManifest, place_features
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import (
    MANIFEST,
    Manifest,
    graph_file,
    weights_file,
)
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.ort_cuda import session
from gpu_acceptance_tools.work import Work

GRAPHS = ("vision", "embedding", "language_model")
DTYPES = {"float16": torch.float16, "float32": torch.float32, "int32": torch.int32, "int8": torch.int8}
Tensors = dict[str, torch.Tensor]


class OrtGraphs(OfManifest):
    """See `Backend`. Caches and experts are torch's tensors, bound by address.

    Args:
        library: our operators.
        experts: the weights that the language model takes as inputs; None: from the file of its weights.
    """

    def __init__(
        self,
        work: Work,
        ort: Any,
        directory: Path,
        library: Path,
        *,
        graphs: Iterable[str] = GRAPHS,
        experts: Tensors | None = None,
    ) -> None:
        # No bundle that fastmmoe takes: parts of one are missing on purpose.
        self.manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
        self._device = work.device
        opened = {g: session(work, ort, directory / graph_file(g), library=library) for g in graphs}
        self._sessions = {graph: found for graph, (found, _) in opened.items()}
        self._memory = next(memory for _, memory in opened.values())
        self._experts = self._read_experts(directory) if experts is None else experts

    def _read_experts(self, directory: Path) -> Tensors:
        found = {}
        for name, tensor in self.manifest.experts.inputs.items():
            file = directory / weights_file("language_model")
            values = np.fromfile(file, tensor.dtype, int(np.prod(tensor.shape)), offset=tensor.offset)
            found[name] = torch.from_numpy(values.reshape(tensor.shape)).to(self._device)
        return found

    def close(self) -> None:
        """Let the sessions go."""
        self._sessions.clear()

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H]."""
        given = {t.name: t.dtype for t in signatures.signatures(self.manifest)["vision"].inputs}
        cast = {name: value.astype(given[name]) for name, value in vision_inputs.items()}
        features: Array = self._sessions["vision"].run([graph_io.IMAGE_FEATURES], cast)[0]
        return features

    def embed(self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: Any = None) -> Array:
        """Embeddings [T, H]."""
        feeds = {graph_io.INPUT_IDS: input_ids.astype(np.int32)}
        return place_features(
            self._sessions["embedding"].run([graph_io.INPUTS_EMBEDS], feeds)[0], visual_index, features
        )

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Tensors | None = None) -> Tensors:
        """See `Backend.new_caches`."""
        shapes = signatures.cache_shapes(self.info, self.policy, self.manifest.cache_dtype, sequences, capacities)
        made = {
            name: torch.zeros(shape, dtype=DTYPES[dtype], device=self._device)
            for name, (shape, dtype) in shapes.items()
        }
        for name, old in (before or {}).items():
            made[name][tuple(map(slice, old.shape))] = old
        return made

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """A call takes any number of prompts."""
        return True

    def extend(self, feeds: Feeds, caches: Tensors, wanted: Sequence[str]) -> dict[str, Array]:
        """See `Backend.extend`."""
        opened = self._sessions["language_model"]
        given = {value.name for value in opened.get_inputs()}
        binding = opened.io_binding()
        for name, value in feeds.items():
            if name in given:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name, tensor in (self._experts | caches).items():
            binding.bind_input(name, *self._place(tensor))
        for name, tensor in caches.items():
            binding.bind_output(graph_io.present_name(name), *self._place(tensor))
        for name in wanted:
            binding.bind_output(name, "cpu")
        opened.run_with_iobinding(binding)
        outputs = binding.get_outputs()[len(caches) :]
        return {name: value.numpy() for name, value in zip(wanted, outputs, strict=True)}

    def _place(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        dtype = getattr(np, str(tensor.dtype).removeprefix("torch."))
        return self._memory, 0, dtype, list(tensor.shape), tensor.data_ptr()

    def decode(self, feeds: Feeds, caches: Tensors, steps: int) -> None:
        """None: each step is a call of its own."""
