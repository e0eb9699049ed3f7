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
from fastmmoe.exporter.ops.tiles_body import panels_as_columns, tiles_as_float

_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def build_linear(op: OpBuilder, x: ir.Value, *tensors: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    """The body's output; inputs and output as in `LINEAR`."""
    given = dict(zip((t.name for t in LINEAR.inputs_for(attributes)), (x, *tensors), strict=True))
    with stage(op, "weights"):
        if attributes[LAYOUT] != TILES:
            weights = as_float(op, given["weight"])
        else:
            weights = _from_tiles(op, given, attributes)
    y = op.Gemm(x, weights, *([given["bias"]] if "bias" in given else []), transB=1)
    if attributes["activation"] != "none":
        y = op.Gelu(y, approximate=_APPROXIMATE[attributes["activation"]])
    return op.Add(y, given["residual"]) if "residual" in given else y


def _from_tiles(op: OpBuilder, given: dict[str, ir.Value], attributes: dict[str, Any]) -> ir.Value:
    """What the weights stand for, float32 [N, K]."""
    weight_format, K = attributes["weight_format"], op.Shape(given["x"], start=1, end=2)
    values = op.Slice(tiles_as_float(op, given["weight_tiles"], weight_format), [0], K, [1])
    if weight_format != "float":
        group = op.Div(op.Range(0, op.Squeeze(K), 1), [attributes["group_size"]])
        scale = panels_as_columns(op, given["scale"], group)
        zero = panels_as_columns(op, given["zero"], group) if "zero" in given else float(ZEROS[weight_format])
        values = op.Mul(op.Sub(values, zero), scale)
    return op.Slice(values, [0], [attributes["out_features"]], [0])
