# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune in NumPy: what every kernel is held against."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.token_prune.contract import (
    COSINE_FLOOR,
    IMPORTANCE_FLOOR,
    NORM_FLOOR,
    TOKEN_PRUNE,
    check_prune_inputs,
)
from fastmmoe.runtime.method.policy import MEAN
from fastmmoe.runtime.types import Array


def windows_reference(visual_index: Array, window: int) -> tuple[Array, Array]:
    """First token [G] and length [G] of every window; a window never spans a gap of visual_index."""
    V = len(visual_index)
    run_start = np.concatenate([[0], np.nonzero(np.diff(visual_index) != 1)[0] + 1, [V]])
    first = np.concatenate([np.arange(a, b, window) for a, b in itertools.pairwise(run_start)])
    run_end = run_start[np.searchsorted(run_start, first, side="right")]
    return first, np.minimum(window, run_end - first)


def _redundancy(p: Array, first: Array, length: Array, window: int) -> Array:
    """s [G]: mean cosine of a window's rows of p with their mean; a short window is filled up with the mean of p."""
    rows = np.minimum(first[:, None] + np.arange(window), len(p) - 1)
    inside = np.arange(window) < length[:, None]
    filled = np.where(inside[:, :, None], p[rows], p.mean(axis=0))
    mean = filled.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(filled, axis=2) * np.linalg.norm(mean, axis=2)
    cosine = (filled * mean).sum(axis=2) / np.maximum(norms, np.float32(COSINE_FLOOR))
    s = np.where(inside, cosine, 0).sum(axis=1) / length
    return np.where(length == 1, np.float32(0), s).astype(np.float32)


def choose_reference(
    p: Array, a: Array, visual_index: Array, K: int, M: int, alpha: float, window: int
) -> tuple[Array, Array, Array]:
    """Choose what survives.

    Returns:
        source [K] (visual token each survivor comes from, ascending), merged_length [K] (0 where a token is kept as it
        is, else its window's length) and the windows' scores c [G].
    Source: docs/operators.md, FmmTokenPrune, steps 0 to 6.
    """
    V = len(a)
    bad: Array = np.asarray(~np.isfinite(p).all(axis=1))
    p = np.where(bad[:, None], np.float32(0), p).astype(np.float32)
    a = np.where(bad | ~np.isfinite(a), np.float32(0), a).astype(np.float32)
    first, length = windows_reference(visual_index, window)
    window_of = np.repeat(np.arange(len(first)), length)
    importance = np.bincount(window_of, weights=a, minlength=len(first)).astype(np.float32) / length.astype(np.float32)
    importance = importance / (importance.max() + np.float32(IMPORTANCE_FLOOR))
    alpha = np.float32(alpha)
    score = alpha * _redundancy(p, first, length, window) - (np.float32(1) - alpha) * importance
    merged = np.argsort(-score, kind="stable")[:M]
    merged_length = np.zeros(V, np.int64)
    merged_length[first[merged]] = length[merged]
    single = np.nonzero(~np.isin(window_of, merged))[0]
    # A cleaned token sorts after every other, whatever their attention.
    order = np.lexsort((single, -a[single], bad[single]))
    source = np.sort(np.concatenate([first[merged], single[order[: K - M]]]))
    return source, merged_length[source], score


def choose_packed_reference(
    p: Array,
    a: Array,
    visual_index: Array,
    visual_offsets: Array,
    keep_offsets: Array,
    merge_offsets: Array,
    alpha: float,
    window: int,
) -> tuple[Array, Array]:
    """source [K] and merged_length [K] of `choose_reference` for all sequences; one with K = V is left as it is."""
    chosen = []
    offsets = zip(*(itertools.pairwise(o.tolist()) for o in (visual_offsets, keep_offsets, merge_offsets)), strict=True)
    for (first, end), (k, k_end), (m, m_end) in offsets:
        K = k_end - k
        if end - first == K:
            chosen.append((np.arange(first, end), np.zeros(K, np.int64)))
            continue
        part = slice(first, end)
        source, length, _ = choose_reference(p[part], a[part], visual_index[part], K, m_end - m, alpha, window)
        chosen.append((first + source, length))
    sources, lengths = zip(*chosen, strict=True)
    return np.concatenate(sources), np.concatenate(lengths)


def _merge(rows: Array, merge: str) -> Array:
    """One vector for the rows [w, H] of a merged window, float32."""
    mean = rows.mean(axis=0)
    if merge == MEAN:
        return mean
    return mean / max(np.linalg.norm(mean), np.float32(NORM_FLOOR)) * np.linalg.norm(rows, axis=1).max()


def token_prune_reference(
    hidden_states: Array,
    residual: Array,
    routing_probs: Array,
    attention: Array,
    visual_index: Array,
    visual_offsets: Array,
    keep_slots: Array,
    keep_offsets: Array,
    merge_slots: Array,
    merge_offsets: Array,
    alpha: Array,
    **attributes: Any,
) -> tuple[Array, Array, Array, Array]:
    """FmmTokenPrune in NumPy; arguments and results as in `TOKEN_PRUNE`.

    Raises:
        ValueError: attributes or inputs outside the contract.
    """
    TOKEN_PRUNE.check_attributes(attributes)
    states = (hidden_states, residual, routing_probs, attention)
    slots = (visual_offsets, keep_slots, keep_offsets, merge_slots, merge_offsets)
    names = (t.name for t in TOKEN_PRUNE.inputs)
    check_prune_inputs(attributes, dict(zip(names, (*states, visual_index, *slots, alpha), strict=True)))
    T, V, K, window = len(hidden_states), len(visual_index), len(keep_slots), attributes["window"]
    offsets = (visual_offsets, keep_offsets, merge_offsets)
    if K == V:
        return hidden_states, residual, np.arange(T, dtype=np.int32), visual_index.astype(np.int32)
    source, merged_length = choose_packed_reference(
        routing_probs, attention, visual_index, *offsets, float(alpha[0]), window
    )
    is_dropped = np.zeros(T, bool)
    is_dropped[visual_index] = True
    is_dropped[visual_index[source]] = False
    kept_index = np.nonzero(~is_dropped)[0].astype(np.int32)
    visual_index_out = np.searchsorted(kept_index, visual_index[source]).astype(np.int32)
    outputs = [hidden_states[kept_index].copy(), residual[kept_index].copy()]
    for values, out in zip((hidden_states, residual), outputs, strict=True):
        for row, token, n in zip(visual_index_out, source, merged_length, strict=True):
            if n:
                merged = _merge(values[visual_index[token : token + n]].astype(np.float32), attributes["merge"])
                out[row] = merged.astype(out.dtype)
    return outputs[0], outputs[1], kept_index, visual_index_out
