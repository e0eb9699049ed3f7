# SPDX-License-Identifier: Apache-2.0
"""FmmAttention in standard ONNX operators; the same steps as the reference in reference.py.

The caches are copied, as standard operators cannot share an address; the rest of the work follows the rows in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.attention.contract import ATTENTION
from fastmmoe.exporter.ops.building import as_float, as_int, column, filled, rows, stage, value

_TO_END = 2**63 - 1


@dataclass(frozen=True)
class _Call:
    """What every sequence of the call reads; lengths and rows int64."""

    inputs: dict[str, ir.Value]
    present: dict[str, ir.Value]  # key, and value unless the keys hold them
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Rows:
    """The rows of one sequence, int64 [1] each."""

    b: ir.Value
    first: ir.Value
    end: ir.Value
    past: ir.Value
    used: ir.Value


def build_attention(op: OpBuilder, *tensors: ir.Value, attributes: dict[str, Any]) -> tuple[ir.Value, ...]:
    """The body's outputs; inputs and outputs as in `ATTENTION`."""
    x = dict(zip((t.name for t in ATTENTION.inputs_for(attributes)), tensors, strict=True))
    with stage(op, "write"):
        place = _find_places(op, x)
        present = {}
        for part in ("key",) if attributes["value_width"] else ("key", "value"):
            with stage(op, part):
                present[part] = _write_rows(op, x[f"past_{part}"], x[part], x["sequence_ids"], place)
        written = list(present.values())
        if attributes["writes_position_ids"]:
            index = op.Concat(column(op, as_int(op, x["sequence_ids"])), column(op, place), axis=1)  # [T, 2]
            written.append(op.ScatterND(x["past_position_ids"], index, x["position_ids"]))
    output, lse = _attend_each(op, _Call(x, present, attributes))
    return (op.CastLike(output, x["query"]), *written, *([lse] if attributes["has_lse"] else []))


def _find_places(op: OpBuilder, x: dict[str, ir.Value]) -> ir.Value:
    """The row of its sequence's cache that each row is written to, [T] int64."""
    offsets = as_int(op, x["sequence_offsets"])
    row = op.Range(0, op.Squeeze(rows(op, x["query"])), 1, _outputs=["row"])  # [T]
    is_after = op.GreaterOrEqual(column(op, row), op.Slice(offsets, [1], [_TO_END]))  # [T, A]
    a = op.ReduceSum(as_int(op, is_after), [1], keepdims=0, _outputs=["a"])  # [T]
    past = as_int(op, op.Gather(x["past_lengths"], x["sequence_ids"]))
    return op.Add(past, op.Sub(row, op.Gather(offsets, a)), _outputs=["place"])


def _write_rows(op: OpBuilder, cache: ir.Value, new: ir.Value, ids: ir.Value, place: ir.Value) -> ir.Value:
    """cache [B, K, C, D] with new [T, K, D] at (ids, every head, place)."""
    head = op.Range(0, op.Squeeze(op.Shape(new, start=1, end=2)), 1, _outputs=["head"])  # [K]
    shape = op.Concat(op.Shape(new, start=0, end=2), [1], axis=0)  # T, K, 1
    parts = (op.Unsqueeze(as_int(op, ids), [1, 2]), op.Unsqueeze(head, [0, 2]), op.Unsqueeze(place, [1, 2]))
    index = op.Concat(*(op.Expand(part, shape) for part in parts), axis=2, _outputs=["index"])  # [T, K, 3]
    return op.ScatterND(cache, index, op.CastLike(new, cache))


def _attend_each(op: OpBuilder, call: _Call) -> tuple[ir.Value, ir.Value]:
    """output [T, N, W] and lse [T, N], float32: one sequence after the other."""
    offsets = as_int(op, call.inputs["sequence_offsets"])

    def body(op: OpBuilder, a: ir.Value, more: ir.Value, output: ir.Value, lse: ir.Value) -> list[ir.Value]:
        with stage(op, "sequence"):
            first, end = (op.Gather(offsets, op.Add(op.Unsqueeze(a, [0]), i)) for i in (0, 1))
            b = as_int(op, op.Gather(call.inputs["sequence_ids"], first))
            past = as_int(op, op.Gather(call.inputs["past_lengths"], b))
            used = op.Add(past, op.Sub(end, first), _outputs=["used"])
            own, own_lse = _attend_sequence(op, call, _Rows(b, first, end, past, used))
        return [op.Identity(more), op.Concat(output, own, axis=0), op.Concat(lse, own_lse, axis=0)]

    with stage(op, "each"):
        # onnxruntime wants the rank of a loop's inputs.
        state = [
            value("i", ir.DataType.INT64, 0),
            value("more", ir.DataType.BOOL, 0),
            value("output_before", ir.DataType.FLOAT, 3),
            value("lse_before", ir.DataType.FLOAT, 2),
        ]
        results = [
            value("more_after", ir.DataType.BOOL, 0),
            value("output_after", ir.DataType.FLOAT, 3),
            value("lse_after", ir.DataType.FLOAT, 2),
        ]
        graph = op.builder.subgraph(body, state, results, name="each_sequence")
        heads = op.Shape(call.inputs["query"], start=1, end=2)
        width = op.Shape(call.present.get("value", call.inputs["query"]), start=-1)
        if call.attributes["value_width"]:
            width = op.Constant(value_ints=[call.attributes["value_width"]])
        nothing = filled(op, op.Concat([0], heads, width, axis=0), 0.0), filled(op, op.Concat([0], heads, axis=0), 0.0)
        count = op.Sub(op.Size(offsets), 1)
        return op.Loop(count, None, *nothing, body=graph, _outputs=["output", "lse"])


