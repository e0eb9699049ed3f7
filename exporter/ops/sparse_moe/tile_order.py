# SPDX-License-Identifier: Apache-2.0
"""Experts' weights in tile order and back: gate and up panels take turns (contract.py beside it, tiles.py above)."""

from __future__ import annotations

import numpy as np

from fastmmoe.exporter.ops.quantise import QuantisedWeights
from fastmmoe.exporter.ops.tiles import PANEL_ROWS, from_panels, from_tiles, to_panels, to_tiles
from fastmmoe.runtime.types import Array

_PANEL_OF_TILES, _PANEL_OF_SCALES = -4, -3
"""Where the axis of gate and up stands in tiles and in scales."""


def tile_weights(values: Array, *, is_gate_up: bool) -> Array:
    """Stored elements of experts [..., 2I or H, n] in the order of `tiled` of the contract."""
    if not is_gate_up:
        return to_tiles(values)
    return np.stack([to_tiles(half) for half in np.split(values, 2, axis=-2)], axis=_PANEL_OF_TILES)


def tile_scales(scales: Array, *, is_gate_up: bool) -> Array:
    """Scales or zeros [..., 2I or H, groups] likewise."""
    if not is_gate_up:
        return to_panels(scales)
    return np.stack([to_panels(half) for half in np.split(scales, 2, axis=-2)], axis=_PANEL_OF_SCALES)


def tile_packed(packed: QuantisedWeights, *, is_gate_up: bool) -> QuantisedWeights:
    """Integers with their scales and zeros likewise."""
    zero = None if packed.zero is None else tile_scales(packed.zero, is_gate_up=is_gate_up)
    values = tile_weights(packed.values, is_gate_up=is_gate_up)
    return QuantisedWeights(values, tile_scales(packed.scale, is_gate_up=is_gate_up), zero)


def untile_weights(tiles: Array, rows: int, columns: int, *, is_gate_up: bool) -> Array:
    """The inverse of `tile_weights`.

    Args:
        rows: I of gate and up, H of down.
        columns: stored elements of a row.
    """
    if not is_gate_up:
        return from_tiles(tiles, rows, columns)
    halves = [from_tiles(np.take(tiles, half, axis=_PANEL_OF_TILES), rows, columns) for half in (0, 1)]
    return np.concatenate(halves, axis=-2)


def untile_scales(panels: Array, rows: int, *, is_gate_up: bool) -> Array:
    """The inverse of `tile_scales`."""
    if not is_gate_up:
        return from_panels(panels, rows)
    return np.concatenate([from_panels(np.take(panels, half, axis=_PANEL_OF_SCALES), rows) for half in (0, 1)], axis=-2)


def rows_of_tiles(tiles: Array, rows: Array, of_expert: int, *, is_gate_up: bool) -> Array:
    """Some rows [n, stored elements, filled up] of tiles, or [n, groups] of scales, without all of them in memory.

    Args:
        rows: numbers of rows of all experts, one expert after the other.
        of_expert: rows of an expert.
    """
    expert, row = rows // of_expert, rows % of_expert
    if is_gate_up:
        half, row = row // (of_expert // 2), row % (of_expert // 2)
        found = tiles[expert, row // PANEL_ROWS, half]
    else:
        found = tiles[expert, row // PANEL_ROWS]
    # [n, words, 16, b] or [n, groups, 16]
    own = np.take_along_axis(found, (row % PANEL_ROWS).reshape(-1, 1, 1, *(() if found.ndim == 3 else (1,))), axis=2)
    flat: Array = own.reshape(len(rows), -1)
    return flat


def untile_packed(packed: QuantisedWeights, rows: int, columns: int, *, is_gate_up: bool) -> QuantisedWeights:
    """The inverse of `tile_packed`."""
    zero = None if packed.zero is None else untile_scales(packed.zero, rows, is_gate_up=is_gate_up)
    values = untile_weights(packed.values, rows, columns, is_gate_up=is_gate_up)
    return QuantisedWeights(values, untile_scales(packed.scale, rows, is_gate_up=is_gate_up), zero)
