# SPDX-License-Identifier: Apache-2.0
"""FmmRotary in standard ONNX operators; the same steps as reference.py beside it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder


def build_rotary(
    op: OpBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, *norm: ir.Value, attributes: dict[str, Any]
) -> ir.Value:
    """The body's output; inputs and output as in `ROTARY`."""
    if norm:
        x = op.RMSNormalization(x, *norm, axis=-1, epsilon=attributes["epsilon"])
    a, b = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
    turned = op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(b, cos), op.Mul(a, sin))
    return op.Concat(*turned, axis=-1)
