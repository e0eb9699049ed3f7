# SPDX-License-Identifier: Apache-2.0
"""Products with weights in tile order, of every instruction set, against NumPy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from fastmmoe.runtime.types import Array
from tests.support.host_program import QEMU, settings_for_aarch64
from tests.support.panels_host import PanelsHost, Weights, make_weights, rounded_rows

# One worker builds the program, for test_panel_tiles.py too.
pytestmark = pytest.mark.xdist_group("panels")

FLAGS = {
    "dotprod": "asimddp",
    "avx2": "avx2",
    "avx512": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
}
ISAS = ("baseline", *FLAGS)
INTEGER_ISAS = tuple(isa for isa in ISAS if isa != "baseline")
# Of the greatest value: sums in float of a few hundred products, in any order.
TOLERANCE = 2e-6
WEIGHTS = [("bfloat16", 0, False)] + [
    (weight_format, group_size, zeros)
    for weight_format, group_size, zeros in itertools.product(("int8", "int4"), (32, 64, 128), (False, True))
]
SHAPES = [(1, 5, 3), (2, 16, 32), (3, 33, 67), (7, 32, 128), (13, 48, 516), (25, 40, 700)]
"""T, N, K"""


@pytest.fixture(scope="session")
def neon(tmp_path_factory: pytest.TempPathFactory) -> PanelsHost:
    """The kernels for aarch64."""
    return PanelsHost(tmp_path_factory.mktemp("panels_neon"), settings_for_aarch64(), (QEMU,))


def isas() -> list[str]:
    """Those that this processor has."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    flags = set(next((line.split() for line in lines if line.startswith(("flags", "Features"))), []))
    return [isa for isa in ISAS if isa == "baseline" or FLAGS[isa] in flags]


def rows_of(x: Array, weights: Weights, arithmetic: str) -> Array:
    """What the rows become."""
    return x if arithmetic == "float" else rounded_rows(x, weights.weight_format, weights.group_size)


def expected(x: Array, weights: Weights, arithmetic: str) -> Array:
    """[T, N] float64"""
    return rows_of(x, weights, arithmetic).astype(np.float64) @ weights.values.T.astype(np.float64)


def check(y: Array, x: Array, weights: Weights, arithmetic: str) -> None:
    wanted = expected(x, weights, arithmetic)
    rows = np.abs(rows_of(x, weights, arithmetic)).astype(np.float64)
    scale = (rows @ np.abs(weights.values.T).astype(np.float64)).max()
    np.testing.assert_allclose(y[:, : wanted.shape[1]], wanted, rtol=0, atol=TOLERANCE * scale)


def random(T: int, N: int, K: int, seed: int = 0) -> tuple[Array, Array]:
    """Rows [T, K] and weights [N, K]"""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape).astype(np.float32) for shape in ((T, K), (N, K)))  # type: ignore[return-value]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("weight_format", WEIGHTS, ids=str)
def test_products(panels: PanelsHost, weight_format: tuple[str, int, bool], isa: str) -> None:
    for T, N, K in SHAPES:
        x, values = random(T, N, K)
        weights = make_weights(values, *weight_format)
        arithmetic, y = panels(x, weights, isa=isa, more=3)
        check(y, x, weights, arithmetic)
        exact, y = panels(x, weights, isa=isa, is_exact=True)
        assert exact == "float"
        check(y, x, weights, exact)


@pytest.mark.parametrize("isa", ["baseline", "dotprod"])
@pytest.mark.parametrize("weight_format", WEIGHTS, ids=str)
def test_products_on_neon(neon: PanelsHost, weight_format: tuple[str, int, bool], isa: str) -> None:
    for T, N, K in SHAPES:
        x, values = random(T, N, K)
        weights = make_weights(values, *weight_format)
        arithmetic, y = neon(x, weights, isa=isa)
        assert arithmetic == ("int8" if isa == "dotprod" and weight_format[0] != "bfloat16" else "float")
        check(y, x, weights, arithmetic)


@pytest.mark.parametrize("weight_format", WEIGHTS[1:], ids=str)
def test_integers_are_the_same_on_every_processor(
    panels: PanelsHost, neon: PanelsHost, weight_format: tuple[str, int, bool]
) -> None:
    """Bit for bit: sums of a group are exact, and the groups are added in one order, with fused operations."""
    found = [(panels, isa) for isa in isas() if isa in INTEGER_ISAS] + [(neon, "dotprod")]
    for T, N, K in SHAPES:
        x, values = random(T, N, K, seed=5)
        weights = make_weights(values, *weight_format)
        first, *others = (run(x, weights, isa=isa)[1] for run, isa in found)
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_arithmetic_is_the_fastest_of_the_instruction_set(panels: PanelsHost) -> None:
    x, values = random(1, 16, 32)
    kinds = [make_weights(values, *kind) for kind in (("bfloat16",), ("int8", 32), ("int4", 32))]
    for isa in isas():
        found = [panels(x, weights, isa=isa)[0] for weights in kinds]
        integers = "int8" if isa in INTEGER_ISAS else "float"
        assert found == ["bfloat16" if isa == "avx512_bf16" else "float", integers, integers], isa


@pytest.mark.parametrize("weight_format", [WEIGHTS[0], WEIGHTS[2], WEIGHTS[7], WEIGHTS[8]], ids=str)
def test_a_product_depends_on_its_row_and_panel_alone(panels: PanelsHost, weight_format: tuple[str, int, bool]) -> None:
    x, values = random(29, 80, 650)
    weights = make_weights(values, *weight_format)
    for isa, is_exact in ((isas()[-1], False), (isas()[-1], True), ("baseline", True)):
        together = panels(x, weights, isa=isa, is_exact=is_exact)[1]
        for rows, (first, count) in ((slice(0, 1), (0, 5)), (slice(3, 10), (2, 1)), (slice(9, 29), (1, 4))):
            some = panels(x[rows], weights, isa=isa, is_exact=is_exact, panels=(first, count))[1]
            np.testing.assert_array_equal(some, together[rows, 16 * first : 16 * (first + count)])


def test_extremes(panels: PanelsHost) -> None:
    """Every integer, the greatest rows, and rows of zeros: sums of a group are exact."""
    K, N = 256, 16
    rng = np.random.default_rng(1)
    for weight_format, zeros in itertools.product(("int8", "int4"), (False, True)):
        values = rng.choice([-1.0, 1.0], (N, K)).astype(np.float32)
        weights = make_weights(values, weight_format, 128, zeros)
        x = np.stack([np.full(K, 3.0), np.full(K, -3.0), np.zeros(K), np.full(K, 1e-38)]).astype(np.float32)
        arithmetic, y = panels(x, weights, isa=isas()[-1])
        check(y[:3], x[:3], weights, arithmetic)
        assert (y[2] == 0).all()
        assert (np.abs(y[3]) < 1e-34).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(panels: PanelsHost, value: float) -> None:
    x, values = random(9, 16, 128)
    for weight_format in (WEIGHTS[0], WEIGHTS[1], WEIGHTS[10]):
        weights = make_weights(values, *weight_format)
        clean = panels(x, weights, isa=isas()[-1])[1]
        dirty = x.copy()
        dirty[4, 70] = value
        y = panels(dirty, weights, isa=isas()[-1])[1]
        assert not np.isfinite(y[4]).any()
        np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))
