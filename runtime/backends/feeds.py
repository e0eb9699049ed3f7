# SPDX-License-Identifier: Apache-2.0
"""The inputs of one call of the language model but its caches, from what is to be appended to each sequence."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import METHODS, Policy
from fastmmoe.runtime.method.schedule import Schedule

Array = npt.NDArray[Any]
NO_VISUAL_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Chunk:
    """Rows that one call appends to one sequence: a prompt, another question, or one decoded token.

    Attributes:
        sequence_id: of the sequence among those of the caches.
        inputs_embeds: [T, H]. visual_index: int32 [V], rows that are visual tokens, ascending; the schedule is for V.
    """

    sequence_id: int
    inputs_embeds: Array
    visual_index: Array
    schedule: Schedule

    def check(self) -> None:
        """Raise InvalidRequest unless the visual rows ascend, are rows, and are as many as the schedule's."""
        T, rows = len(self.inputs_embeds), self.visual_index
        if len(rows) != self.schedule.visual_tokens:
            raise InvalidRequest(
                f"visual_index has {len(rows)} rows, the schedule is for {self.schedule.visual_tokens} visual tokens"
            )
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


def call_feeds(
    policy: Policy, chunks: Sequence[Chunk], lengths: Sequence[int], *, alpha: float, seed: int
) -> dict[str, Array]:
    """The inputs of one call but its caches (runtime/bundle/graph_io.py).

    Args:
        chunks: one for each sequence of the call, of one method. lengths: original positions each has so far.
        alpha: weight of redundancy against importance. seed: of method random, 0 or more.
    Raises:
        InvalidRequest: visual_index is not rows of its chunk, the chunks differ in method or experts, or sparsevlm is
            to prune several sequences at once or one that ends with a picture.
    """
    for chunk in chunks:
        chunk.check()
    first = chunks[0].schedule
    if any((c.schedule.method, c.schedule.visual_top_k) != (first.method, first.visual_top_k) for c in chunks):
        raise InvalidRequest("the sequences of one call differ in method or visual_top_k: expected one of each")
    tokens = [len(chunk.inputs_embeds) for chunk in chunks]
    starts = _offsets(tokens)
    visual = [chunk.visual_index + start for chunk, start in zip(chunks, starts, strict=False)]
    positions = [np.arange(n, n + t) for n, t in zip(lengths, tokens, strict=True)]
    feeds = {
        graph_io.INPUTS_EMBEDS: np.concatenate([chunk.inputs_embeds for chunk in chunks]),
        graph_io.POSITION_IDS: np.concatenate(positions).astype(np.int32),
        graph_io.SEQUENCE_IDS: np.repeat([chunk.sequence_id for chunk in chunks], tokens).astype(np.int32),
        graph_io.SEQUENCE_OFFSETS: starts,
        graph_io.VISUAL_INDEX: np.concatenate(visual).astype(np.int32),
    }
    if policy.method == "none":
        return feeds
    feeds[graph_io.VISUAL_OFFSETS] = _offsets(len(chunk.visual_index) for chunk in chunks)
    feeds[graph_io.VISUAL_TOP_K] = np.array(first.visual_top_k, np.int32)
    feeds[graph_io.ALPHA] = np.full(len(policy.sites), alpha, np.float32)
    return feeds | _method_feeds(policy, chunks, lengths, seed) | _site_feeds(policy, chunks)


def random_scores(seed: int, position: int, visual_tokens: int) -> Array:
    """Scores float32 [V] of method random: the places of a random order, greater is better.

    They depend on the seed and on the original position at which the visual tokens' chunk starts. The bit generator's
    raw stream is the same with every version of NumPy.
    """
    order = np.argsort(np.random.PCG64([seed, position]).random_raw(visual_tokens), kind="stable")
    scores = np.empty(visual_tokens, np.float32)
    scores[order] = np.arange(visual_tokens, 0, -1)
    return scores


def _offsets(counts: Iterable[int]) -> Array:
    return np.array([0, *itertools.accumulate(counts)], np.int32)


def _method_feeds(policy: Policy, chunks: Sequence[Chunk], lengths: Sequence[int], seed: int) -> dict[str, Array]:
    schedule = chunks[0].schedule
    feeds: dict[str, Array] = {}
    if policy.method == "all":
        feeds[graph_io.METHOD] = np.array([METHODS.index(schedule.method)], np.int32)
    if "random" in policy.methods:
        visual = sum(len(chunk.visual_index) for chunk in chunks)
        feeds[graph_io.RANDOM_SCORES] = np.zeros(visual, np.float32)
        # Seeding a generator takes time, which a decode step has no use for.
        if schedule.method == "random" and visual:
            scores = [random_scores(seed, n, len(c.visual_index)) for c, n in zip(chunks, lengths, strict=True)]
            feeds[graph_io.RANDOM_SCORES] = np.concatenate(scores)
    if "sparsevlm" in policy.methods:
        feeds[graph_io.RATER_SLOTS] = np.zeros(_rater_rows(chunks), np.int8)
    return feeds


def _rater_rows(chunks: Sequence[Chunk]) -> int:
    pruned = [c for c in chunks if c.schedule.method == "sparsevlm" and c.schedule.prunes]
    if not pruned:
        return 0
    if len(chunks) > 1:
        raise InvalidRequest(f"sparsevlm prunes one sequence at a time, the call has {len(chunks)}")
    rows = pruned[0].rows_after_pictures
    if rows == 0:
        raise InvalidRequest("the prompt ends with a visual token: sparsevlm rates by the text after the last picture")
    return rows


def _site_feeds(policy: Policy, chunks: Sequence[Chunk]) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for s, site in enumerate(policy.sites):
        keep = [chunk.schedule.keep[s] for chunk in chunks]
        merge = [chunk.schedule.merge[s] for chunk in chunks]
        feeds[graph_io.keep_slots(s)] = np.zeros(sum(keep), np.int8)
        feeds[graph_io.keep_offsets(s)] = _offsets(keep)
        if graph_io.takes_merge_offsets(site):
            feeds[graph_io.merge_offsets(s)] = _offsets(merge)
        if graph_io.takes_recycling(site):
            feeds[graph_io.recycle_slots(s)] = np.zeros(sum(chunk.schedule.recycle[s] for chunk in chunks), np.int8)
        if graph_io.takes_merges(site):
            feeds[graph_io.merge_slots(s)] = np.zeros(sum(merge), np.int8)
    return feeds
