# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune in standard ONNX operators; the same steps as reference.py beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float, as_int, column, filled, loop_body, rows, stage, value
from fastmmoe.exporter.ops.token_prune.contract import COSINE_FLOOR, IMPORTANCE_FLOOR, NORM_FLOOR, TOKEN_PRUNE
from fastmmoe.runtime.method.policy import MEAN

_TO_END = 2**63 - 1


@dataclass(frozen=True)
class _Sequences:
    """What belongs to each of the B sequences, int64; `pruned` are those with K < V."""

    first: ir.Value  # [B]: first of its visual tokens
    V: ir.Value  # [B]
    K: ir.Value  # [B]
    M: ir.Value  # [B]
    pruned: ir.Value  # [n]


@dataclass(frozen=True)
class _Windows:
    """The G windows of a sequence; a "token" is a position among its V visual tokens."""

    first: ir.Value  # [G] int64: first token
    length: ir.Value  # [G] float32
    of_token: ir.Value  # [V] int64: the window of every token
    tokens: ir.Value  # [G, w] int64: its tokens; a short window repeats others in the places it lacks
    is_inside: ir.Value  # [G, w] bool: the places it has


def build_token_prune(
    op: OpBuilder,
    hidden_states: ir.Value,
    residual: ir.Value,
    routing_probs: ir.Value,
    attention: ir.Value,
    visual_index: ir.Value,
    visual_offsets: ir.Value,
    keep_slots: ir.Value,
    keep_offsets: ir.Value,
    merge_slots: ir.Value,
    merge_offsets: ir.Value,
    alpha: ir.Value,
    attributes: dict[str, Any],
) -> tuple[ir.Value, ...]:
    """The body's outputs; inputs and outputs as in `TOKEN_PRUNE`."""

    def keep_all(op: OpBuilder) -> list[ir.Value]:
        index = op.Range(0, op.Squeeze(rows(op, hidden_states)), 1)  # [T]
        index = op.Cast(index, to=ir.DataType.INT32)
        return [op.Identity(hidden_states), op.Identity(residual), index, op.Identity(visual_index)]

    def prune(op: OpBuilder) -> list[ir.Value]:
        ends = ((visual_offsets, visual_index), (keep_offsets, keep_slots), (merge_offsets, merge_slots))
        sequences = _find_sequences(op, ends, attributes["window"])
        visual = (visual_index, *_clean(op, routing_probs, attention))
        fate = _prune_each(op, visual, sequences, alpha, attributes["window"])
        return _gather(op, (hidden_states, residual), visual_index, fate, **attributes)

    branches = {}
    for name, build in (("keep_all", keep_all), ("prune", prune)):
        with stage(op, name):
            results = [value(f"{name}.{t.name}") for t in TOKEN_PRUNE.outputs]
            branches[name] = op.builder.subgraph(build, [], results, name=name)
    keeps_all = op.Equal(op.Size(keep_slots), op.Size(visual_index), _outputs=["keeps_all"])
    return op.If(
        keeps_all,
        then_branch=branches["keep_all"],
        else_branch=branches["prune"],
        _outputs=[t.name for t in TOKEN_PRUNE.outputs],
    )


def _find_sequences(op: OpBuilder, ends: tuple[tuple[ir.Value, ir.Value], ...], window: int) -> _Sequences:
    """The sequences, from each offsets input and the input whose length its last value is.

    Fails in the node slots_fit where the reference refuses the offsets: ONNX has no operator that only fails, but a
    TopK that is asked for -1 does.
    """
    with stage(op, "sequences"):
        offsets = [as_int(op, o) for o, _ in ends]
        V, K, M = (op.Sub(op.Slice(o, [1], [_TO_END]), op.Slice(o, [0], [-1])) for o in offsets)  # [B]
        # K >= 0 follows, as the most merges are no more than K.
        none_negative = op.Concat(op.Sub(V, K), M, op.Sub(_most_merges(op, V, K, window), M), axis=0)
        fits = [op.GreaterOrEqual(none_negative, 0)]
        for o, (_, counted) in zip(offsets, ends, strict=True):
            fits.append(op.Equal(op.Gather(o, [0, -1]), op.Concat([0], rows(op, counted), axis=0)))
        fits_all = op.Equal(op.ReduceMin(as_float(op, op.Concat(*fits, axis=0)), [0]), 1.0)  # [1]
        pruned = op.Squeeze(op.NonZero(op.Less(K, V)), [0])  # [n]
        count = op.Where(fits_all, rows(op, pruned), -1)
        pruned, _ = op.TopK(pruned, count, axis=0, _outputs=["pruned", "place"], _name="slots_fit")
        return _Sequences(op.Slice(offsets[0], [0], [-1]), V, K, M, pruned)


def _most_merges(op: OpBuilder, V: ir.Value, K: ir.Value, window: int) -> ir.Value:
    """The most windows [B] that each sequence may merge."""
    if window == 1:
        return op.Min(K, 0)
    return op.Min(K, op.Div(op.Sub(V, 1), window), op.Div(op.Sub(V, K), window - 1))  # (V - 1) // w = ceil(V / w) - 1


