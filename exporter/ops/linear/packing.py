# SPDX-License-Identifier: Apache-2.0
"""How the weights of a linear layer are stored: rounded, in tiles or in rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops.contract import LAYOUT, TILES, Dimension
from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.exporter.ops.linear.reference import linear_weights
from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.exporter.ops.tiles import WORD_COLUMNS, to_panels, to_tiles
from fastmmoe.runtime.types import Array

HEAD = "language_model.lm_head.weight"
_ROUTER = ".mlp.experts.router."


@dataclass(frozen=True)
class LinearPacking:
    """Storage of linear layers.

    Attributes:
        weight_format: what the user calls it.
        group_size: columns that share a scale; 0 with bf16.
        zero_points: each group has a zero.
        is_tiled: they are in tile order.
    """

    weight_format: Literal["bf16", "int8", "int4"]
    group_size: int = 0
    zero_points: bool = False
    is_tiled: bool = True

    def attributes(self, rows: int, *, has_bias: bool) -> dict[str, Any]:
        """The attributes of an FmmLinear with these weights [rows, columns]."""
        is_float = self.weight_format == "bf16"
        return {
            "out_features": rows,
            "weight_format": "float" if is_float else self.weight_format,
            LAYOUT: TILES if self.is_tiled else "logical",
            "group_size": self.group_size,
            "zero_points": int(self.zero_points),
            "has_bias": int(has_bias),
            "activation": "none",
            "has_residual": 0,
        }

    def pack(self, weights: Array) -> dict[str, Array]:
        """Inputs of FmmLinear by name: float32 [N, K] -> weight, and scale and zero of integers."""
        if self.weight_format == "bf16":
            return self.place({"weight": weights.astype(ml_dtypes.bfloat16)})
        if self.is_tiled:
            # A word of int4 is 8 columns.
            weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % WORD_COLUMNS[self.weight_format])))
        q = quantise(weights, self.weight_format, self.group_size, zero_points=self.zero_points)
        zeros = {} if q.zero is None else {"zero": q.zero}
        return self.place({"weight": q.values, "scale": q.scale} | zeros)

    def place(self, parts: dict[str, Array]) -> dict[str, Array]:
        """Parts [rows, n] by name, in the order in which they are stored."""
        if not self.is_tiled:
            return parts
        return {name: (to_tiles if name == "weight" else to_panels)(part) for name, part in parts.items()}

    def unpack(self, parts: dict[str, Array], rows: int, columns: int) -> Array:
        """What packed weights stand for, float32 [rows, columns]."""
        return linear_weights(parts, columns, self.attributes(rows, has_bias=False))

    def round(self, weights: Array) -> Array:
        """What weights [N, K] stand for when they are packed, float32."""
        return self.unpack(self.pack(weights), *weights.shape)

    def parts(self, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each part that weights [rows, columns] have when they are packed, by name."""
        attributes = self.attributes(rows, has_bias=False)
        sizes = LINEAR.known_sizes(attributes) | {"K": columns}
        types = {"W": "bfloat16" if self.weight_format == "bf16" else "int8"}
        return {
            tensor.name: (types.get(tensor.types[0], tensor.types[0]), _shape(tensor.shape_with(attributes), sizes))
            for tensor in LINEAR.inputs_for(attributes)[1:]
        }

    def bytes(self, rows: int, columns: int) -> int:
        """Of packed weights [rows, columns], what fills up tiles included."""
        parts = self.parts(rows, columns).values()
        return sum(math.prod(shape) * (1 if dtype == "int8" else 2) for dtype, shape in parts)


@dataclass(frozen=True)
class LinearPackings:
    """How the linear layers of a model are stored; None = as floats, outside of FmmLinear.

    Attributes:
        dense: the language model's attention projections, shared experts and dense MLPs.
        head: what gives its logits.
        vision: all of the vision tower and its projector.
    """

    dense: LinearPacking | None = None
    head: LinearPacking | None = None
    vision: LinearPacking | None = None

    def of(self, weight: str) -> LinearPacking | None:
        """That of a linear layer's weight, by graph-qualified name. Routers choose by small differences: never."""
        if _ROUTER in weight:
            return None
        if weight == HEAD:
            return self.head
        return self.vision if weight.startswith("vision.") else self.dense


def _shape(dimensions: tuple[str, ...], sizes: dict[str, int]) -> tuple[int, ...]:
    found = [Dimension.parse(text).evaluate(sizes) for text in dimensions]
    return tuple(size for size in found if size is not None)
