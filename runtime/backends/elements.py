# SPDX-License-Identifier: Apache-2.0
"""Elements of tensors as a device has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastmmoe.runtime.types import Array

BFLOAT16 = "bfloat16"


def item_size(dtype: str) -> int:
    """Bytes of an element; NumPy has no bfloat16."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def tensor_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor's elements."""
    return math.prod(shape) * item_size(dtype)


def no_room(shapes: Mapping[str, tuple[Sequence[int], str]], reason: str, free: int | None = None) -> str:
    """Why caches of these shapes and dtypes cannot be made, and what to do. free: bytes of the device, if known."""
    found = "" if free is None else f", {free / 1e6:.1f} MB are free on the device"
    size = sum(tensor_bytes(shape, dtype) for shape, dtype in shapes.values())
    return (
        f"key-value caches of {size / 1e6:.1f} MB do not fit{found}: ask for fewer new tokens, a lower retention or "
        f"fewer sequences at once, or end other programs ({reason})"
    )


def as_dtype(array: Array, dtype: str) -> Array:
    """The array with elements as the device has them, contiguous; bfloat16 as its bits, rounded to nearest even."""
    if dtype != BFLOAT16:
        return np.ascontiguousarray(array, dtype)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # The sum would carry a NaN's bits into its sign and exponent.
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
