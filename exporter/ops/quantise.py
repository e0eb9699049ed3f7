# SPDX-License-Identifier: Apache-2.0
"""Integer weights of FmmSparseMoE: how they are packed and what they stand for.

int8: a row of n columns is n bytes. int4: a row is n / 2 bytes; 8 columns are one little-endian 32-bit word, whose
nibble j (bits 4 j to 4 j + 3) is column NIBBLE_COLUMNS[j] of the 8. So one shift and one mask of a word give columns
2 j and 2 j + 1 in its two halves, which is how tensor cores take a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastmmoe.runtime.types import Array

NIBBLE_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD = len(NIBBLE_COLUMNS)
_LEVELS = {"int8": (-127, 127), "int4": (0, 15)}
_ZEROS = {"int8": 0, "int4": 8}


@dataclass(frozen=True)
class QuantisedWeights:
    """Weights [..., n] as integers.

    Attributes:
        values: int8 [..., n], or [..., n / 2] with int4.
        scale: float16 [..., ceil(n / g)].
        zero: int8 like scale; None: the zero of int8 is 0, that of int4 is 8.
    """

    values: Array
    scale: Array
    zero: Array | None


def pack_int4(q: Array) -> Array:
    """Integers 0 to 15 [..., n], n a multiple of 8 -> int8 [..., n / 2]."""
    if q.shape[-1] % _WORD:
        raise ValueError(f"int4 weights have {q.shape[-1]} columns, expected a multiple of {_WORD}")
    words = q.reshape(*q.shape[:-1], -1, _WORD)[..., NIBBLE_COLUMNS].astype(np.uint8)
    return (words[..., ::2] | words[..., 1::2] << 4).reshape(*q.shape[:-1], -1).view(np.int8)


def unpack_int4(values: Array) -> Array:
    """The inverse of `pack_int4`: int8 [..., n / 2] -> uint8 [..., n]."""
    packed = values.view(np.uint8).reshape(*values.shape[:-1], -1, _WORD // 2)
    words = np.empty((*packed.shape[:-1], _WORD), np.uint8)
    words[..., NIBBLE_COLUMNS[::2]] = packed & 15
    words[..., NIBBLE_COLUMNS[1::2]] = packed >> 4
    return words.reshape(*values.shape[:-1], -1)


def quantise(weights: Array, weight_format: str, group_size: int, *, zero_points: bool) -> QuantisedWeights:
    """Round weights [..., n] to the nearest of the levels between the extremes of each group of columns.

    Without zero_points the levels lie evenly around 0 up to the greatest magnitude of the group; with them between
    its least and greatest value, 0 included.
    """
    n = weights.shape[-1]
    low, high = _LEVELS[weight_format]
    padding = [(0, 0)] * (weights.ndim - 1) + [(0, -n % group_size)]
    groups = np.pad(weights.astype(np.float32), padding).reshape(*weights.shape[:-1], -1, group_size)
    middle = _ZEROS[weight_format]
    least, greatest = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scale = _scales(least, greatest, weight_format, zero_points=zero_points)
    # A group of zeros, or one whose scale is below the range of float16, stands for zeros.
    safe = np.where(scale == 0, 1, scale.astype(np.float32))
    zero = np.clip(np.rint(low - least / safe), low, high) if zero_points else np.full_like(safe, middle)
    q = np.clip(np.rint(groups / safe[..., None]) + zero[..., None], low, high)
    q = q.reshape(*weights.shape[:-1], -1)[..., :n]
    values = pack_int4(q.astype(np.uint8)) if weight_format == "int4" else q.astype(np.int8)
    return QuantisedWeights(values, scale, zero.astype(np.int8) if zero_points else None)


def _scales(least: Array, greatest: Array, weight_format: str, *, zero_points: bool) -> Array:
    """Float16 scales of groups with these extremes, least <= 0 <= greatest; inf where float16 does not hold them."""
    low, high = _LEVELS[weight_format]
    with np.errstate(over="ignore"):
        if zero_points:
            return ((greatest - least) / np.float32(high - low)).astype(np.float16)
        return (np.maximum(-least, greatest) / np.float32(high - _ZEROS[weight_format])).astype(np.float16)


def dequantise(weights: QuantisedWeights, weight_format: str, group_size: int) -> Array:
    """What the integers stand for, float32 [..., n]."""
    q = unpack_int4(weights.values) if weight_format == "int4" else weights.values
    n = q.shape[-1]
    zero = np.full(weights.scale.shape, _ZEROS[weight_format], np.int8) if weights.zero is None else weights.zero
    scale, offset = (np.repeat(x.astype(np.float32), group_size, axis=-1)[..., :n] for x in (weights.scale, zero))
    return (q.astype(np.float32) - offset) * scale


@dataclass(frozen=True)
class Packing:
    """Storage of a model's experts: the attributes weight_format, group_size and zero_points."""

    weight_format: Literal["int8", "int4"]
    group_size: int
    zero_points: bool

    def attributes(self) -> dict[str, Any]:
        """The three attributes of FmmSparseMoE."""
        return {
            "weight_format": self.weight_format,
            "group_size": self.group_size,
            "zero_points": int(self.zero_points),
        }

    def quantise(self, weights: Array) -> QuantisedWeights:
        """`quantise` with these settings."""
        return quantise(weights, self.weight_format, self.group_size, zero_points=self.zero_points)

    def fits(self, least: float, greatest: float) -> bool:
        """Whether the scales of weights from `least` to `greatest` are finite, however they are grouped."""
        low, high = np.minimum(np.float32(least), 0), np.maximum(np.float32(greatest), 0)
        return bool(np.isfinite(_scales(low, high, self.weight_format, zero_points=self.zero_points)))

    def round(self, weights: Array) -> Array:
        """What the quantised weights stand for, float32."""
        return dequantise(self.quantise(weights), self.weight_format, self.group_size)
