# SPDX-License-Identifier: Apache-2.0
"""Sequences on a backend: what each call feeds, and room in the caches for what it leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmmoe.runtime.backends.base import Backend, Caches
from fastmmoe.runtime.backends.finite import check_finite
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.request.inputs import check_tokens
from fastmmoe.runtime.types import Array

CAPACITY_STEP = 256
"""Capacities are multiples of this: a device then meets few of them."""


def round_up(rows: int) -> int:
    """The least capacity for so many rows."""
    return -(-rows // CAPACITY_STEP) * CAPACITY_STEP


class Batch:
    """Sequences that share calls, and their key-value caches, which differ in length by layer group.

    Attributes:
        lengths: original positions of every sequence so far; its next token takes this one.
        cache_lengths: cached rows, int64 [sequences, layers].
        capacities: rows that each layer group's caches have room for; () before the first call.
        caches: the backend's; None before the first call.
        kept_index: after `extend`, the rows of each site's input that survive it.
        observed: after `extend`, what else the backend returned (`Observable`).
    """

    def __init__(self, backend: Backend, size: int = 1) -> None:
        self._backend = backend
        self._first_layers = [
            layers[0] for layers in signatures.layer_groups(backend.info.layers, backend.policy.sites)
        ]
        self.capacities: tuple[int, ...] = ()
        self.caches: Caches | None = None
        self.lengths = [0] * size
        self.cache_lengths = np.zeros((size, backend.info.layers), np.int64)
        self.kept_index: list[Array] = []
        self.observed: dict[str, Array] = {}

    def extend(self, chunks: Sequence[Chunk], *, alpha: float, seed: int = 0, new_tokens: Sequence[int] = ()) -> Array:
        """Append rows to some of the sequences: prompts, whose visual tokens are pruned, or one decoded token each.

        Args:
            chunks: one for each sequence of the call.
            alpha: weight of redundancy against importance.
            seed: random numbers of method random follow from it; 0 or more.
            new_tokens: how many each chunk's sequence will go on by, where that is known: caches get room for them.
        Returns:
            logits [A, vocab] float32 of each chunk's last row.
        Raises:
            InvalidRequest: see `Call` and `Call.rater_rows`; or a sequence has more positions than the model.
            NotFinite: the logits hold NaN or infinity.
            BundleMismatch: the files that the weights are read from have been written to.
            RunFailed: an operator refuses its inputs.
        """
        feeds, after = self.prepare(chunks, alpha=alpha, seed=seed, new_tokens=new_tokens)
        outputs = self._backend.extend(feeds, self.caches)
        for chunk in chunks:
            self.lengths[chunk.sequence_id] += len(chunk.inputs_embeds)
        self.cache_lengths = after
        self.kept_index = [outputs.pop(graph_io.kept_index(site)) for site in range(len(self._backend.policy.sites))]
        logits = outputs.pop(graph_io.LOGITS)
        self.observed = outputs
        check_finite(logits, chunks)
        return logits

    def prepare(
        self, chunks: Sequence[Chunk], *, alpha: float, seed: int = 0, new_tokens: Sequence[int] = ()
    ) -> tuple[dict[str, Array], Array]:
        """What `extend` feeds, with room made in the caches, and the cached rows [sequences, layers] after it."""
        policy, info = self._backend.policy, self._backend.info
        lengths = [self.lengths[chunk.sequence_id] for chunk in chunks]
        for chunk, before in zip(chunks, lengths, strict=True):
            check_tokens(len(chunk.inputs_embeds), len(chunk.visual_index), self._backend.longest, before)
        past = self.cache_lengths[:, self._first_layers].T
        feeds = signatures.feeds(info, Call(policy, chunks, lengths, past.tolist(), alpha, seed))
        after = self.cache_lengths.copy()
        for chunk in chunks:
            after[chunk.sequence_id] += signatures.cached_rows(info, policy, chunk)
        self._make_room(after, dict(zip((chunk.sequence_id for chunk in chunks), new_tokens, strict=False)))
        return feeds, after

    def _make_room(self, cache_lengths: Array, new_tokens: dict[int, int]) -> None:
        """Caches for these lengths [sequences, layers]: as many rows as are known to come, or twice what there was.

        No more than the longest sequence has, though, rounded up.
        """
        rows = cache_lengths[:, self._first_layers]
        needed = rows.max(0)
        if self.capacities and (needed <= self.capacities).all():
            return
        for sequence, count in new_tokens.items():
            needed = np.maximum(needed, rows[sequence] + count)
        before = np.array(self.capacities or [0] * len(needed))
        grown = np.where(needed > before, np.maximum(2 * before, needed), before)
        capacities = tuple(map(round_up, np.minimum(grown, self._backend.longest).tolist()))
        # Where memory runs out the batch stays as it is.
        self.caches = self._backend.new_caches(len(self.lengths), capacities, self.caches)
        self.capacities = capacities
