# SPDX-License-Identifier: Apache-2.0
"""A backend that keeps what its graphs were given and gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastmmoe.runtime.backends.base import Backend, Caches, Features, Feeds, OfManifest
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk, Rows
from fastmmoe.runtime.types import Array


@dataclass(frozen=True)
class Recorded:
    """One call of a graph: its inputs, caches among them, and the outputs that tell whether it was right."""

    inputs: dict[str, Array]
    outputs: dict[str, Array] = field(default_factory=dict)


class Recording(OfManifest):
    """See `Backend`. The backend must keep its caches as NumPy arrays (`BoundCaches`).

    Attributes:
        calls: by graph, in the order in which they were made.
    """

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self.manifest, self._backend = manifest, backend
        self.calls: dict[str, list[Recorded]] = {graph: [] for graph in GRAPHS}

    @property
    def provider(self) -> str:
        """What computes."""
        return self._backend.provider

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()

    def image_features(self, vision_inputs: dict[str, Array]) -> Features:
        """Features [V, H] of every visual position."""
        features = self._backend.image_features(vision_inputs)
        self.calls["vision"].append(Recorded(dict(vision_inputs), {graph_io.IMAGE_FEATURES: features.copy()}))
        return features

    def embed(self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: Features | None = None) -> Rows:
        """Embeddings [T, H]; recorded without features, which are put in their places after the graph."""
        ids = input_ids.astype(np.int32)
        self.calls["embedding"].append(Recorded({graph_io.INPUT_IDS: ids}, {graph_io.INPUTS_EMBEDS: self._words(ids)}))
        return self._backend.embed(input_ids, visual_index, features)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Caches | None = None) -> Caches:
        """See `Backend.new_caches`."""
        return self._backend.new_caches(sequences, capacities, before)

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """See `Backend.has_room_for`."""
        return self._backend.has_room_for(chunks)

    def extend(self, feeds: Feeds, caches: Caches, wanted: Sequence[str]) -> dict[str, Array]:
        """See `Backend.extend`; recorded are logits, chosen tokens and surviving rows."""
        policy, info = self.policy, self.info
        groups = range(len(signatures.layer_groups(info.layers, policy.sites)))
        lengths = [graph_io.present_name(graph_io.past_lengths(g)) for g in groups]
        told = [graph_io.LOGITS, graph_io.NEXT_IDS, *signatures.outputs_of_call(policy)]
        before = {name: array.copy() for name, array in caches.arrays.items()}
        outputs = self._backend.extend(feeds, caches, list(dict.fromkeys((*wanted, *told, *lengths))))
        rows = [int(outputs[name].max()) for name in lengths]
        past = [feeds[graph_io.past_lengths(g)] for g in groups]
        inputs = dict(feeds) | _in_use(before, signatures.cache_inputs(info, policy, "float32"), past, rows)
        self.calls["language_model"].append(Recorded(inputs, {name: outputs[name] for name in told}))
        return {name: outputs[name] for name in wanted}

    def decode(self, feeds: Feeds, caches: Caches, steps: int) -> None:
        """None: each step is a call of its own."""

    def _words(self, ids: Array) -> Array:
        embeds: Array = self._backend.embed(ids)
        return embeds


def _in_use(
    arrays: dict[str, Array], tensors: Sequence[signatures.Tensor], past: Sequence[Array], rows: Sequence[int]
) -> dict[str, Array]:
    """Caches cut to the rows that a call leaves in use; what is not in use before it is 0, where it could be anything.

    Args:
        past: of each layer group, the rows [B] in use before the call.
        rows: of each group, the most in use after it.
    """
    found = {}
    for name, shape, _ in tensors:
        (axis,) = (axis for axis, size in enumerate(shape) if str(size).startswith("C"))
        group = int(str(shape[axis])[1:])
        cut = np.take(arrays[name], np.arange(rows[group]), axis)
        for sequence, length in enumerate(past[group]):
            np.moveaxis(cut[sequence], axis - 1, 0)[length:] = 0
        found[name] = cut
    return found
