# SPDX-License-Identifier: Apache-2.0
"""The modules of a model in torch, as one of the runtime's backends: for the export's check and for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastmmoe.exporter.models.decoder import LanguageModel
from fastmmoe.exporter.models.graphs import GraphModules
from fastmmoe.runtime.backends.base import Feeds, place_features
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.types import Array

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TorchBackend:
    """See `Backend`. The parameters are float32, and there while it runs.

    Attributes:
        cache_dtype: what the caches store.
        provider: its name in statistics.
    """

    graphs: GraphModules
    policy: Policy
    info: LanguageModelInfo
    longest: int
    cache_dtype: str = "float32"
    provider: str = "torch"

    @property
    def language_model(self) -> LanguageModel:
        """The decoder with the policy's sites."""
        return self.graphs.language_model

    def close(self) -> None:
        """There is nothing to give back."""

    @torch.no_grad()
    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] of every visual position."""
        inputs = {name: torch.from_numpy(value) for name, value in vision_inputs.items()}
        features: Array = self.graphs.vision(inputs)[graph_io.IMAGE_FEATURES].numpy()
        return features

    @torch.no_grad()
    def embed(self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: Array | None = None) -> Array:
        """Embeddings [T, H] of a prompt; see `Backend.embed`."""
        ids = torch.from_numpy(np.asarray(input_ids, np.int32))
        embeds: Array = self.graphs.embedding({graph_io.INPUT_IDS: ids})[graph_io.INPUTS_EMBEDS].numpy()
        return place_features(embeds, visual_index, features)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Tensors | None = None) -> Tensors:
        """See `Backend.new_caches`."""
        caches = {}
        shapes = signatures.cache_shapes(self.info, self.policy, self.cache_dtype, sequences, capacities)
        for name, (shape, dtype) in shapes.items():
            caches[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
            if before is not None:
                caches[name][tuple(map(slice, before[name].shape))] = before[name]
        return caches

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """A call takes any number of prompts."""
        return True

    @torch.no_grad()
    def extend(self, feeds: Feeds, caches: Tensors, wanted: Sequence[str]) -> dict[str, Array]:
        """One call of the language model; see `Backend.extend`."""
        outputs: Tensors = self.graphs.language_model(_tensors(feeds) | caches)
        caches.update({name: outputs[graph_io.present_name(name)] for name in caches})
        return {name: outputs[name].numpy() for name in wanted}

    def decode(self, feeds: Feeds, caches: Tensors, steps: int) -> None:
        """None: each step is a call of its own."""

    @torch.no_grad()
    def logits_of_rows(self, feeds: dict[str, Array], caches: Tensors) -> Array:
        """Logits [T', vocab] float32 of every row that is left after the last layer; the caches stay as they are."""
        program = self.language_model.program(every_row=True)
        logits: Array = program.run(_tensors(feeds) | caches)[graph_io.LOGITS].numpy()
        return logits


def _tensors(arrays: dict[str, Array]) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
