# SPDX-License-Identifier: Apache-2.0
"""One call of the language model: the rows that it appends to its sequences, as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import METHODS, RANDOM, SPARSEVLM, Policy
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.types import Array

NO_VISUAL_TOKENS = np.zeros(0, np.int32)

Rows: TypeAlias = Any
"""Embeddings of T tokens: an array [T, H], or what a backend that keeps them elsewhere stands for; len() is T."""


@dataclass(frozen=True)
class Chunk:
    """Rows that one call appends to one sequence: a prompt, another question, or one decoded token.

    Attributes:
        sequence_id: number of the sequence among those of the caches.
        inputs_embeds: [T, H], from `Backend.embed`.
        visual_index: int32 [V], rows that are visual tokens, ascending; the schedule is for V.
    """

    sequence_id: int
    inputs_embeds: Rows
    visual_index: Array
    schedule: Schedule

    def check(self) -> None:
        """Raise InvalidRequest unless the visual rows ascend, are rows, and are as many as the schedule's."""
        T, rows = len(self.inputs_embeds), self.visual_index
        if len(rows) != self.schedule.visual_tokens:
            raise InvalidRequest(
                f"visual_index has {len(rows)} rows, the schedule is for {self.schedule.visual_tokens} visual tokens"
            )
        if not len(rows):
            return
        outside = rows[(rows < 0) | (rows >= T)]
        if len(outside):
            raise InvalidRequest(f"visual_index holds row {outside[0]}: expected 0 to {T - 1}, the rows of the prompt")
        falls = np.flatnonzero(np.diff(rows) <= 0)
        if len(falls):
            a, b = rows[falls[0] : falls[0] + 2]
            raise InvalidRequest(f"visual_index holds row {b} after row {a}: expected ascending rows, each once")

    @property
    def rows_after_pictures(self) -> int:
        """Text rows after the last visual token; 0 without visual tokens."""
        return len(self.inputs_embeds) - 1 - int(self.visual_index[-1]) if len(self.visual_index) else 0


@dataclass(frozen=True)
class Call:
    """One call: a chunk for each sequence that it extends, all of one method.

    Args:
        lengths: original positions each of these sequences has so far.
        past_lengths: rows in use of the caches of every sequence, those that are not in the call too, by layer group.
        alpha: weight of redundancy against importance.
        seed: random numbers of method random follow from it; 0 or more.
    Raises:
        InvalidRequest: visual_index is not rows of its chunk, or the chunks differ in method or experts.
    """

    policy: Policy
    chunks: Sequence[Chunk]
    lengths: Sequence[int]
    past_lengths: Sequence[Sequence[int]]
    alpha: float
    seed: int

    def __post_init__(self) -> None:
        for chunk in self.chunks:
            chunk.check()
        first = self.chunks[0].schedule
        for chunk in self.chunks[1:]:
            if (chunk.schedule.method, chunk.schedule.visual_top_k) != (first.method, first.visual_top_k):
                raise InvalidRequest("the sequences of one call differ in method or visual_top_k: expected one of each")

    @property
    def schedule(self) -> Schedule:
        """The first sequence's schedule; method and experts are those of all."""
        return self.chunks[0].schedule

    @property
    def alike(self) -> object:
        """What decoding steps of the same sequences have in common; None where pictures come with the call."""
        rows = []
        for chunk in self.chunks:
            if len(chunk.visual_index):
                return None
            rows.append((chunk.sequence_id, len(chunk.inputs_embeds), chunk.schedule))
        return self.alpha, rows

    @property
    def tokens(self) -> list[int]:
        """Rows of each sequence."""
        return [len(chunk.inputs_embeds) for chunk in self.chunks]

    @property
    def visual_tokens(self) -> list[int]:
        """Visual tokens of each sequence."""
        return [len(chunk.visual_index) for chunk in self.chunks]

    def keep(self, site: int) -> list[int]:
        """Visual tokens of each sequence after a site."""
        return [chunk.schedule.keep[site] for chunk in self.chunks]

    def merge(self, site: int) -> list[int]:
        """Merged vectors that a site makes, of each sequence."""
        return [chunk.schedule.merge[site] for chunk in self.chunks]

    def recycle(self, site: int) -> list[int]:
        """Tokens that a site of sparsevlm recycles, of each sequence."""
        return [chunk.schedule.recycle[site] for chunk in self.chunks]

    def inputs_embeds(self) -> Rows:
        """Embeddings of all rows; of a backend that keeps them elsewhere, a list with those of each sequence."""
        first = self.chunks[0].inputs_embeds
        if len(self.chunks) == 1 and isinstance(first, np.ndarray):
            return first
        rows = [chunk.inputs_embeds for chunk in self.chunks]
        return np.concatenate(rows) if isinstance(first, np.ndarray) else rows

    def positions(self) -> Array:
        """Original position of every row."""
        found: list[int] = []
        for chunk, before in zip(self.chunks, self.lengths, strict=True):
            found += range(before, before + len(chunk.inputs_embeds))
        return np.array(found, np.int32)

    def sequences(self) -> Array:
        """Sequence of every row."""
        return np.repeat([chunk.sequence_id for chunk in self.chunks], self.tokens)

    def visual_index(self) -> Array:
        """Rows of all sequences that are visual tokens."""
        starts = offsets(self.tokens)
        return np.concatenate([chunk.visual_index + n for chunk, n in zip(self.chunks, starts, strict=False)])

    def random_scores(self) -> Array:
        """Scores of all visual tokens by method random; 0 by any other."""
        # Seeding a generator takes time, which a decode step has no use for.
        if self.schedule.method != RANDOM or not sum(self.visual_tokens):
            return np.zeros(sum(self.visual_tokens), np.float32)
        return np.concatenate(
            [random_scores(self.seed, n, v) for n, v in zip(self.lengths, self.visual_tokens, strict=True)]
        )

    def rater_rows(self) -> int:
        """Last rows that rate visual tokens by sparsevlm.

        Raises:
            InvalidRequest: sparsevlm is to prune several sequences at once or one that ends with a picture.
        """
        pruned = [c for c in self.chunks if c.schedule.method == SPARSEVLM and c.schedule.prunes]
        if not pruned:
            return 0
        if len(self.chunks) > 1:
            raise InvalidRequest(f"sparsevlm prunes one sequence at a time, the call has {len(self.chunks)}")
        rows = pruned[0].rows_after_pictures
        if rows == 0:
            raise InvalidRequest(
                "the prompt ends with a visual token: sparsevlm rates by the text after the last picture"
            )
        return rows

    def method_number(self) -> int:
        """The method's place in METHODS."""
        return METHODS.index(self.schedule.method)


def offsets(counts: Iterable[int]) -> Array:
    """[A + 1] int32: where each sequence starts, and the end."""
    return np.array([0, *itertools.accumulate(counts)], np.int32)


def random_scores(seed: int, position: int, visual_tokens: int) -> Array:
    """Scores float32 [V] of method random: the places of a random order, greater is better.

    They depend on the seed and on the original position at which the visual tokens' chunk starts. The bit generator's
    raw stream is the same with every version of NumPy.
    """
    order = np.argsort(np.random.PCG64([seed, position]).random_raw(visual_tokens), kind="stable")
    scores = np.empty(visual_tokens, np.float32)
    scores[order] = np.arange(visual_tokens, 0, -1)
    return scores
