# SPDX-License-Identifier: Apache-2.0
"""AMX's tile registers in software (plugins/common/cpu/tile_registers.h) against Intel's pseudo code in NumPy."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.types import Array

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
bfloat16 = ml_dtypes.bfloat16
AddProducts: TypeAlias = Callable[[Array, Array, Array], Array]
"""(sums, left, right) -> sums"""


@pytest.fixture(scope="session")
def registers(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("registers") / "libregisters.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-DFASTMMOE_SOFTWARE_TILES", "-DFASTMMOE_ISA=stand_in"]
    source = Path(__file__).with_name("tile_registers_abi.cpp")
    subprocess.run(["c++", *flags, "-I", str(PLUGINS), str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def caller(function: Any, sum_type: type) -> AddProducts:
    def call(sums: Array, left: Array, right: Array) -> Array:
        result = sums.astype(sum_type).copy()
        arrays = [np.ascontiguousarray(array) for array in (left, right)]
        function(*(ctypes.c_void_p(array.ctypes.data) for array in (result, *arrays)), len(right))
        return result

    return call


@pytest.fixture(scope="session")
def add_pairs(registers: ctypes.CDLL) -> AddProducts:
    """One tdpbf16ps."""
    return caller(registers.add_pairs, np.float32)


@pytest.fixture(scope="session")
def add_bytes(registers: ctypes.CDLL) -> AddProducts:
    """One tdpbssd."""
    return caller(registers.add_bytes, np.int32)


def expected_pairs(sums: Array, left: Array, right: Array) -> Array:
    """left [16, 2 units], right [units, 16, 2]. Exact where double holds product plus sum."""
    halves = np.zeros((16, 16, 2), np.float32)
    for k in range(len(right)):
        pair = left[:, None, 2 * k : 2 * k + 2].astype(np.float64) * right[k].astype(np.float64)
        halves = (halves.astype(np.float64) + pair).astype(np.float32)
    return sums + (halves[..., 0] + halves[..., 1])


@pytest.mark.parametrize("units", [16, 8, 1])
def test_pairs_are_rounded_as_the_pseudo_code_does(add_pairs: AddProducts, units: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        left = random.standard_normal((16, 2 * units)).astype(bfloat16)
        right = random.standard_normal((units, 16, 2)).astype(bfloat16)
        sums = random.standard_normal((16, 16)).astype(np.float32)
        np.testing.assert_array_equal(add_pairs(sums, left, right), expected_pairs(sums, left, right))


def test_pairs_know_no_denormal_numbers(add_pairs: AddProducts) -> None:
    tiny = float(np.finfo(np.float32).tiny)
    left, right, sums = np.zeros((16, 32), bfloat16), np.zeros((16, 16, 2), bfloat16), np.zeros((16, 16), np.float32)
    left[0, 0], right[0, 0, 0] = tiny / 2, 4.0  # an operand
    left[1, 0], right[0, 1, 0] = tiny, 0.5  # a product, which two halves would make normal
    left[1, 1], right[0, 1, 1] = tiny, 0.5
    left[2, 0], right[0, 2, 0] = tiny, 1.0  # no denormal number
    sums[3, 3] = tiny / 2  # what is added to
    left[4, 0], right[0, 4, 0], sums[4, 4] = -tiny, 1.5, 1.25 * tiny  # the last sum
    assert left[0, 0] != 0
    found = add_pairs(sums, left, right)
    assert [found[i, i] for i in range(5)] == [0, 0, np.float32(tiny), 0, 0]


@pytest.mark.parametrize("units", [16, 8, 1])
def test_bytes_have_signs_and_sums_32_bits(add_bytes: AddProducts, units: int) -> None:
    random = np.random.default_rng(1)
    left = random.integers(-128, 128, (16, 4 * units), np.int8)
    right = random.integers(-128, 128, (units, 16, 4), np.int8)
    left[0], right[:, 0] = -128, -128
    sums = random.integers(-(2**31), 2**31, (16, 16), np.int32)
    sums[0, 0] = 2**31 - 1
    products = np.einsum("mku,knu->mn", left.reshape(16, units, 4).astype(np.int64), right.astype(np.int64))
    np.testing.assert_array_equal(add_bytes(sums, left, right), (sums + products).astype(np.int32))
