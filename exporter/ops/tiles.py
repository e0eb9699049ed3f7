# SPDX-License-Identifier: Apache-2.0
"""The tile order of weights, which the CPU's kernels read (plugins/common/cpu/panels/panels.h).

A matrix [N, n] of stored elements is cut into panels of 16 rows and words of 4 bytes, a elements each: 2 of bfloat16,
4 of int8 (with int4 these are 8 columns). The tiles are [ceil(N / 16), ceil(n / a), 16, a]; zeros fill up the last
panel and the last word. Scales and zeros [N, groups] become [ceil(N / 16), groups, 16].
"""

from __future__ import annotations

import numpy as np

from fastmmoe.exporter.ops.contract import LAYOUT, TILES, Attributes, Binding
from fastmmoe.runtime.types import Array

PANEL_ROWS = 16
WORD_BYTES = 4
WORD_COLUMNS = {"float": 2, "int8": 4, "int4": 8}
"""Columns in a word, by weight_format; float is bfloat16."""
INT4_COLUMNS = WORD_COLUMNS["int4"]
"""A row of int4, in tiles or not, is whole words of so many columns."""


def weight_sizes(attributes: Attributes) -> dict[str, int]:
    """p and g of stored weights, and n, w and b of tiles, by the attributes weight_format and group_size."""
    weight_format = str(attributes["weight_format"])
    return {
        "p": 2 if weight_format == "int4" else 1,
        "g": int(attributes["group_size"]),
        "n": PANEL_ROWS,
        "w": WORD_COLUMNS.get(weight_format, 0),
        "b": 2 if weight_format == "float" else 4,
    }


def weights_misfit(name: str, columns: str, attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with stored weights beside weight_format and the layout, or None.

    Args:
        name: of the input, whose type is W.
        columns: the letters of what its rows, and those of its like, have.
    """
    found, weight_format, is_tiled = binding.types["W"], attributes["weight_format"], attributes[LAYOUT] == TILES
    is_float = weight_format == "float"
    if is_float != (found != "int8"):
        expected = "float, float16 or bfloat16" if is_float else "int8"
        return f"{name} is {found}, expected {expected} with weight_format {weight_format}"
    if is_float and is_tiled and found != "bfloat16":
        return f"{name} is {found}, expected bfloat16 with weight_layout tiles"
    for letter in columns if weight_format == "int4" and not is_tiled else "":
        if binding.sizes[letter] % INT4_COLUMNS:
            return (
                f"{letter} is {binding.sizes[letter]}, expected a multiple of {INT4_COLUMNS} with weight_format int4 "
                "and weight_layout logical"
            )
    return None


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
