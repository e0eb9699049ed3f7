# SPDX-License-Identifier: Apache-2.0
"""Elements as a device has them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from fastmmoe.runtime.backends.elements import as_dtype, item_size, tensor_bytes


def test_sizes() -> None:
    assert [item_size(dtype) for dtype in ("float32", "float16", "bfloat16", "int8", "int32")] == [4, 2, 2, 1, 4]
    assert tensor_bytes((3, 5), "bfloat16") == 30 and tensor_bytes((), "int32") == 4
    assert tensor_bytes((4, 0), "float32") == 0


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Every upper half of a float32, with lower halves below, at and above the tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        found = as_dtype(values, "bfloat16")
        with np.errstate(invalid="ignore"):
            expected = values.astype(ml_dtypes.bfloat16)
        assert found.dtype == np.uint16
        is_nan = np.isnan(values)
        assert np.array_equal(found[~is_nan], expected.view(np.uint16)[~is_nan])
        assert np.isnan(found.view(ml_dtypes.bfloat16)[is_nan].astype(np.float32)).all()
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x7F7FFFFF, 0x00000001], np.uint32)
    assert as_dtype(ties.view(np.float32), "bfloat16").tolist() == [0x3F80, 0x3F82, 0xBF80, 0xBF82, 0x7F80, 0]
    infinities = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    assert as_dtype(infinities, "bfloat16").tolist() == [0x7F80, 0xFF80, 0x7FC0, 0x8000]


def test_other_types_are_converted_and_made_contiguous() -> None:
    values = np.arange(12).reshape(3, 4).T
    for dtype in ("int32", "int8", "float16", "float32"):
        found = as_dtype(values, dtype)
        assert found.dtype == dtype and found.flags.c_contiguous and found.tolist() == values.tolist()
    assert as_dtype(values.astype(np.float32), "bfloat16").flags.c_contiguous
    as_it_is = np.zeros(3, np.int32)
    assert as_dtype(as_it_is, "int32") is as_it_is
