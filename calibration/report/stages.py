# SPDX-License-Identifier: Apache-2.0
"""The fate of every visual token at fastmmoe's stages, seen in a graph that shows its inner values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune.reference import choose_reference, windows_reference
from fastmmoe.runtime.backends.base import Observable, Observed
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.policy import FASTMMOE, SPARSEVLM
from fastmmoe.runtime.types import Array

_INPUT_NAMES = [tensor.name for tensor in TOKEN_PRUNE.inputs]
_OUTPUT_NAMES = [tensor.name for tensor in TOKEN_PRUNE.outputs]
# Of FmmTokenPrune, by their places.
INPUTS = {name: _INPUT_NAMES.index(name) for name in ("residual", "routing_probs", "attention", "visual_index")}
OUTPUTS = {name: _OUTPUT_NAMES.index(name) for name in ("residual_out", "kept_index")}


class Fate(IntEnum):
    """A visual token's fate. MERGED: its window became one vector, which stands where its first token stood."""

    KEPT, MERGED, DROPPED, GONE = range(4)


@dataclass(frozen=True)
class Stage:
    """One stage of fastmmoe.

    Attributes:
        layer: between whose attention and MoE block it prunes.
        fates: uint8 [V], a `Fate` for each visual token of the prompt; GONE = an earlier stage dropped or merged it.
        similarity: float32 [V], how alike the routing of its window is: the redundancy of docs/operators.md,
            FmmTokenPrune, step 2. NaN for tokens that are GONE.
    """

    layer: int
    fates: Array
    similarity: Array

    def count(self, fate: Fate) -> int:
        """Tokens of this fate."""
        return int((self.fates == fate).sum())


class StageTracer:
    """A language model with the values that its prune stages choose by as further outputs.

    Raises:
        InvalidRequest: the graph has no stages of fastmmoe.
    """

    def __init__(self, backend: Observable) -> None:
        self._policy = backend.policy
        if not any(FASTMMOE in site.methods for site in self._policy.sites):
            raise InvalidRequest(f"the graph holds method {self._policy.method}: expected {FASTMMOE} or all")
        # A site of sparsevlm alone has no FmmTokenPrune.
        nodes = [s for s, site in enumerate(self._policy.sites) if site.methods != (SPARSEVLM,)]
        self._nodes = {s: n for n, s in enumerate(nodes) if FASTMMOE in self._policy.sites[s].methods}
        self._backend = backend.observe(Observed(TOKEN_PRUNE.name, INPUTS, OUTPUTS))

    def trace(self, chunk: Chunk, *, alpha: float | None = None) -> list[Stage]:
        """Prefill one prompt by fastmmoe and say what its stages did.

        Args:
            chunk: rows of sequence 0, with a schedule by fastmmoe.
            alpha: None = the bundle's.
        """
        batch = Batch(self._backend)
        batch.extend([chunk], alpha=self._policy.alpha if alpha is None else alpha)
        alive = np.arange(len(chunk.visual_index))
        stages = []
        for site, node in self._nodes.items():
            fates = np.full(len(chunk.visual_index), Fate.GONE, np.uint8)
            similarity = np.full(len(chunk.visual_index), np.nan, np.float32)
            values = {name: batch.observed[f"{TOKEN_PRUNE.name}.{name}.{node}"] for name in (*INPUTS, *OUTPUTS)}
            own, similarity[alive], survivors = self._stage(values)
            fates[alive] = own
            stages.append(Stage(self._policy.sites[site].layer, fates, similarity))
            alive = alive[survivors]
        return stages

    def _stage(self, values: dict[str, Array]) -> tuple[Array, Array, Array]:
        """Fate and similarity of the tokens that a stage meets, and the numbers of those that go on.

        values: of its FmmTokenPrune, by the contract's names.
        """
        visual_index, kept_index = values["visual_index"], values["kept_index"]
        before, after = values["residual"], values["residual_out"]
        # A kept row is passed on bit by bit; a merged one has other values than the first of its window.
        has_changed = (before[kept_index] != after).any(axis=1)
        survivors = np.flatnonzero(np.isin(visual_index, kept_index))
        merged_rows = kept_index[has_changed]
        first, length = windows_reference(visual_index, self._policy.window)
        fates = np.full(len(visual_index), Fate.DROPPED, np.uint8)
        fates[survivors] = Fate.KEPT
        window_of = np.repeat(np.arange(len(first)), length)
        is_merged = np.isin(visual_index[first], merged_rows)
        fates[is_merged[window_of]] = Fate.MERGED
        # With all weight on redundancy a window's score is its similarity.
        routing, attention, window = values["routing_probs"], values["attention"], self._policy.window
        similarity = choose_reference(routing, attention, visual_index, len(survivors), 0, 1.0, window)[2]
        return fates, similarity[window_of], survivors