def _prune_each(
    op: OpBuilder, visual: tuple[ir.Value, ...], sequences: _Sequences, alpha: ir.Value, window: int
) -> ir.Value:
    """Steps 1 to 6 of every sequence: fate [V] float32, from visual_index and what `_clean` gives.

    -1: the token is dropped; 0: it is kept as it is; else it stands for its window, of this length.
    """

    def body(op: OpBuilder, i: ir.Value, more: ir.Value, fate: ir.Value) -> list[ir.Value]:
        b = op.Gather(sequences.pruned, op.Unsqueeze(i, [0]), _outputs=["b"])  # [1]
        first, V, K, M = (op.Gather(x, b) for x in (sequences.first, sequences.V, sequences.K, sequences.M))
        end = op.Add(first, V, _outputs=["end"])
        index, p, a, is_bad = (op.Slice(x, first, end, [0]) for x in visual)
        windows = _find_windows(op, index, window)
        own_fate = _choose(op, _score(op, p, a, windows, alpha), a, is_bad, windows, K, M)  # [V of the sequence]
        tokens = op.Range(op.Squeeze(first), op.Squeeze(end), 1, _outputs=["tokens"])
        return [op.Identity(more), op.ScatterElements(fate, tokens, own_fate, axis=0)]

    with stage(op, "each"):
        inputs, outputs = ("i", "more", "fate_before"), ("more_after", "fate_after")
        graph = loop_body(op, body, "each_sequence", rank=1, inputs=inputs, outputs=outputs)
        kept = filled(op, rows(op, visual[0]), 0.0)
        return op.Loop(op.Size(sequences.pruned), None, kept, body=graph, _outputs=["fate"])


