# SPDX-License-Identifier: Apache-2.0
"""Products with weights in tile order in AMX's tile registers, in software and, where it has any, the processor's.

In software they do what Intel's pseudo code says (plugins/common/cpu/tile_registers.h); no processor with AMX has run
these kernels.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.plugins.test_panels import WEIGHTS, check, random
from tests.support.panels_host import PanelsHost, Weights, make_weights
from tests.support.software_tiles import AVX2, AVX512, TILES, require_flags

pytestmark = pytest.mark.xdist_group("panels")

FEWEST_ROWS = 8  # kManyRows
SIZES = [(33, 67), (16, 32), (48, 516), (5, 3), (72, 128), (40, 700), (17, 96), (80, 1100), (32, 1024)]
"""N, K"""


@pytest.fixture(scope="session", params=["software", "processor"])
def tiles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PanelsHost:
    """The kernels beside AVX-512, or where that is lacking beside AVX2, which then stands in for it."""
    if request.param == "processor":
        require_flags(AVX512 | TILES)
        return PanelsHost(tmp_path_factory.mktemp("panel_tiles"), [])
    require_flags(AVX2)
    panels: PanelsHost = request.getfixturevalue("panels")
    return panels


@pytest.mark.parametrize("weight_format", WEIGHTS, ids=str)
def test_products(tiles: PanelsHost, weight_format: tuple[str, int, bool]) -> None:
    """Integers are the same bit for bit as without AMX."""
    for T in range(1, 41):
        N, K = SIZES[T % len(SIZES)]
        x, values = random(T, N, K, seed=T)
        weights = make_weights(values, *weight_format)
        arithmetic, y = tiles(x, weights, isa="amx_bf16", more=3, are_apart=T % 4 < 2)
        assert arithmetic == ("bfloat16" if weight_format[0] == "bfloat16" else "int8")
        check(y, x, weights, arithmetic)
        without = tiles(x, weights, isa="avx512_bf16")[1]
        if arithmetic == "int8":
            np.testing.assert_array_equal(y, without)
        elif K > 100:  # sums are in another order
            assert y.tobytes() != without.tobytes()


def integer_weights(rng: np.random.Generator, N: int, K: int, kind: tuple[str, int, bool]) -> Weights:
    """Scales are 1: each group has the least and the greatest integer."""
    weight_format, group_size, zeros = kind
    low, high = (-7, 8) if weight_format == "int4" and zeros else (-7, 7) if weight_format == "int4" else (-127, 127)
    values = rng.integers(low, high + 1, (N, K)).astype(np.float32)
    step = group_size or K
    values[:, ::step], values[:, 1::step] = low, high
    weights = make_weights(values, *kind)
    np.testing.assert_array_equal(weights.values, values)
    return weights


@pytest.mark.parametrize("are_apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("weight_format", WEIGHTS, ids=str)
def test_integers_are_exact(tiles: PanelsHost, weight_format: tuple[str, int, bool], are_apart: bool) -> None:
    """Sums of whole numbers below 2^24 are, in float too, whatever their order."""
    rng = np.random.default_rng(3)
    for T, N, K in ((8, 33, 520), (16, 16, 64), (31, 48, 290), (32, 40, 1000), (40, 17, 36), (65, 33, 136)):
        weights = integer_weights(rng, N, K, weight_format)
        x = rng.integers(-127, 128, (T, K)).astype(np.float32)
        x[:, :: weight_format[1] or K] = 127  # the scale of each group is 1
        y = tiles(x, weights, isa="amx_bf16", are_apart=are_apart)[1]
        np.testing.assert_array_equal(y[:, :N], x.astype(np.float64) @ weights.values.T.astype(np.float64))


@pytest.mark.parametrize("weight_format", [WEIGHTS[0], WEIGHTS[2], WEIGHTS[7], WEIGHTS[8]], ids=str)
def test_a_product_depends_on_its_row_and_panel_alone(tiles: PanelsHost, weight_format: tuple[str, int, bool]) -> None:
    """Whatever the other rows, if there are enough for tiles or not, the panels and the threads."""
    x, values = random(70, 112, 650)
    weights = make_weights(values, *weight_format)
    together = tiles(x, weights, isa="amx_bf16")[1]
    for threads, are_apart in itertools.product((1, 2, 4), (False, True)):
        y = tiles(x, weights, isa="amx_bf16", threads=threads, are_apart=are_apart)[1]
        np.testing.assert_array_equal(y, together)
    ranges = [(0, 7), (2, 1), (1, 4)]
    sizes = [1, 2, 3, 4, 5, FEWEST_ROWS - 1, FEWEST_ROWS, 16, 17, 31, 49]
    for size, (first, count) in zip(sizes, itertools.cycle(ranges), strict=False):
        rows = slice(69 - size, 69)
        some = tiles(x[rows], weights, isa="amx_bf16", panels=(first, count))[1]
        np.testing.assert_array_equal(some, together[rows, 16 * first : 16 * (first + count)])


def test_registers_are_what_multiplies_many_rows(tiles: PanelsHost) -> None:
    """They know no denormal numbers, which the vectors of few rows do."""
    x, values = (np.full(shape, 2.0**-70, np.float32) for shape in ((FEWEST_ROWS, 64), (16, 64)))
    weights = make_weights(values, "bfloat16")
    assert (tiles(x, weights, isa="amx_bf16")[1] == 0).all()
    assert (tiles(x[1:], weights, isa="amx_bf16")[1] == 64 * 2.0**-140).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(tiles: PanelsHost, value: float) -> None:
    x, values = random(19, 16, 150)
    for weight_format in (WEIGHTS[0], WEIGHTS[1], WEIGHTS[10]):
        weights = make_weights(values, *weight_format)
        clean = tiles(x, weights, isa="amx_bf16")[1]
        dirty = x.copy()
        dirty[4, 70] = value
        y = tiles(dirty, weights, isa="amx_bf16")[1]
        assert not np.isfinite(y[4]).any()
        np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))
