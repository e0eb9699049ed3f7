# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune in standard ONNX operators; the same steps as the reference in token_prune.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float, as_int, column, filled, rows, stage, value
from fastmmoe.exporter.ops.token_prune import COSINE_FLOOR, IMPORTANCE_FLOOR, NORM_FLOOR, TOKEN_PRUNE

_TO_END = 2**63 - 1


@dataclass(frozen=True)
class _Windows:
    """The G windows; a "token" is a position among the V visual tokens."""

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
    keep_slots: ir.Value,
    merge_slots: ir.Value,
    alpha: ir.Value,
    attributes: dict[str, Any],
) -> tuple[ir.Value, ...]:
    """The body's outputs; inputs and outputs as in `TOKEN_PRUNE`."""

    def keep_all(op: OpBuilder) -> list[ir.Value]:
        index = op.Range(0, op.Squeeze(rows(op, hidden_states)), 1)  # [T]
        index = op.Cast(index, to=ir.DataType.INT32)
        return [op.Identity(hidden_states), op.Identity(residual), index, op.Identity(visual_index)]

    def prune(op: OpBuilder) -> list[ir.Value]:
        K, M = rows(op, keep_slots), rows(op, merge_slots)
        p, a, is_bad = _clean(op, routing_probs, attention)
        windows = _find_windows(op, visual_index, attributes["window"])
        score = _score(op, p, a, windows, alpha)
        M = _refuse_impossible(op, rows(op, visual_index), K, M, attributes["window"])
        merged, is_kept = _choose(op, score, a, is_bad, windows, K, M)
        return _gather(op, (hidden_states, residual), visual_index, windows, merged, is_kept, attributes["merge"])

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


def _refuse_impossible(op: OpBuilder, V: ir.Value, K: ir.Value, M: ir.Value, window: int) -> ir.Value:
    """M where the reference accepts it, else -1, which TopK refuses: ONNX has no other way to fail."""
    if window == 1:
        return op.Where(op.Greater(M, 0), -1, M)
    most = op.Min(K, op.Div(op.Sub(V, 1), window), op.Div(op.Sub(V, K), window - 1))  # (V - 1) // w = ceil(V / w) - 1
    return op.Where(op.Greater(M, most), -1, M, _outputs=["checked_M"])


def _choose(
    op: OpBuilder, score: ir.Value, a: ir.Value, is_bad: ir.Value, windows: _Windows, K: ir.Value, M: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Steps 5 and 6: the merged windows [M]; which tokens survive [V] bool, counting merged windows by their first."""
    with stage(op, "choose"):
        # A TopK that is asked for too much fails; its name is what the user then sees.
        _, merged = op.TopK(score, M, axis=0, _outputs=["best_scores", "merged"], _name="merge_slots_fit")  # [M]
        none, chosen = filled(op, op.Shape(score), False), filled(op, op.Shape(merged), True)
        is_merged = op.ScatterElements(none, merged, chosen, axis=0, _outputs=["is_merged"])  # [G]
        single = op.Squeeze(op.NonZero(op.Not(op.Gather(is_merged, windows.of_token))), [0], _outputs=["single"])
        key = op.Where(is_bad, float("-inf"), a)  # a cleaned token sorts after every other
        key, free = op.Gather(key, single), op.Sub(K, M)
        _, best = op.TopK(key, free, axis=0, _outputs=["best_keys", "best"], _name="keep_slots_fit")  # [K - M]
        survivors = [op.Gather(windows.first, merged), op.Gather(single, best)]
        source = op.Concat(*survivors, axis=0, _outputs=["source"])  # [K]
        none, kept = filled(op, op.Shape(a), False), filled(op, K, True)
        is_kept = op.ScatterElements(none, source, kept, axis=0, _outputs=["is_kept"])  # [V]
        return merged, is_kept


def _gather(
    op: OpBuilder,
    tensors: tuple[ir.Value, ...],
    visual_index: ir.Value,
    windows: _Windows,
    merged: ir.Value,
    is_kept: ir.Value,
    merge: str,
) -> list[ir.Value]:
    """Steps 7 and 8: the outputs in the contract's order."""
    with stage(op, "gather"):
        everything = filled(op, rows(op, tensors[0]), True)
        stays = op.ScatterElements(everything, visual_index, is_kept, axis=0, _outputs=["stays"])  # [T]
        kept_index = op.Squeeze(op.NonZero(stays), [0], _outputs=["kept_index"])  # [T - V + K]
        new_row = op.Gather(_ordinal(op, stays), visual_index, _outputs=["new_row"])  # [V]; of survivors only
        destination = column(op, op.Gather(new_row, op.Gather(windows.first, merged)))  # [M, 1]
        source = op.Gather(visual_index, op.Gather(windows.tokens, merged))  # [M, w], rows of the inputs
        is_inside = column(op, op.Gather(windows.is_inside, merged))  # [M, w, 1]
        length = column(op, op.Gather(windows.length, merged))  # [M, 1]
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
    if merge == "mean":
        return mean
    direction = op.Div(mean, op.Max(op.ReduceL2(mean, [1]), NORM_FLOOR))
    greatest = op.ReduceMax(op.ReduceL2(vectors, [2], keepdims=0), [1])  # [M, 1]
    return op.Mul(direction, greatest)
