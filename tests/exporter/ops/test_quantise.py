# SPDX-License-Identifier: Apache-2.0
"""Integer and fp8 weights: packing, rounding, and the reference on them."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import SPARSE_MOE, sparse_moe_reference
from fastmmoe.exporter.ops.quantise import (
    Packing,
    QuantisedWeights,
    dequantise,
    from_fp8,
    pack_int4,
    quantise,
    to_fp8,
    unpack_int4,
)
from tests.support.operators import (
    moe_attributes,
)

INTEGERS = list(itertools.product(("int8", "int4"), (32, 64, 128), (False, True)))
FORMATS = [*INTEGERS, *itertools.product(("fp8",), (32, 64, 128), (False,))]


def test_one_shift_of_a_word_gives_two_neighbours() -> None:
    columns = np.arange(16)
    words = pack_int4(columns[None]).view("<u4")[0]
    for w, j in itertools.product(range(2), range(4)):
        pair = int(words[w]) >> 4 * j & 0x000F000F
        assert (pair & 15, pair >> 16) == (columns[8 * w + 2 * j], columns[8 * w + 2 * j + 1])


def test_packing_is_undone() -> None:
    q = np.random.default_rng(0).integers(0, 16, (3, 5, 48))
    assert pack_int4(q).shape == (3, 5, 24)
    np.testing.assert_array_equal(unpack_int4(pack_int4(q)), q)


def test_rows_that_are_no_whole_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^int4 weights have 12 columns, expected a multiple of 8$"):
        pack_int4(np.zeros((2, 12), np.int64))


@pytest.mark.parametrize(("weight_format", "group_size", "zero_points"), INTEGERS)
def test_error_is_half_a_level(weight_format: str, group_size: int, zero_points: bool) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 6, 160)).astype(np.float32) + 0.3
    weights[1, 2] = 0
    weights[2, 3, :64] = 1.5  # one value, far from 0
    packed = quantise(weights, weight_format, group_size, zero_points=zero_points)
    assert packed.scale.shape == (4, 6, -(-160 // group_size))
    assert (packed.zero is not None) == zero_points
    values = dequantise(packed, weight_format, group_size)
    level = np.repeat(packed.scale.astype(np.float32), group_size, axis=-1)[..., :160]
    # The scale is rounded to 11 bits, so the outermost of 15 or 255 levels may lie a little short.
    tolerance = level * (0.5 + (16 if weight_format == "int4" else 256) / 2**11)
    assert (np.abs(values - weights) <= tolerance).all()
    assert (values[1, 2] == 0).all()


def test_fp8_rounds_to_nearest_even() -> None:
    """Every float16 up to 448, each side of it and the points between two of e4m3, as ml_dtypes rounds them."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.abs(halves) <= 448]
    values = np.concatenate([halves, np.nextafter(halves, np.float32(0)), halves * np.float32(1e-3)])
    expected = values.astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(to_fp8(values).view(np.uint8), expected.view(np.uint8))


def test_bits_of_fp8() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    is_nan = np.isnan(expected)
    assert np.array_equal(from_fp8(codes.view(np.int8))[~is_nan], expected[~is_nan])
    assert from_fp8(codes.view(np.int8))[is_nan].tolist() == [480, -480]


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_error_of_fp8_is_half_a_step_of_the_weight(group_size: int) -> None:
    """Of 3 bits of mantissa; of weights below the least normal number, half of its last bit."""
    weights = np.random.default_rng(0).standard_normal((4, 6, 160)).astype(np.float32)
    weights[1, 2] = 0
    packed = quantise(weights, "fp8", group_size, zero_points=False)
    assert packed.values.dtype == np.int8 and packed.values.shape == weights.shape and packed.zero is None
    values = dequantise(packed, "fp8", group_size)
    scale = np.repeat(packed.scale.astype(np.float32), group_size, axis=-1)[..., :160]
    # The greatest weight of a group may lie beyond 448 scales by the rounding of the scale.
    tolerance = np.maximum(np.abs(weights) * (2.0**-4 + 2.0**-11), scale * 2.0**-10)
    assert (np.abs(values - weights) <= tolerance).all()
    assert (values[1, 2] == 0).all()


def test_what_fp8_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"^fp8 weights have no zero points$"):
        quantise(np.ones((1, 32)), "fp8", 32, zero_points=True)
    packing = Packing("fp8", 32, False)
    assert packing.fits(-448 * 255.0, 0) and not packing.fits(0, 448 * 256.0)


def test_zeros_of_their_own_make_the_levels_finer() -> None:
    weights = np.random.default_rng(0).uniform(0, 1, (64, 128)).astype(np.float32)
    errors = [
        np.abs(dequantise(quantise(weights, "int4", 32, zero_points=z), "int4", 32) - weights).mean()
        for z in (False, True)
    ]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(("weight_format", "group_size", "zero_points"), FORMATS)
def test_reference_runs_on_what_the_integers_stand_for(weight_format: str, group_size: int, zero_points: bool) -> None:
    rng = np.random.default_rng(0)
    T, E, H, I = 9, 4, 96, 160  # noqa: E741
    states = {
        "hidden_states": rng.standard_normal((T, H)).astype(np.float32),
        "router_logits": rng.standard_normal((T, E)).astype(np.float32),
        "visual_index": np.arange(0, T, 2, dtype=np.int32),
        "visual_top_k": np.array([1], np.int32),
        "correction_bias": np.zeros(E, np.float32),
    }
    weights = {"gate_up": (E, 2 * I, H), "down": (E, H, I)}
    packed: dict[str, QuantisedWeights] = {
        name: quantise(rng.standard_normal(shape), weight_format, group_size, zero_points=zero_points)
        for name, shape in weights.items()
    }
    packing = {"weight_format": weight_format, "group_size": group_size, "zero_points": int(zero_points)}
    attributes = moe_attributes(top_k=2, **packing)
    inputs = states | {name: p.values for name, p in packed.items()}
    inputs |= {f"{name}_scale": p.scale for name, p in packed.items()}
    inputs |= {f"{name}_zero": p.zero for name, p in packed.items() if p.zero is not None}
    assert list(inputs) == [t.name for t in SPARSE_MOE.inputs_for(attributes)]
    plain = states | {name: dequantise(p, weight_format, group_size) for name, p in packed.items()}
    np.testing.assert_array_equal(
        sparse_moe_reference(**inputs, **attributes), sparse_moe_reference(**plain, **moe_attributes(top_k=2))
    )
