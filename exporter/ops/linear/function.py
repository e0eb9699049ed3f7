# SPDX-License-Identifier: Apache-2.0
"""FmmLinear in standard ONNX operators; the same steps as reference.py beside it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float, stage
from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.exporter.ops.quantise import ZEROS
from fastmmoe.exporter.ops.tiles_body import groups_as_columns, panels_as_rows, rows_as_float, tiles_as_float

_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def build_linear(op: OpBuilder, x: ir.Value, *tensors: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    """The body's output; inputs and output as in `LINEAR`."""
    given = dict(zip((t.name for t in LINEAR.inputs_for(attributes)), (x, *tensors), strict=True))
    with stage(op, "weights"):
        weights = _weights(op, given, attributes)
    y = op.Gemm(as_float(op, x), weights, *([as_float(op, given["bias"])] if "bias" in given else []), transB=1)
    if attributes["activation"] != "none":
        y = op.Gelu(y, approximate=_APPROXIMATE[attributes["activation"]])
    if "residual" in given:
        y = op.Add(y, as_float(op, given["residual"]))
    return op.CastLike(y, x)


def _weights(op: OpBuilder, given: dict[str, ir.Value], attributes: dict[str, Any]) -> ir.Value:
    """What the weights stand for, float32 [N, K]."""
    weight_format, is_tiled = attributes["weight_format"], attributes[LAYOUT] == TILES
    K = op.Shape(given["x"], start=1, end=2)
    if is_tiled:
        values = op.Slice(tiles_as_float(op, given["weight"], weight_format), [0], K, [1])
    else:
        values = rows_as_float(op, given["weight"], weight_format)
    if weight_format != "float":
        group = op.Div(op.Range(0, op.Squeeze(K), 1), [attributes["group_size"]])

        def spread(groups: ir.Value) -> ir.Value:
            return groups_as_columns(op, panels_as_rows(op, groups) if is_tiled else groups, group)

        zero = spread(given["zero"]) if "zero" in given else float(ZEROS[weight_format])
        values = op.Mul(op.Sub(values, zero), spread(given["scale"]))
    return op.Slice(values, [0], [attributes["out_features"]], [0]) if is_tiled else values
