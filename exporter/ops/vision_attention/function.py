# SPDX-License-Identifier: Apache-2.0
"""FmmVisionAttention in standard ONNX operators, in float32 whatever `compute` is."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float


def build_vision_attention(op: OpBuilder, qkv: ir.Value, *, attributes: dict[str, Any]) -> ir.Value:
    """The body's output; input and output as in `VISION_ATTENTION`."""
    parts = op.Transpose(as_float(op, qkv), perm=[2, 0, 3, 1, 4])  # [3, B, N, T, D]
    query, key, value = (op.Gather(parts, i, axis=0) for i in range(3))
    turned = op.Transpose(op.Mul(key, attributes["scale"]), perm=[0, 1, 3, 2])
    weights = op.Softmax(op.MatMul(query, turned), axis=-1)  # [B, N, T, T]
    return op.CastLike(op.Transpose(op.MatMul(weights, value), perm=[0, 2, 1, 3]), qkv)
