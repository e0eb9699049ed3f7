# SPDX-License-Identifier: Apache-2.0
"""One table of cases for every variant of FmmSparseMoE's expert kernels: types, formats of weights, tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise, pack_int4
from fastmmoe.runtime.types import Array
from tests.plugins.cuda.conftest import SparseMoeKernels
from tests.support.expert_cases import CASES, PACKINGS, Case, Packing, make_case
from tests.support.operators import moe_attributes

FIRST_GROUP = 32
"""Of larger groups of weights fewer schedules run, and in bfloat16 nothing but in the slow tests."""


def _variants() -> Iterator[Any]:
    for dtype, packing in itertools.product(SparseMoeKernels.TOLERANCES, PACKINGS):
        is_slow = dtype != np.float16 and packing.group_size > FIRST_GROUP
        yield pytest.param(dtype, packing, marks=[pytest.mark.slow] if is_slow else [], id=f"{dtype}-{packing}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "packing"), list(_variants()))
def test_case(moe_kernels: SparseMoeKernels, dtype: Any, packing: Packing, name: str) -> None:
    inputs, attributes = make_case(CASES[name], packing)
    inputs = moe_kernels.typed(inputs, dtype)
    if dtype == np.float16 and packing.group_size <= FIRST_GROUP:
        moe_kernels.check_schedules(inputs, attributes)
    else:
        moe_kernels.check(inputs, attributes)


@pytest.mark.parametrize("T", [5, 30])
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_weights_that_are_not_finite_concern_the_tokens_that_use_them(
    moe_kernels: Any, packing: Packing, T: int
) -> None:
    """The first expert's weights, which some tokens use, and those of experts that none does."""
    inputs, attributes = make_case(Case(T, 32, "smallest", "few"), packing)
    inputs = moe_kernels.typed(inputs, np.float16)
    output, experts = moe_kernels(inputs, attributes)
    uses_first = (experts == 0).any(axis=1)
    assert uses_first.any()
    assert not uses_first.all()
    for name in ("gate_up_scale", "down_scale") if packing.group_size else ("gate_up", "down"):
        inputs[name][0] = inputs[name][8:] = np.nan
    spoiled, _ = moe_kernels(inputs, attributes)
    assert np.isnan(spoiled[uses_first]).all()
    assert spoiled[~uses_first].tobytes() == output[~uses_first].tobytes()


ONE = {"int8": np.uint8(1), "fp8": np.uint8(0x38)}
"""The byte that stands for 1."""


def identity_inputs(weight_format: str, group_size: int, columns: Array, I: int) -> dict[str, Array]:  # noqa: E741
    """Inputs with one expert of weight 1, whose activation for token t is 1 in column columns[t] and 0 in others."""
    T, H = len(columns), 256
    q = np.zeros((1, 2 * I, H), np.uint8)
    q[0, np.arange(I), np.arange(I)] = q[0, I + np.arange(I), np.arange(I)] = 1
    groups = (1, 2 * I, H // group_size)
    factor = np.where(np.arange(2 * I) < I, 32, 1 / 32).astype(np.float16)  # silu(32) / 32 is 1 in float
    return {
        "hidden_states": np.eye(I, H, dtype=np.float32)[columns],
        "router_logits": np.zeros((T, 1), np.float32),
        "visual_index": np.zeros(0, np.int32),
        "visual_top_k": np.ones(1, np.int32),
        "correction_bias": np.zeros(1, np.float32),
        "gate_up": pack_int4(q) if weight_format == "int4" else (q * ONE[weight_format]).view(np.int8),
        "gate_up_scale": np.broadcast_to(factor[:, None], groups),
    } | ({} if weight_format == "fp8" else {"gate_up_zero": np.zeros(groups, np.int8)})


@pytest.mark.parametrize("T", [8, 11, 32])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("weight_format", ["int8", "int4", "fp8"])
def test_packed_weights_are_rounded_once(
    moe_kernels: Any, moe_dtype: Any, weight_format: str, group_size: int, T: int
) -> None:
    """The output is the weights of down, every column, bit for bit: scale (q - zero) rounded to the type.

    fp8 has no zero, and its scales are such that float16 holds the weights.
    """
    I, random = 96, np.random.default_rng(T)  # noqa: E741
    shape = (1, 256, -(-I // group_size))
    q = random.integers(0, 256, (1, 256, I)).astype(np.uint8)
    if weight_format == "int4":
        q &= 15
    has_zeros = weight_format != "fp8"
    packed = {
        "down": pack_int4(q) if weight_format == "int4" else q.view(np.int8),
        "down_scale": (2.0 ** random.uniform(-24, 8 if has_zeros else 7, shape)).astype(np.float16),
    }
    if has_zeros:
        packed["down_zero"] = random.integers(-128, 128, shape).astype(np.int8)
    weights = dequantise(
        QuantisedWeights(packed["down"], packed["down_scale"], packed.get("down_zero")), weight_format, group_size
    )
    attributes = moe_attributes(
        top_k=1,
        scoring_func="topk_softmax",
        weight_format=weight_format,
        group_size=group_size,
        zero_points=int(has_zeros),
    )
    for first in range(0, I, T):
        columns = np.arange(first, first + T) % I
        inputs = identity_inputs(weight_format, group_size, columns, I) | packed
        output, _ = moe_kernels(moe_kernels.typed(inputs, moe_dtype), attributes)
        expected = weights[0, :, columns].astype(moe_dtype)
        np.testing.assert_array_equal(output.astype(np.float32), expected.astype(np.float32))
