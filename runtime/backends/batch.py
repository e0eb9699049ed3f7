# SPDX-License-Identifier: Apache-2.0
"""Sequences on a backend: what each call feeds, and the caches carried from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.finite import check_finite
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.types import Array


class Batch:
    """Sequences that share calls, and their key-value caches, which differ in length by layer group.

    Attributes:
        lengths: original positions of every sequence so far; its next token takes this one.
        cache_lengths: cached tokens, int64 [sequences, layers].
        caches: the backend's.
        kept_index: after `extend`, the rows of each site's input that survive it.
        observed: after `extend`, what else the backend returned (`Observable`).
    """

    def __init__(self, backend: Backend, size: int = 1) -> None:
        self._backend, self.caches = backend, backend.new_caches()
        self.lengths = [0] * size
        self.cache_lengths = np.zeros((size, backend.info.layers), np.int64)
        self.kept_index: list[Array] = []
        self.observed: dict[str, Array] = {}

    def extend(self, chunks: Sequence[Chunk], *, alpha: float, seed: int = 0) -> Array:
        """Append rows to some of the sequences: prompts, whose visual tokens are pruned, or one decoded token each.

        Args:
            chunks: one for each sequence of the call.
            alpha: weight of redundancy against importance.
            seed: random numbers of method random follow from it; 0 or more.
        Returns:
            logits [B, vocab] float32 of each chunk's last row.
        Raises:
            InvalidRequest: see `Call` and `Call.rater_rows`.
            NotFinite: the logits hold NaN or infinity.
            BundleMismatch: the files that the weights are read from have been written to.
            RunFailed: an operator refuses its inputs.
        """
        policy, info = self._backend.policy, self._backend.info
        lengths = [self.lengths[chunk.sequence_id] for chunk in chunks]
        feeds = signatures.feeds(info, Call(policy, chunks, lengths, alpha, seed))
        outputs, self.caches = self._backend.extend(feeds, self.caches)
        for chunk in chunks:
            self.lengths[chunk.sequence_id] += len(chunk.inputs_embeds)
            self.cache_lengths[chunk.sequence_id] += signatures.cached_rows(info, policy, chunk)
        self.kept_index = [outputs.pop(graph_io.kept_index(site)) for site in range(len(policy.sites))]
        logits = outputs.pop(graph_io.LOGITS)
        self.observed = outputs
        check_finite(logits, chunks)
        return logits
