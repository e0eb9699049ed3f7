# SPDX-License-Identifier: Apache-2.0
"""Stored weights, in rows or in tile order (tiles.py), as matrices in standard ONNX operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float
from fastmmoe.exporter.ops.quantise import NIBBLE_COLUMNS
from fastmmoe.exporter.ops.tiles import PANEL_ROWS, WORD_BYTES


def tiles_as_float(op: OpBuilder, tiles: ir.Value, weight_format: str) -> ir.Value:
    """What the elements of one matrix in tile order are, float32 [16 panels, columns]; of integers without scale."""
    ordered = op.Transpose(tiles, perm=[0, 2, 1, 3])  # [panels, 16, words, elements]
    values = nibbles_as_float(op, ordered) if weight_format == "int4" else as_float(op, ordered)
    rows = op.Mul(op.Shape(tiles, start=0, end=1), [PANEL_ROWS])
    return op.Reshape(values, op.Concat(rows, [-1], axis=0))


def rows_as_float(op: OpBuilder, stored: ir.Value, weight_format: str) -> ir.Value:
    """What stored elements [rows, n] are, float32 [rows, n], or [rows, 2n] with int4; of integers without scale."""
    if weight_format != "int4":
        return as_float(op, stored)
    return op.Reshape(nibbles_as_float(op, op.Reshape(stored, [0, -1, WORD_BYTES])), [0, -1])


def panels_as_rows(op: OpBuilder, panels: ir.Value) -> ir.Value:
    """Scales or zeros of one matrix [panels, groups, 16] -> [16 panels, groups]."""
    rows = op.Mul(op.Shape(panels, start=0, end=1), [PANEL_ROWS])
    return op.Reshape(op.Transpose(panels, perm=[0, 2, 1]), op.Concat(rows, [-1], axis=0))


def groups_as_columns(op: OpBuilder, groups: ir.Value, group: ir.Value) -> ir.Value:
    """Scales or zeros of one matrix [rows, groups] for each of its columns, float32 [rows, columns].

    Args:
        group: int64 [columns], that of each column.
    """
    return op.Gather(as_float(op, groups), group, axis=1)


def nibbles_as_float(op: OpBuilder, packed: ir.Value) -> ir.Value:
    """Bytes int8 [..., 4] -> what the 8 columns of each word are, 0 to 15, float32 [..., 8]."""
    low = as_float(op, op.BitwiseAnd(packed, op.Cast([15], to=ir.DataType.INT8)))
    signed = as_float(op, packed)
    unsigned = op.Where(op.Less(signed, 0.0), op.Add(signed, 256.0), signed)
    high = op.Mul(op.Sub(unsigned, low), 0.0625)
    stored = NIBBLE_COLUMNS[::2] + NIBBLE_COLUMNS[1::2]
    return op.Gather(op.Concat(low, high, axis=-1), np.argsort(stored).tolist(), axis=-1)
