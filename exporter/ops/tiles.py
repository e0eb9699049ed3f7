# SPDX-License-Identifier: Apache-2.0
"""The tile order of weights, which the CPU's kernels read (plugins/common/cpu/panels/panels.h).

A matrix [N, n] of stored elements is cut into panels of 16 rows and words of 4 bytes, a elements each: 2 of bfloat16,
4 of int8 (with int4 these are 8 columns). The tiles are [ceil(N / 16), ceil(n / a), 16, a]; zeros fill up the last
panel and the last word. Scales and zeros [N, groups] become [ceil(N / 16), groups, 16].
"""

from __future__ import annotations

import numpy as np

from fastmmoe.runtime.types import Array

PANEL_ROWS = 16
WORD_BYTES = 4
WORD_COLUMNS = {"float": 2, "int8": 4, "int4": 8}
"""Columns in a word, by weight_format; float is bfloat16."""
INT4_COLUMNS = WORD_COLUMNS["int4"]
"""A row of int4, in tiles or not, is whole words of so many columns."""


def to_tiles(values: Array) -> Array:
    """[..., N, n] -> [..., ceil(N / 16), ceil(n / a), 16, a]."""
    width = WORD_BYTES // values.dtype.itemsize
    *stack, rows, columns = values.shape
    padding = [(0, 0)] * len(stack) + [(0, -rows % PANEL_ROWS), (0, -columns % width)]
    cut = np.pad(values, padding).reshape(*stack, -(-rows // PANEL_ROWS), PANEL_ROWS, -(-columns // width), width)
    return np.ascontiguousarray(np.swapaxes(cut, -3, -2))


def from_tiles(tiles: Array, rows: int, columns: int) -> Array:
    """The inverse of `to_tiles`; `columns` counts stored elements."""
    *stack, panels, words, outputs, width = tiles.shape
    padded = np.swapaxes(tiles, -3, -2).reshape(*stack, panels * outputs, words * width)
    return padded[..., :rows, :columns]


def to_panels(scales: Array) -> Array:
    """Scales or zeros [..., N, groups] -> [..., ceil(N / 16), groups, 16]."""
    *stack, rows, groups = scales.shape
    padding = [(0, 0)] * len(stack) + [(0, -rows % PANEL_ROWS), (0, 0)]
    cut = np.pad(scales, padding).reshape(*stack, -(-rows // PANEL_ROWS), PANEL_ROWS, groups)
    return np.ascontiguousarray(np.swapaxes(cut, -2, -1))


def from_panels(panels: Array, rows: int) -> Array:
    """The inverse of `to_panels`."""
    *stack, count, groups, outputs = panels.shape
    return np.swapaxes(panels, -2, -1).reshape(*stack, count * outputs, groups)[..., :rows, :]
