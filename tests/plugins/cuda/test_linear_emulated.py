# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of FmmLinear, run by the emulator against the NumPy reference; built by nvcc."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise, pack_int4
from fastmmoe.runtime.types import Array
from tests.plugins.cuda.conftest import ARCHITECTURES, EmulatedOp
from tests.support.linear_cases import IN_ROWS, KERNEL_CASES, depth_of, kernel_case, linear_case, packing_id
from tests.support.linear_params import TOLERANCES, LinearParams, linear_params

KERNELS = Path(__file__).resolve().parents[3] / "plugins" / "linear" / "cuda"
SEEDS, POISONS = (0, 1, 20240607), (0x7F, 0xFF)
PACKINGS = IN_ROWS[1:]
FIRST_GROUP = 32
"""Of larger groups of weights fewer schedules run, and in bfloat16 nothing but in the slow tests."""


class LinearKernels:
    """The kernels, and how their results are judged."""

    def __init__(self, op: EmulatedOp) -> None:
        self.op = op
        op.function.argtypes = [ctypes.POINTER(LinearParams)]

    def __call__(self, inputs: dict[str, Array], attributes: dict[str, Any], *, seed: int = 0) -> Array:
        x = inputs["x"]

        def arguments(addresses: dict[str, int], workspace: int) -> tuple[Any, ...]:
            return (linear_params(inputs, attributes, addresses),)

        outputs, _ = self.op.run(
            inputs,
            {"y": ((len(x), attributes["out_features"]), x.dtype)},
            0,
            arguments,
            seed=seed,
            poison=POISONS[seed % 2],
            offsets={"scale": 2, "zero": 1},
        )
        return outputs["y"]

    def check(self, inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
        """The output, compared with the reference within the type's tolerance."""
        y, expected = self(inputs, attributes), linear_reference(inputs, attributes).astype(np.float32)
        assert y.dtype == inputs["x"].dtype
        atol = TOLERANCES[y.dtype] * np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(y.astype(np.float32), expected, rtol=0, atol=atol)
        return y


@pytest.fixture(scope="module")
def kernels(emulated_op: Callable[[str], EmulatedOp]) -> LinearKernels:
    return LinearKernels(emulated_op("linear"))


def variants() -> Iterator[Any]:
    for dtype, packing in itertools.product(TOLERANCES, PACKINGS):
        is_slow = dtype != np.float16 and packing.group_size > FIRST_GROUP
        yield pytest.param(
            dtype, packing, marks=[pytest.mark.slow] if is_slow else [], id=f"{dtype}-{packing_id(packing)}"
        )


@pytest.mark.parametrize("name", KERNEL_CASES)
@pytest.mark.parametrize(("dtype", "packing"), list(variants()))
def test_case(kernels: LinearKernels, dtype: Any, packing: LinearPacking, name: str) -> None:
    inputs, attributes = kernel_case(name, packing, dtype)
    first = kernels.check(inputs, attributes)
    if dtype == np.float16 and packing.group_size <= FIRST_GROUP:
        for seed in SEEDS[1:]:
            assert kernels(inputs, attributes, seed=seed).tobytes() == first.tobytes(), f"seed {seed}"


@pytest.mark.parametrize(("T", "N"), [(8, 34), (40, 34), (70, 2000)])
@pytest.mark.parametrize("packing", [PACKINGS[0], PACKINGS[-1]], ids=packing_id)
def test_a_row_does_not_depend_on_its_place_nor_on_others(
    kernels: LinearKernels, packing: LinearPacking, T: int, N: int
) -> None:
    inputs, attributes = linear_case(packing, (T, N, depth_of(packing, "wide")), dtype=np.float16)
    y = kernels.check(inputs, attributes)
    backwards = kernels(inputs | {"x": np.ascontiguousarray(inputs["x"][::-1])}, attributes)
    assert np.ascontiguousarray(backwards[::-1]).tobytes() == y.tobytes()
    x = inputs["x"].copy()
    x[2, 5], x[4] = np.nan, np.inf
    spoiled = kernels(inputs | {"x": x}, attributes)
    assert np.isnan(spoiled[2]).all() and not np.isfinite(spoiled[4]).any()
    assert np.delete(spoiled, [2, 4], 0).tobytes() == np.delete(y, [2, 4], 0).tobytes()


@pytest.mark.parametrize(("T", "N"), [(3, 34), (20, 34), (70, 2000)])
@pytest.mark.parametrize("packing", [PACKINGS[0], PACKINGS[-1]], ids=packing_id)
def test_weights_that_are_not_finite_concern_their_column(
    kernels: LinearKernels, packing: LinearPacking, T: int, N: int
) -> None:
    inputs, attributes = linear_case(packing, (T, N, depth_of(packing, "wide")), dtype=np.float16)
    y = kernels(inputs, attributes)
    scale = inputs["scale"].copy()
    scale[N - 1, 1] = np.nan
    spoiled = kernels(inputs | {"scale": scale}, attributes)
    assert np.isnan(spoiled[:, N - 1]).all()
    assert spoiled[:, :-1].tobytes() == y[:, :-1].tobytes()


@pytest.mark.parametrize(("T", "N"), [(4, 130), (16, 130), (96, 2000)])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_weights_are_rounded_once(
    kernels: LinearKernels, weight_format: str, group_size: int, dtype: Any, T: int, N: int
) -> None:
    """Of rows of the unit matrix the output is the weights, bit for bit: scale (q - zero) rounded to the type."""
    K, random = 96, np.random.default_rng(T)
    packing = LinearPacking(weight_format, group_size, True, is_tiled=False)  # type: ignore[arg-type]
    q = random.integers(0, 256, (N, K)).astype(np.uint8)
    weight = pack_int4(q & 15) if weight_format == "int4" else q.view(np.int8)
    scale = (2.0 ** random.uniform(-24, 8, (N, -(-K // group_size)))).astype(np.float16)
    zero = random.integers(-128, 128, scale.shape).astype(np.int8)
    expected = dequantise(QuantisedWeights(weight, scale, zero), weight_format, group_size).astype(dtype)
    for first in range(0, K, T):
        columns = np.arange(first, first + T) % K
        x = np.eye(K, dtype=np.float32)[columns].astype(dtype)
        inputs = {"x": x, "weight": weight, "scale": scale, "zero": zero}
        y = kernels(inputs, packing.attributes(N, has_bias=False))
        np.testing.assert_array_equal(y.astype(np.float32), expected[:, columns].T.astype(np.float32))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activations_from_end_to_end(kernels: LinearKernels, activation: str) -> None:
    """Products that are the bias: from where GELU is 0 to where it is x, and the greatest numbers."""
    inputs, attributes = linear_case(PACKINGS[0], (3, 66, 32), activation=activation, dtype=ml_dtypes.bfloat16)
    bias = np.r_[np.linspace(-12, 12, 63), -1e30, 0, 1e30].astype(ml_dtypes.bfloat16)
    inputs |= {"weight": np.zeros_like(inputs["weight"]), "bias": bias}
    y, expected = kernels(inputs, attributes), linear_reference(inputs, attributes)
    np.testing.assert_allclose(y.astype(np.float32), expected.astype(np.float32), rtol=2.0**-8, atol=1e-6)


FLOAT, INT4 = IN_ROWS[0], PACKINGS[-1]


@pytest.mark.parametrize(
    ("packing", "dtype", "size", "message"),
    [
        (PACKINGS[0], np.float16, (2, 34, 24), "K is 24, expected a multiple of 16 on CUDA"),
        (INT4, np.float16, (2, 34, 48), "K is 48, expected a multiple of 32 with int4 weights on CUDA"),
        (INT4, np.float16, (20, 33, 64), "N is 33, expected a multiple of 2 on CUDA"),
        (INT4, np.float32, (2, 34, 64), "x is float, expected float16 or bfloat16 on CUDA"),
        (FLOAT, np.float16, (2, 34, 64), "attribute weight_format is float, expected int8 or int4 on CUDA"),
    ],
)
def test_what_it_cannot_take_is_refused(
    kernels: LinearKernels, packing: LinearPacking, dtype: Any, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"^FmmLinear: {message}$"):
        kernels(*linear_case(packing, size, dtype=dtype))


KERNEL_COUNTS = {
    "kernel": 0,
    "kernel_int8": 2 * 3,  # for each type: of few rows, and with two tiles
    "kernel_int4": 2 * 3,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNEL_COUNTS)
def test_nvcc_compiles_it_without_spills(count_kernels: Callable[[Path, int], int], name: str, arch: int) -> None:
    assert sorted(path.stem for path in KERNELS.glob("*.cu")) == sorted(KERNEL_COUNTS)
    assert count_kernels(KERNELS / f"{name}.cu", arch) == KERNEL_COUNTS[name]
