# SPDX-License-Identifier: Apache-2.0
"""Right kernels give right results in the emulator, whatever the schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.types import Array

Emulated = Callable[[str], Any]

SEEDS = (0, 1, 2)
# Of the largest element: the products are exact, the sums of at most 512 of them are rounded to float.
FLOAT_TOLERANCE = 1e-5
ALL_LANES = np.arange(32)


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def gemm_inputs(dtype: Any, rows: int, columns: int, depth: int, transposed: bool) -> tuple[Array, Array, Array]:
    """A [rows, depth], B and A B; B is [columns, depth] where transposed."""
    rng = np.random.default_rng(rows + columns)
    shape = (columns, depth) if transposed else (depth, columns)
    if dtype == np.int8:
        a, b = (rng.integers(-128, 128, s).astype(dtype) for s in ((rows, depth), shape))
        return a, b, a.astype(np.int32) @ (b.T if transposed else b).astype(np.int32)
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((rows, depth), shape))
    return a, b, a.astype(np.float64) @ (b.T if transposed else b).astype(np.float64)


GEMMS = {
    "gemm_f16": (np.float16, False),
    "gemm_bf16": (ml_dtypes.bfloat16, True),
    "gemm_s8": (np.int8, True),
}


@pytest.mark.parametrize("shape", [(64, 64, 64), (1, 16, 16), (100, 80, 48), (130, 208, 320)])
@pytest.mark.parametrize("name", GEMMS)
def test_gemm(emulated: Emulated, seed: int, name: str, shape: tuple[int, int, int]) -> None:
    library = emulated("gemm")
    library.set(seed=seed)
    dtype, transposed = GEMMS[name]
    a, b, expected = gemm_inputs(dtype, *shape, transposed)
    exact = dtype == np.int8
    c = np.full(shape[:2], -1 if exact else np.nan, np.int32 if exact else np.float32)
    library(name, a, b, c, *shape)
    if exact:
        np.testing.assert_array_equal(c, expected)
    else:
        np.testing.assert_allclose(c, expected, rtol=0, atol=FLOAT_TOLERANCE * np.abs(expected).max())


def test_gemm_is_the_same_for_any_schedule(emulated: Emulated) -> None:
    library = emulated("gemm")
    a, b, _ = gemm_inputs(np.float16, 200, 136, 96, False)
    results = []
    for seed, threads in ((0, 1), (0, 3), (5, 1), (6, 3)):
        library.set(seed=seed, threads=threads)
        results.append(np.empty((200, 136), np.float32))
        library("gemm_f16", a, b, results[-1], 200, 136, 96)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_warp_reduction(emulated: Emulated, seed: int) -> None:
    library = emulated("warp")
    library.set(seed=seed)
    x = np.random.default_rng(0).standard_normal((33, 300)).astype(np.float32)
    norms = np.zeros(33, np.float32)
    library("run_row_norms", x, norms, 33, 300)
    np.testing.assert_allclose(norms, np.linalg.norm(x.astype(np.float64), axis=1), rtol=FLOAT_TOLERANCE)


@pytest.mark.parametrize(("count", "threads"), [(1024, 1024), (1000, 1024), (1, 32), (70, 96)])
def test_block_scan(emulated: Emulated, seed: int, count: int, threads: int) -> None:
    library = emulated("warp")
    library.set(seed=seed)
    x = np.random.default_rng(0).integers(-50, 50, count).astype(np.int32)
    sums = np.zeros(count, np.int32)
    library("run_scan", x, sums, count, threads)
    np.testing.assert_array_equal(sums, np.cumsum(x))


@pytest.mark.parametrize("count", [5000, 256, 1])
def test_ballot_compaction(emulated: Emulated, seed: int, count: int) -> None:
    library = emulated("warp")
    library.set(seed=seed)
    x = np.random.default_rng(0).random(count).astype(np.float32)
    indices, found = np.full(count, -1, np.int32), np.zeros(1, np.int32)
    library("run_compact", x, indices, found, count, 0.7)
    expected = np.flatnonzero(x > np.float32(0.7))
    assert found[0] == len(expected)
    np.testing.assert_array_equal(np.sort(indices[: len(expected)]), expected)
    assert (indices[len(expected) :] == -1).all()


def shuffle_sources(n: int, width: int) -> list[Array]:
    """Which lane each lane reads, for shfl, up, down and xor; the own lane where the other is out of its segment."""
    first, last = ALL_LANES // width * width, ALL_LANES // width * width + width - 1
    up, down, xor = ALL_LANES - n, ALL_LANES + n, ALL_LANES ^ n
    return [
        first + n % width,
        np.where(up >= first, up, ALL_LANES),
        np.where(down <= last, down, ALL_LANES),
        np.where(xor <= last, xor, ALL_LANES),
    ]


@pytest.mark.parametrize(("n", "width"), [(1, 32), (16, 32), (3, 8), (5, 4), (31, 32), (0, 1), (8, 8)])
def test_warp_functions(emulated: Emulated, seed: int, n: int, width: int) -> None:
    library = emulated("warp")
    library.set(seed=seed)
    x = np.random.default_rng(n).integers(0, 6, 32).astype(np.int32)
    out = np.zeros((8, 32), np.int32)
    library("run_warp_functions", x, n, width, out)
    for row, sources in zip(out, shuffle_sources(n, width), strict=False):
        np.testing.assert_array_equal(row, x[sources])
    assert (out[4] == int((x == n).any())).all()
    assert (out[5] == int((x != n).all())).all()
    matches = ((x[:, None] == x[None, :]) * (1 << ALL_LANES.astype(np.uint64))).sum(axis=1)
    np.testing.assert_array_equal(out[6].view(np.uint32), matches.astype(np.uint32))
    np.testing.assert_array_equal(out[7], np.where(ALL_LANES < 16, x[3], x[20]))


def test_warp_reductions(emulated: Emulated) -> None:
    library = emulated("warp")
    x = np.random.default_rng(0).integers(-(2**31), 2**31, 32).astype(np.int32)
    out = np.zeros(6, np.int32)
    library("run_reductions", x, out)
    bits = x.view(np.uint32)
    unsigned = np.array([bits.max(), np.bitwise_and.reduce(bits), np.bitwise_or.reduce(bits)], np.uint32)
    expected = np.array([x.sum(dtype=np.int32), x.min(), x.max(), *unsigned.view(np.int32)])
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("count", "threads"), [(20, 64), (48, 48), (33, 1024)])
def test_exited_threads_do_not_count(emulated: Emulated, seed: int, count: int, threads: int) -> None:
    library = emulated("warp")
    library.set(seed=seed)
    x = (np.random.default_rng(count).random(count) < 0.5).astype(np.int32)
    out = np.zeros(4, np.int32)
    library("run_early_exit", x, out, count, threads)
    votes = int(sum(int(bit) << lane for lane, bit in enumerate(x[:32])))
    assert out.view(np.uint32).tolist() == [x.sum(), 1, 0, votes]


def test_coordinates(emulated: Emulated) -> None:
    out = np.full((3 * 2 * 2 * 5 * 3 * 3, 6), -1, np.int32)
    emulated("warp")("run_coordinates", out)
    expected = [index[::-1] for index in np.ndindex(2, 2, 3)]
    threads = [index[::-1] for index in np.ndindex(3, 3, 5)]
    np.testing.assert_array_equal(out, [block + thread for block in expected for thread in threads])


@pytest.mark.parametrize("blocks", [1, 2, 100, 1024])
def test_a_seed_gives_an_order_of_blocks(emulated: Emulated, blocks: int) -> None:
    library = emulated("warp")
    orders = []
    for seed in (0, 1, 2, 1):
        library.set(seed=seed, threads=1)
        position = np.full(blocks, -1, np.int32)
        library("run_block_order", np.zeros(1, np.int32), position, blocks)
        np.testing.assert_array_equal(np.sort(position), np.arange(blocks))
        orders.append(position.tolist())
    assert orders[0] == list(range(blocks))
    assert orders[1] == orders[3]
    assert blocks < 3 or orders[0] != orders[1] != orders[2] != orders[0]


def test_atomics(emulated: Emulated, seed: int) -> None:
    library = emulated("warp")
    library.set(seed=seed, threads=4)
    partial, done, out = np.zeros(50, np.int32), np.zeros(1, np.uint32), np.zeros(7, np.int32)
    library("run_atomics", partial, done, out, 50)
    assert done[0] == 50
    # Each bit is flipped 100 times.
    assert out.tolist() == [50 * 51 // 2, 63, -63, -1, 0, 7, 50 * 64 * 200]
