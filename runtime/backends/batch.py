# SPDX-License-Identifier: Apache-2.0
"""Sequences on a backend: what each call feeds, and room in the caches for what it leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import le
from typing import TypeAlias

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


CachedRows: TypeAlias = list[list[int]]
"""Rows in use of every sequence's caches, by layer group: a step has no time for arrays of so few numbers."""


@dataclass(frozen=True)
class Mark:
    """Lengths of a batch's sequences, and of their caches by layer group."""

    lengths: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


class Batch:
    """Sequences that share calls, and their key-value caches, which differ in length by layer group.

    Attributes:
        lengths: original positions of every sequence so far; its next token takes this one.
        capacities: rows that each layer group's caches have room for; () before the first call.
        caches: the backend's; None before the first call.
        kept_index: after `extend`, the rows of each site's input that survive it.
        observed: after `extend`, what else the backend returned (`Observable`).
    """

    def __init__(self, backend: Backend, size: int = 1) -> None:
        info, policy = backend.info, backend.policy
        self._backend, self._policy, self._longest = backend, policy, backend.longest
        self._feeding = signatures.Feeding(info, policy)
        self._kept = signatures.outputs_of_call(policy)
        self._groups = signatures.layer_groups(info.layers, policy.sites)
        self._sites = signatures.sites_before(self._groups, policy.sites)
        self._rows: CachedRows = [[0] * size for _ in self._groups]
        self.capacities: tuple[int, ...] = ()
        self.caches: Caches | None = None
        self.lengths = [0] * size
        self.kept_index: list[Array] = []
        self.observed: dict[str, Array] = {}

    @property
    def cache_lengths(self) -> Array:
        """Cached rows, int64 [sequences, layers]."""
        counts = [len(layers) for layers in self._groups]
        return np.repeat(np.array(self._rows, np.int64).T, counts, axis=1)

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
        outputs = self._backend.extend(feeds, self.caches, [result, *self._kept])
        for chunk in chunks:
            self.lengths[chunk.sequence_id] += len(chunk.inputs_embeds)
        self._rows = after
        self.kept_index = [*map(outputs.pop, self._kept)]
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
        steps = max(1, min(steps, self._longest - longest))
        feeds, _ = self.prepare(chunks, alpha=alpha, new_tokens=[steps - 1] * len(chunks), needs_all=True)
        found = self._backend.decode(feeds, self.caches, steps)
        return None if found is None else self._counted(found, chunks)

    def _counted(self, steps: Steps, chunks: Sequence[Chunk]) -> Steps:
        sequences = [chunk.sequence_id for chunk in chunks]
        with contextlib.closing(steps):
            for next_ids in steps:
                for lengths in (self.lengths, *self._rows):
                    for sequence in sequences:
                        lengths[sequence] += 1
                check_finite(next_ids, chunks)
                yield next_ids

    def mark(self) -> Mark:
        """How long the sequences are now, for `rewind`."""
        return Mark(tuple(self.lengths), tuple(map(tuple, self._rows)))

    def rewind(self, mark: Mark, ahead: int = 0) -> None:
        """Forget what was appended since, but for so many tokens of each sequence behind it; it is written over."""
        self.lengths = [length + ahead for length in mark.lengths]
        self._rows = [[count + ahead for count in counts] for counts in mark.rows]

    def reserve(self, chunks: Sequence[Chunk], new_tokens: Sequence[int]) -> None:
        """Make room for rows that several calls will append, and for so many tokens after them."""
        self._make_room(self._rows_after(chunks), zip(chunks, new_tokens, strict=True), needs_all=True)

    def prepare(
        self,
        chunks: Sequence[Chunk],
        *,
        alpha: float,
        seed: int = 0,
        new_tokens: Sequence[int] = (),
        needs_all: bool = False,
    ) -> tuple[Feeds, CachedRows]:
        """What `extend` feeds, with room made in the caches, and the cached rows after it.

        Args:
            needs_all: new tokens must have room too, even where the call itself fits.
        """
        lengths = []
        for chunk in chunks:
            lengths.append(self.lengths[chunk.sequence_id])
            check_tokens(len(chunk.inputs_embeds), len(chunk.visual_index), self._longest, lengths[-1])
        feeds = self._feeding.feeds(Call(self._policy, chunks, lengths, self._rows, alpha, seed))
        after = self._rows_after(chunks)
        self._make_room(after, zip(chunks, new_tokens, strict=False), needs_all=needs_all)
        return feeds, after

    def _rows_after(self, chunks: Sequence[Chunk]) -> CachedRows:
        after = [*map(list, self._rows)]
        for chunk in chunks:
            for rows, site in zip(after, self._sites, strict=True):
                rows[chunk.sequence_id] += signatures.rows_left(chunk, site)
        return after

    def _make_room(self, rows: CachedRows, new_tokens: Iterable[tuple[Chunk, int]], *, needs_all: bool) -> None:
        """Caches for these rows: as many as are known to come, or twice what there was.

        No more than the longest sequence has, though, rounded up. They stay as they are where these lengths fit, and
        with `needs_all` what is to come, too.
        """
        needed = wanted = [*map(max, rows)]
        for chunk, count in new_tokens:
            wanted = [max(n, of[chunk.sequence_id] + count) for n, of in zip(wanted, rows, strict=True)]
        before = self.capacities or (0,) * len(rows)
        if self.capacities and all(map(le, wanted if needs_all else needed, before)):
            return
        grown = [max(2 * room, n) if n > room else room for n, room in zip(wanted, before, strict=True)]
        capacities = tuple(round_up(min(count, self._longest)) for count in grown)
        # Where memory runs out the batch stays as it is.
        self.caches = self._backend.new_caches(len(self.lengths), capacities, self.caches)
        self.capacities = capacities