def _attend_sequence(op: OpBuilder, call: _Call, r: _Rows) -> tuple[ir.Value, ir.Value]:
    """output [R, N, W] and lse [R, N] of the R rows of one sequence."""
    x, attributes = call.inputs, call.attributes
    key = _used_rows(op, call.present["key"], r)  # [K, U, D]
    if attributes["value_width"]:
        values = op.Slice(key, [0], [attributes["value_width"]], [2])
    else:
        values = _used_rows(op, call.present["value"], r)
    own = as_float(op, op.Slice(x["query"], r.first, r.end, [0]))  # [R, N, D]
    heads = op.Shape(key, start=0, end=1)
    by_head = op.Reshape(own, op.Concat([0], heads, [-1], op.Shape(own, start=2, end=3), axis=0))  # [R, K, G, D]
    by_head = op.Transpose(by_head, perm=[1, 2, 0, 3], _outputs=["by_head"])  # [K, G, R, D]
    transposed = op.Unsqueeze(op.Transpose(key, perm=[0, 2, 1]), [1])  # [K, 1, D, U]
    scores = op.Mul(op.MatMul(by_head, transposed), float(attributes["scale"]))
    scores = op.Where(_is_seen(op, call, r), scores, float("-inf"), _outputs=["scores"])  # [K, G, R, U]
    greatest = op.ReduceMax(scores, [3])  # [K, G, R, 1]
    if attributes["has_sinks"]:
        sinks = op.Reshape(as_float(op, x["sink_logits"]), op.Concat(heads, [-1, 1, 1], axis=0))
        greatest = op.Max(greatest, sinks, _outputs=["greatest"])
    weights = op.Exp(op.Sub(scores, greatest))
    total = op.ReduceSum(weights, [3])
    if attributes["has_sinks"]:
        total = op.Add(total, op.Exp(op.Sub(sinks, greatest)), _outputs=["total"])
    y = op.Div(op.MatMul(weights, op.Unsqueeze(values, [1])), total)  # [K, G, R, W]
    lse = op.Add(op.Log(total), greatest)  # [K, G, R, 1]
    N = op.Shape(own, start=1, end=2)
    shape = op.Concat(op.Sub(r.end, r.first), N, [-1], axis=0)
    y = op.Reshape(op.Transpose(y, perm=[2, 0, 1, 3]), shape)
    return y, op.Reshape(op.Transpose(lse, perm=[2, 0, 1, 3]), op.Concat([-1], N, axis=0))


def _used_rows(op: OpBuilder, cache: ir.Value, r: _Rows) -> ir.Value:
    """The rows of a cache [B, K, C, D] that one sequence uses, [K, U, D] float32: the others may hold anything."""
    return as_float(op, op.Slice(op.Squeeze(op.Gather(cache, r.b), [0]), [0], r.used, [1]))


def _is_seen(op: OpBuilder, call: _Call, r: _Rows) -> ir.Value:
    """Whether each row sees each used row of the cache, [R, U] bool."""
    row = op.Range(op.Squeeze(r.past), op.Squeeze(r.used), 1)  # [R]
    cached = op.Range(0, op.Squeeze(r.used), 1)  # [U]
    seen = op.LessOrEqual(cached, column(op, row), _outputs=["seen"])
    if not call.attributes["window"]:
        return seen
    x = call.inputs
    new = as_int(op, op.Slice(x["position_ids"], r.first, r.end))  # [R]
    old = op.Slice(op.Squeeze(op.Gather(x["past_position_ids"], r.b), [0]), [0], r.past)
    distance = op.Sub(column(op, new), op.Concat(as_int(op, old), new, axis=0), _outputs=["distance"])
    within = op.And(op.GreaterOrEqual(distance, 0), op.Less(distance, call.attributes["window"]))
    return op.And(seen, within)
