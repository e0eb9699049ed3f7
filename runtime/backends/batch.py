# SPDX-License-Identifier: Apache-2.0
"""Sequences on a backend: what each call feeds, and room in the caches for what it leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmmoe.runtime.backends.base import Backend, Caches, Feeds, Steps
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


@dataclass(frozen=True)
class Mark:
    """Lengths of a batch's sequences, and of their caches [sequences, layers]."""

    lengths: tuple[int, ...]
    cache_lengths: Array


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

    def extend(
        self,
        chunks: Sequence[Chunk],
        *,
        alpha: float,
        seed: int = 0,
        new_tokens: Sequence[int] = (),
        result: str = graph_io.LOGITS,
    ) -> Array:
        """Append rows to some of the sequences: prompts, whose visual tokens are pruned, or one decoded token each.

        Args:
            chunks: one for each sequence of the call.
            alpha: weight of redundancy against importance.
            seed: random numbers of method random follow from it; 0 or more.
            new_tokens: how many each chunk's sequence will go on by, where that is known: caches get room for them.
            result: LOGITS or NEXT_IDS.
        Returns:
            logits [A, vocab] float32 of each chunk's last row, or next_ids [A] int32, the tokens of the greatest.
        Raises:
            InvalidRequest: see `Call` and `Call.rater_rows`; or a sequence has more positions than the model.
            NotFinite: the logits hold NaN or infinity.
            BundleMismatch: the files that the weights are read from have been written to.
            RunFailed: an operator refuses its inputs.
        """
        feeds, after = self.prepare(chunks, alpha=alpha, seed=seed, new_tokens=new_tokens)
        kept = signatures.outputs_of_call(self._backend.policy)
        outputs = self._backend.extend(feeds, self.caches, [result, *kept])
        for chunk in chunks:
            self.lengths[chunk.sequence_id] += len(chunk.inputs_embeds)
        self.cache_lengths = after
        self.kept_index = [outputs.pop(name) for name in kept]
        found = outputs.pop(result)
        self.observed = outputs
        check_finite(found, chunks)
        return found

    def decode(self, chunks: Sequence[Chunk], *, alpha: float, steps: int) -> Steps | None:
        """Greedy steps of some sequences from a token of each on, where the backend does them by itself.

        Args:
            steps: how many there will be at most; there are fewer where positions end.
        Returns:
            next_ids [A] int32 of one step after the other, see `Backend.decode`. What is read counts as cached, and
            what is not read does not.
        Raises:
            InvalidRequest: see `extend`.
            NotFinite: the logits hold NaN or infinity.
        """
        longest = max(self.lengths[chunk.sequence_id] for chunk in chunks)
        steps = max(1, min(steps, self._backend.longest - longest))
        feeds, _ = self.prepare(chunks, alpha=alpha, new_tokens=[steps - 1] * len(chunks), needs_all=True)
        found = self._backend.decode(feeds, self.caches, steps)
        return None if found is None else self._counted(found, chunks)

    def _counted(self, steps: Steps, chunks: Sequence[Chunk]) -> Steps:
        sequences = [chunk.sequence_id for chunk in chunks]
        with contextlib.closing(steps):
            for next_ids in steps:
                for sequence in sequences:
                    self.lengths[sequence] += 1
                self.cache_lengths[sequences] += 1
                check_finite(next_ids, chunks)
                yield next_ids

    def mark(self) -> Mark:
        """How long the sequences are now, for `rewind`."""
        return Mark(tuple(self.lengths), self.cache_lengths.copy())

    def rewind(self, mark: Mark, ahead: int = 0) -> None:
        """Forget what was appended since, but for so many tokens of each sequence behind it; it is written over."""
        self.lengths = [length + ahead for length in mark.lengths]
        self.cache_lengths = mark.cache_lengths + ahead

    def reserve(self, chunks: Sequence[Chunk], new_tokens: Sequence[int]) -> None:
        """Make room for rows that several calls will append, and for so many tokens after them."""
        after = self.cache_lengths.copy()
        for chunk in chunks:
            after[chunk.sequence_id] += signatures.cached_rows(self._backend.info, self._backend.policy, chunk)
        coming = dict(zip((chunk.sequence_id for chunk in chunks), new_tokens, strict=True))
        self._make_room(after, coming, needs_all=True)

    def prepare(
        self,
        chunks: Sequence[Chunk],
        *,
        alpha: float,
        seed: int = 0,
        new_tokens: Sequence[int] = (),
        needs_all: bool = False,
    ) -> tuple[Feeds, Array]:
        """What `extend` feeds, with room made in the caches, and the cached rows [sequences, layers] after it.

        Args:
            needs_all: new tokens must have room too, even where the call itself fits.
        """
        policy, info = self._backend.policy, self._backend.info
        lengths = [self.lengths[chunk.sequence_id] for chunk in chunks]
        for chunk, before in zip(chunks, lengths, strict=True):
            check_tokens(len(chunk.inputs_embeds), len(chunk.visual_index), self._backend.longest, before)
        past = self.cache_lengths[:, self._first_layers].T
        feeds = signatures.feeds(info, Call(policy, chunks, lengths, past.tolist(), alpha, seed))
        after = self.cache_lengths.copy()
        for chunk in chunks:
            after[chunk.sequence_id] += signatures.cached_rows(info, policy, chunk)
        coming = dict(zip((chunk.sequence_id for chunk in chunks), new_tokens, strict=False))
        self._make_room(after, coming, needs_all=needs_all)
        return feeds, after

    def _make_room(self, cache_lengths: Array, new_tokens: dict[int, int], *, needs_all: bool) -> None:
        """Caches for these lengths [sequences, layers]: as many rows as are known to come, or twice what there was.

        No more than the longest sequence has, though, rounded up. They stay as they are where these lengths fit, and
        with `needs_all` what is to come, too.
        """
        rows = cache_lengths[:, self._first_layers]
        needed = wanted = rows.max(0)
        for sequence, count in new_tokens.items():
            wanted = np.maximum(wanted, rows[sequence] + count)
        if self.capacities and ((wanted if needs_all else needed) <= self.capacities).all():
            return
        needed = wanted
        before = np.array(self.capacities or [0] * len(needed))
        grown = np.where(needed > before, np.maximum(2 * before, needed), before)
        capacities = tuple(map(round_up, np.minimum(grown, self._backend.longest).tolist()))
        # Where memory runs out the batch stays as it is.
        self.caches = self._backend.new_caches(len(self.lengths), capacities, self.caches)
        self.capacities = capacities
