# SPDX-License-Identifier: Apache-2.0
"""How a model's experts are written: their format, and the order in which they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.quantise import Packing, QuantisedWeights
from fastmmoe.exporter.ops.sparse_moe.tile_order import tile_packed, tile_weights
from fastmmoe.exporter.ops.tiles import PANEL_ROWS, WORD_BYTES
from fastmmoe.runtime.types import Array


@dataclass(frozen=True)
class Storage:
    """Storage of a model's experts.

    Attributes:
        packing: None = they stay floats; as tiles these are bfloat16.
        is_tiled: they are in tile order.
    """

    packing: Packing | None
    is_tiled: bool

    def attributes(self, expert_size: int) -> dict[str, Any]:
        """Those of FmmSparseMoE that say it."""
        packing = {} if self.packing is None else self.packing.attributes()
        order = {LAYOUT: TILES, "expert_size": expert_size} if self.is_tiled else {LAYOUT: "logical", "expert_size": 0}
        return packing | order

    @property
    def parts(self) -> tuple[str, ...]:
        """Suffixes of the names of what a parameter becomes."""
        if self.packing is None:
            return ("",)
        return ("", "_scale", "_zero") if self.packing.zero_points else ("", "_scale")

    def store(self, expert: Array, *, is_gate_up: bool) -> QuantisedWeights | Array:
        """One expert [rows, columns]: float32 that is packed, or the bits of bfloat16, int16."""
        if self.packing is None:
            return tile_weights(expert, is_gate_up=is_gate_up)
        packed = self.packing.quantise(expert)
        return tile_packed(packed, is_gate_up=is_gate_up) if self.is_tiled else packed

    def shape(self, part: str, experts: int, rows: int, columns: int, *, is_gate_up: bool) -> tuple[int, ...]:
        """That of a part of parameters [experts, rows, columns]."""
        halves = (2,) if is_gate_up and self.is_tiled else ()
        panels = -(-(rows // (2 if is_gate_up else 1)) // PANEL_ROWS)
        if part:
            assert self.packing is not None
            groups = -(-columns // self.packing.group_size)
            return (experts, panels, *halves, groups, PANEL_ROWS) if self.is_tiled else (experts, rows, groups)
        if self.packing is None:
            stored, width = columns, WORD_BYTES // 2
        else:
            stored, width = columns // 2 if self.packing.weight_format == "int4" else columns, WORD_BYTES
        if not self.is_tiled:
            return experts, rows, stored
        return experts, panels, *halves, -(-stored // width), PANEL_ROWS, width


def part_of(stored: QuantisedWeights | Array, part: str) -> Array:
    """The array of one of `Storage.parts`."""
    if isinstance(stored, np.ndarray):
        return stored
    found = {"": stored.values, "_scale": stored.scale, "_zero": stored.zero}[part]
    assert found is not None
    return found
