# SPDX-License-Identifier: Apache-2.0
"""Integer weights: packing, rounding, and the reference on them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastmmoe.exporter.ops import SPARSE_MOE, sparse_moe_reference
from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise, pack_int4, quantise, unpack_int4
from tests.support.operators import (
    moe_attributes,
)

FORMATS = list(itertools.product(("int8", "int4"), (32, 64, 128), (False, True)))


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


@pytest.mark.parametrize(("weight_format", "group_size", "zero_points"), FORMATS)
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
