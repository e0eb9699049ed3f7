# SPDX-License-Identifier: Apache-2.0
"""Packed weights of FmmSparseMoE: how they are stored and what they stand for.

int8: a row of n columns is n bytes. int4: a row is n / 2 bytes; 8 columns are one little-endian 32-bit word, whose
nibble j (bits 4 j to 4 j + 3) is column NIBBLE_COLUMNS[j] of the 8. So one shift and one mask of a word give columns
2 j and 2 j + 1 in its two halves, which is how tensor cores take a pair.

fp8: a row of n columns is n bytes, the bits of float8 e4m3fn (OCP 8-bit Floating Point Specification 1.0). Its NaN, all
bits but the sign, is not written; kernels take it for 480.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastmmoe.runtime.types import Array

NIBBLE_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD = len(NIBBLE_COLUMNS)
_LEVELS = {"int8": (-127, 127), "int4": (0, 15), "fp8": (-448, 448)}
ZEROS = {"int8": 0, "int4": 8, "fp8": 0}
"""Zero of a format without zero points."""
_FP8_SCALES_BELOW = 256
"""Kernels multiply scales by 256 in float16."""
_FP8_LEAST_NORMAL, _FP8_LAST_BIT, _FP8_BIAS = 2.0**-6, 2.0**-9, 7
_FLOAT_BIAS, _FLOAT_MANTISSA, _FP8_MANTISSA = 127, 23, 3


@dataclass(frozen=True)
class QuantisedWeights:
    """Weights [..., n] as integers or fp8.

    Attributes:
        values: int8 [..., n], or [..., n / 2] with int4.
        scale: float16 [..., ceil(n / g)].
        zero: int8 like scale; None: the zero of int8 is 0, that of int4 is 8, and fp8 has none.
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


def to_fp8(values: Array) -> Array:
    """Round float32 values of a magnitude up to 448 to the bits of e4m3, int8: to nearest, ties to even."""
    magnitude = np.abs(values)
    bits, shift = magnitude.view(np.uint32), np.uint32(_FLOAT_MANTISSA - _FP8_MANTISSA)
    rounded = (
        bits + ((np.uint32(1) << (shift - np.uint32(1))) - np.uint32(1)) + (bits >> shift & np.uint32(1))
    ) >> shift
    normal = rounded - np.uint32((_FLOAT_BIAS - _FP8_BIAS) << _FP8_MANTISSA)
    code = np.where(magnitude < _FP8_LEAST_NORMAL, np.rint(magnitude / _FP8_LAST_BIT), normal).astype(np.uint8)
    return (code | np.signbit(values).astype(np.uint8) << 7).view(np.int8)


def from_fp8(bits: Array) -> Array:
    """What the bits of e4m3 stand for, int8 -> float32."""
    code = np.arange(128)
    exponent, mantissa = code >> _FP8_MANTISSA, code & (1 << _FP8_MANTISSA) - 1
    steps = np.where(exponent == 0, mantissa, mantissa + (1 << _FP8_MANTISSA))
    table = np.ldexp(steps * _FP8_LAST_BIT, np.maximum(exponent, 1) - 1).astype(np.float32)
    found: Array = np.concatenate([table, -table])[bits.view(np.uint8)]
    return found


def quantise(weights: Array, weight_format: str, group_size: int, *, zero_points: bool) -> QuantisedWeights:
    """Round weights [..., n] to the nearest of the levels between the extremes of each group of columns.

    Without zero_points the levels lie evenly around 0 up to the greatest magnitude of the group; with them between
    its least and greatest value, 0 included. Those of fp8 are the floats up to 448 in place of even ones.

    Raises:
        ValueError: fp8 with zero_points.
    """
    if weight_format == "fp8" and zero_points:
        raise ValueError("fp8 weights have no zero points")
    n = weights.shape[-1]
    low, high = _LEVELS[weight_format]
    padding = [(0, 0)] * (weights.ndim - 1) + [(0, -n % group_size)]
    groups = np.pad(weights.astype(np.float32), padding).reshape(*weights.shape[:-1], -1, group_size)
    middle = ZEROS[weight_format]
    least, greatest = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scale = _scales(least, greatest, weight_format, zero_points=zero_points)
    # A group of zeros, or one whose scale is below the range of float16, stands for zeros.
    safe = np.where(scale == 0, 1, scale.astype(np.float32))
    zero = np.clip(np.rint(low - least / safe), low, high) if zero_points else np.full_like(safe, middle)
    q = groups / safe[..., None]
    q = np.clip(q if weight_format == "fp8" else np.rint(q) + zero[..., None], low, high)
    values = _STORED[weight_format](q.reshape(*weights.shape[:-1], -1)[..., :n])
    return QuantisedWeights(values, scale, zero.astype(np.int8) if zero_points else None)


_STORED: dict[str, Callable[[Array], Array]] = {
    "int8": lambda q: q.astype(np.int8),
    "int4": lambda q: pack_int4(q.astype(np.uint8)),
    "fp8": to_fp8,
}
_READ: dict[str, Callable[[Array], Array]] = {"int8": lambda values: values, "int4": unpack_int4, "fp8": from_fp8}


def _scales(least: Array, greatest: Array, weight_format: str, *, zero_points: bool) -> Array:
    """Float16 scales of groups with these extremes, least <= 0 <= greatest; inf where kernels do not take them."""
    low, high = _LEVELS[weight_format]
    with np.errstate(over="ignore"):
        if zero_points:
            return ((greatest - least) / np.float32(high - low)).astype(np.float16)
        scale = (np.maximum(-least, greatest) / np.float32(high - ZEROS[weight_format])).astype(np.float16)
    is_legal = weight_format != "fp8" or scale < _FP8_SCALES_BELOW
    return np.where(is_legal, scale, np.float16(np.inf))


def check_packed(op: str, inputs: Mapping[str, Any], weight_format: str) -> None:
    """Raise ValueError where a scale is not finite or a zero is none of the integers that the format has.

    Args:
        op: whose inputs they are, for the message.
        inputs: arrays or CPU tensors by name, those that end in "scale" and "zero" among others.
    """
    for name in (name for name in inputs if name.endswith(("scale", "zero"))):
        array = np.asarray(inputs[name])
        if name.endswith("scale"):
            if not np.isfinite(array).all():
                raise ValueError(f"{op}: {name} has {array[~np.isfinite(array)][0]}, expected finite scales")
        elif weight_format == "int4":
            least, greatest = int(array.min()), int(array.max())
            if least < 0 or greatest > _LEVELS["int4"][1]:
                raise ValueError(f"{op}: {name} has {least if least < 0 else greatest}, expected 0 to 15 with int4")


def dequantise(weights: QuantisedWeights, weight_format: str, group_size: int) -> Array:
    """What the stored weights stand for, float32 [..., n]."""
    q = _READ[weight_format](weights.values)
    n = q.shape[-1]
    zero = np.full(weights.scale.shape, ZEROS[weight_format], np.int8) if weights.zero is None else weights.zero
    scale, offset = (np.repeat(x.astype(np.float32), group_size, axis=-1)[..., :n] for x in (weights.scale, zero))
    return (q.astype(np.float32) - offset) * scale


@dataclass(frozen=True)
class Packing:
    """Storage of a model's experts: the attributes weight_format, group_size and zero_points."""

    weight_format: Literal["int8", "int4", "fp8"]
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
