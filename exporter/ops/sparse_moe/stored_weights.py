# SPDX-License-Identifier: Apache-2.0
"""One expert's weights from how they are stored to float32, in standard ONNX operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float, as_int
from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.quantise import ZEROS, from_fp8
from fastmmoe.exporter.ops.tiles_body import rows_as_float


@dataclass(frozen=True)
class StoredWeights:
    """gate_up or down of all experts.

    Attributes:
        scale, zero: None where the format has none.
        rows: I of gate_up, H of down: an int, or a value int64 [1].
        columns: of a row, likewise.
    """

    values: ir.Value
    scale: ir.Value | None
    zero: ir.Value | None
    is_gate_up: bool
    rows: ir.Value | int
    columns: ir.Value | int

    def of_expert(self, op: OpBuilder, expert: ir.Value, attributes: dict[str, Any]) -> ir.Value:
        """float32 [2I, H] or [H, I]."""
        weight_format = attributes["weight_format"]
        is_tiled = attributes[LAYOUT] == TILES
        stored = op.Gather(self.values, expert, axis=0)
        if is_tiled:
            stored = self._rows_of_tiles(op, stored, per_word=4 if weight_format != "float" else 2)
        if weight_format == "float":
            return as_float(op, self._cut(op, stored) if is_tiled else stored)
        q = _floats(op, stored, weight_format)
        if is_tiled:
            q = self._cut(op, q)
        scale, zero = (None if t is None else self._spread(op, t, expert, attributes) for t in (self.scale, self.zero))
        offset = float(ZEROS[weight_format]) if zero is None else zero
        return op.Mul(op.Sub(q, offset), scale)

    def _rows_of_tiles(self, op: OpBuilder, tiles: ir.Value, per_word: int) -> ir.Value:
        """[panels, 2, words, 16, b] or [panels, words, 16, b] -> [2 x rows or rows, words x b], filled up."""
        if not self.is_gate_up:
            return _reshape(op, op.Transpose(tiles, perm=[0, 2, 1, 3]), [-1], _product(op, tiles, 1, per_word))
        ordered = op.Transpose(tiles, perm=[1, 0, 3, 2, 4])  # [2, panels, 16, words, b]
        halves = _reshape(op, ordered, [2, -1], _product(op, tiles, 2, per_word))
        gate_up = op.Slice(halves, [0], _ends(self.rows), [1])
        return _reshape(op, gate_up, [-1], _product(op, tiles, 2, per_word))

    def _cut(self, op: OpBuilder, matrix: ir.Value) -> ir.Value:
        """Without what fills up words, and rows of down."""
        cut = op.Slice(matrix, [0], _ends(self.columns), [1])
        return cut if self.is_gate_up else op.Slice(cut, [0], _ends(self.rows), [0])

    def _spread(self, op: OpBuilder, groups: ir.Value, expert: ir.Value, attributes: dict[str, Any]) -> ir.Value:
        """Scales or zeros for each column, float32 like the weights."""
        own = op.Gather(groups, expert, axis=0)
        if attributes[LAYOUT] == TILES:
            own = self._rows_of_panels(op, own)
        wide = op.Unsqueeze(as_float(op, own), [2])
        wide = op.Expand(wide, [1, 1, attributes["group_size"]])
        flat = op.Reshape(wide, [0, -1])
        return op.Slice(flat, [0], _ends(self.columns), [1])

    def _rows_of_panels(self, op: OpBuilder, panels: ir.Value) -> ir.Value:
        """[panels, 2, groups, 16] or [panels, groups, 16] -> [2 x rows or rows, groups]."""
        if not self.is_gate_up:
            ordered = op.Transpose(panels, perm=[0, 2, 1])
            matrix = _reshape(op, ordered, [-1], op.Shape(panels, start=1, end=2))
            return op.Slice(matrix, [0], _ends(self.rows), [0])
        ordered = op.Transpose(panels, perm=[1, 0, 3, 2])  # [2, panels, 16, groups]
        groups = op.Shape(panels, start=2, end=3)
        halves = _reshape(op, ordered, [2, -1], groups)
        return _reshape(op, op.Slice(halves, [0], _ends(self.rows), [1]), [-1], groups)


def _ends(size: ir.Value | int) -> Any:
    return [size] if isinstance(size, int) else size


def _product(op: OpBuilder, tiles: ir.Value, axis: int, per_word: int) -> ir.Value:
    """Elements of a row in tiles whose words are on this axis, int64 [1]."""
    return op.Mul(op.Shape(tiles, start=axis, end=axis + 1), [per_word])


def _reshape(op: OpBuilder, value: ir.Value, first: list[int], last: ir.Value) -> ir.Value:
    return op.Reshape(value, op.Concat(first, last, axis=0))


def _floats(op: OpBuilder, stored: ir.Value, weight_format: str) -> ir.Value:
    """Bytes [rows, n] as the floats that they are without scale and zero, [rows, n] or [rows, 2n] with int4."""
    if weight_format == "fp8":
        # Negative numbers count from the end, as the bits of bytes do.
        values = from_fp8(np.arange(256).astype(np.uint8).view(np.int8))
        return op.Gather(op.Constant(value=ir.tensor(values)), as_int(op, stored))
    return rows_as_float(op, stored, weight_format)