def _clean(op: OpBuilder, p: ir.Value, a: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Step 0: p [V, E] and a [V] without non-finite values, and which rows of p had one [V] bool."""
    with stage(op, "clean"):
        infinity = float("inf")
        finite = op.Less(op.Abs(p), infinity)  # [V, E]; false for NaN
        is_bad = op.Equal(op.ReduceMin(as_float(op, finite), [1], keepdims=0), 0.0, _outputs=["is_bad"])
        p = op.Where(column(op, is_bad), 0.0, p, _outputs=["p"])
        usable = op.And(op.Less(op.Abs(a), infinity), op.Not(is_bad))
        return p, op.Where(usable, a, 0.0, _outputs=["a"]), is_bad


def _find_windows(op: OpBuilder, visual_index: ir.Value, window: int) -> _Windows:
    """Step 1. V > 0 here."""
    with stage(op, "windows"):
        V = rows(op, visual_index)
        token = op.Range(0, op.Squeeze(V), 1, _outputs=["token"])  # [V]
        # Row minus place is constant along a run and grows at every gap.
        offset = op.Sub(as_int(op, visual_index), token)
        grows = op.Greater(op.Slice(offset, [1], [_TO_END]), op.Slice(offset, [0], [-1]))  # [V - 1]
        starts_run = op.Concat([True], grows, axis=0, _outputs=["starts_run"])  # [V]
        run_start = op.Gather(op.Compress(token, starts_run), _ordinal(op, starts_run), _outputs=["run_start"])  # [V]
        starts_window = op.Equal(op.Mod(op.Sub(token, run_start), window), 0, _outputs=["starts_window"])  # [V]
        first = op.Compress(token, starts_window, _outputs=["first"])  # [G]
        length = op.Sub(op.Concat(op.Slice(first, [1], [_TO_END]), V, axis=0), first, _outputs=["length"])  # [G]
        place = list(range(window))
        tokens = op.Min(op.Add(column(op, first), place), op.Sub(V, 1), _outputs=["tokens"])  # [G, w]
        is_inside = op.Less(place, column(op, length), _outputs=["is_inside"])  # [G, w]
        return _Windows(first, as_float(op, length), _ordinal(op, starts_window), tokens, is_inside)


def _ordinal(op: OpBuilder, starts: ir.Value) -> ir.Value:
    """Number, from 0, of the stretch that each element is in, from the flags [n] of where stretches start."""
    return op.Sub(op.CumSum(as_int(op, starts), 0), 1)


def _score(op: OpBuilder, p: ir.Value, a: ir.Value, windows: _Windows, alpha: ir.Value) -> ir.Value:
    """Steps 2 to 4: c [G]."""
    with stage(op, "score"):
        fill = op.ReduceMean(p, [0], keepdims=0)  # [E]
        filled_up = op.Where(column(op, windows.is_inside), op.Gather(p, windows.tokens), fill)  # [G, w, E]
        mean = op.ReduceMean(filled_up, [1], _outputs=["mean"])  # [G, 1, E]
        norms = op.Mul(op.ReduceL2(filled_up, [2], keepdims=0), op.ReduceL2(mean, [2], keepdims=0))
        dot = op.ReduceSum(op.Mul(filled_up, mean), [2], keepdims=0)
        cosine = op.Div(dot, op.Max(norms, COSINE_FLOOR), _outputs=["cosine"])  # [G, w]
        redundancy = _window_mean(op, cosine, windows)
        redundancy = op.Where(op.Equal(windows.length, 1.0), 0.0, redundancy, _outputs=["redundancy"])  # [G]
        importance = _window_mean(op, op.Gather(a, windows.tokens), windows)  # [G]
        greatest = op.ReduceMax(importance, [0])
        importance = op.Div(importance, op.Add(greatest, IMPORTANCE_FLOOR), _outputs=["importance"])
        return op.Sub(op.Mul(alpha, redundancy), op.Mul(op.Sub(1.0, alpha), importance), _outputs=["score"])


def _window_mean(op: OpBuilder, x: ir.Value, windows: _Windows) -> ir.Value:
    """Mean [G] of x [G, w] over the places a window has."""
    return op.Div(op.ReduceSum(op.Where(windows.is_inside, x, 0.0), [1], keepdims=0), windows.length)


def _choose(
    op: OpBuilder, score: ir.Value, a: ir.Value, is_bad: ir.Value, windows: _Windows, K: ir.Value, M: ir.Value
) -> ir.Value:
    """Steps 5 and 6: the fate [V] of a sequence's tokens, as in `_prune_each`."""
    with stage(op, "choose"):
        _, merged = op.TopK(score, M, axis=0, _outputs=["best_scores", "merged"])  # [M]
        none, chosen = filled(op, op.Shape(score), False), filled(op, op.Shape(merged), True)
        is_merged = op.ScatterElements(none, merged, chosen, axis=0, _outputs=["is_merged"])  # [G]
        single = op.Squeeze(op.NonZero(op.Not(op.Gather(is_merged, windows.of_token))), [0], _outputs=["single"])
        key = op.Where(is_bad, float("-inf"), a)  # a cleaned token sorts after every other
        key, free = op.Gather(key, single), op.Sub(K, M)
        _, best = op.TopK(key, free, axis=0, _outputs=["best_keys", "best"])  # [K - M]
        survivors = [op.Gather(windows.first, merged), op.Gather(single, best)]
        source = op.Concat(*survivors, axis=0, _outputs=["source"])  # [K]
        length = op.Concat(op.Gather(windows.length, merged), filled(op, free, 0.0), axis=0)  # [K]
        dropped = filled(op, op.Shape(a), -1.0)
        return op.ScatterElements(dropped, source, length, axis=0, _outputs=["own_fate"])


def _gather(
    op: OpBuilder, tensors: tuple[ir.Value, ...], visual_index: ir.Value, fate: ir.Value, window: int, merge: str
) -> list[ir.Value]:
    """Steps 7 and 8: the outputs in the contract's order."""
    with stage(op, "gather"):
        is_kept = op.GreaterOrEqual(fate, 0.0, _outputs=["is_kept"])  # [V]
        everything = filled(op, rows(op, tensors[0]), True)
        stays = op.ScatterElements(everything, visual_index, is_kept, axis=0, _outputs=["stays"])  # [T]
        kept_index = op.Squeeze(op.NonZero(stays), [0], _outputs=["kept_index"])  # [T - V + K]
        new_row = op.Gather(_ordinal(op, stays), visual_index, _outputs=["new_row"])  # [V]; of survivors only
        first = op.Squeeze(op.NonZero(op.Greater(fate, 0.0)), [0], _outputs=["first"])  # [M]
        length = column(op, op.Gather(fate, first))  # [M, 1]
        destination = column(op, op.Gather(new_row, first))  # [M, 1]
        place = op.Range(0, window, 1, _outputs=["place"])  # [w]
        # A window's rows are consecutive; past the last row of all there is nothing to gather.
        source = op.Add(column(op, op.Gather(as_int(op, visual_index), first)), place)  # [M, w], rows of the inputs
        source = op.Min(source, op.Sub(rows(op, tensors[0]), 1))
        is_inside = column(op, op.Less(as_float(op, place), length))  # [M, w, 1]
        outputs = []
        for name, tensor in zip(("hidden", "residual"), tensors, strict=True):
            with stage(op, name):
                vectors = op.Where(is_inside, as_float(op, op.Gather(tensor, source)), 0.0)  # [M, w, H]
                vectors = op.CastLike(_merge(op, vectors, length, merge), tensor)  # [M, H]
                outputs.append(op.ScatterND(op.Gather(tensor, kept_index), destination, vectors))
        visual_index_out = op.Compress(new_row, is_kept)  # [K]
        return [*outputs, *(op.Cast(index, to=ir.DataType.INT32) for index in (kept_index, visual_index_out))]


def _merge(op: OpBuilder, vectors: ir.Value, length: ir.Value, merge: str) -> ir.Value:
    """One vector [M, H] for the rows [M, w, H] of each merged window; rows it lacks are 0."""
    mean = op.Div(op.ReduceSum(vectors, [1], keepdims=0), length, _outputs=["mean"])
    if merge == MEAN:
        return mean
    direction = op.Div(mean, op.Max(op.ReduceL2(mean, [1]), NORM_FLOOR))
    greatest = op.ReduceMax(op.ReduceL2(vectors, [2], keepdims=0), [1])  # [M, 1]
    return op.Mul(direction, greatest)
