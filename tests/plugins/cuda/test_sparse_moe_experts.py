# SPDX-License-Identifier: Apache-2.0
"""One table of cases for every variant of FmmSparseMoE's expert kernels: types, formats of weights, tiles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise, pack_int4, quantise
from fastmmoe.runtime.types import Array
from tests.support.operators import moe_attributes, moe_inputs


class Packing(NamedTuple):
    weight_format: str
    group_size: int
    zero_points: int

    def __str__(self) -> str:
        zeros = "-zeros" if self.zero_points else ""
        return f"{self.weight_format}-{self.group_size}{zeros}" if self.group_size else self.weight_format


PACKINGS = [
    Packing("float", 0, 0),
    *itertools.starmap(Packing, itertools.product(("int8", "int4"), (32, 64, 128), (0, 1))),
]

# H and I, first where they are multiples of 16 only, then for int4. Wide: two blocks of columns in each product, more
# depth than is in flight at a time, last groups that are shorter than the others. Deep: more steps than a block has
# warps in the product of hidden_states, too.
SIZES = {
    "smallest": ((16, 16), (32, 32)),
    "wide": ((144, 80), (160, 96)),
    "deep": ((1040, 48), (1056, 32)),
}


@dataclass(frozen=True)
class Case:
    """T tokens and E experts; what routes tokens and edits the inputs is in `load`."""

    T: int
    E: int
    size: str
    load: str = "even"
    attributes: dict[str, Any] = field(default_factory=dict)


GPT_OSS = {"activation": "swiglu_oai", "swiglu_limit": 1.5, "expert_bias": 1}
CASES = {
    "no tokens": Case(0, 32, "smallest"),
    "1 token": Case(1, 64, "wide"),
    "2 tokens": Case(2, 72, "smallest"),
    "3 tokens, deep": Case(3, 4, "deep", attributes={"top_k": 2}),
    "8 tokens, biases": Case(8, 32, "wide", attributes=GPT_OSS),
    "9 tokens, smallest": Case(9, 32, "smallest"),
    "17 tokens of 128 experts": Case(17, 128, "smallest"),
    "17 tokens, biases": Case(17, 32, "wide", attributes=GPT_OSS),
    "medium tiles": Case(30, 8, "wide", attributes=GPT_OSS),
    "512 tokens": Case(512, 32, "smallest", attributes={"top_k": 2}),
    "512 tokens, large tiles": Case(512, 4, "wide", attributes={"top_k": 2}),
    "one expert takes all 8": Case(8, 32, "smallest", "one", {"top_k": 1}),
    "one expert takes all 70": Case(70, 32, "smallest", "one", {"top_k": 1}),
    "few experts of 5 tokens": Case(5, 32, "smallest", "few"),
    "few experts of 30 tokens": Case(30, 32, "smallest", "few"),
    "ties": Case(24, 72, "smallest", "ties"),
    "NaN in 5 tokens": Case(5, 32, "smallest", "NaN"),
    "NaN in 17 tokens": Case(17, 32, "smallest", "NaN"),
}


def spread(weights: Array, seed: int) -> Array:
    """Weights [E, n, columns] of which each 32 columns of a row have another size and another mean."""
    random = np.random.default_rng(seed)
    shape = (*weights.shape[:2], -(-weights.shape[2] // 32))
    factor = 2.0 ** random.integers(-1, 2, shape)
    mean = random.choice([-1.0, 0.0, 1.0], shape) / np.sqrt(weights.shape[2])
    factor, mean = (np.repeat(x, 32, axis=2)[..., : weights.shape[2]] for x in (factor, mean))
    return (weights * factor + mean).astype(np.float32)


def edit(inputs: dict[str, Array], load: str) -> None:
    if load == "one":
        inputs["router_logits"][:, 5] += 50
    elif load == "few":
        inputs["router_logits"][:, 8:] -= 100
    elif load == "ties":
        inputs["router_logits"] = np.round(inputs["router_logits"] / 2)
    elif load == "NaN":
        inputs["hidden_states"][[1, 4], 3] = np.nan


def pack(inputs: dict[str, Array], packing: Packing) -> dict[str, Array]:
    """Integer weights in place of those of `inputs`, in the order of the contract."""
    if not packing.group_size:
        return inputs
    packed = {
        name: quantise(inputs[name], packing.weight_format, packing.group_size, zero_points=bool(packing.zero_points))
        for name in ("gate_up", "down")
    }
    inputs = inputs | {name: weights.values for name, weights in packed.items()}
    inputs |= {f"{name}_scale": weights.scale for name, weights in packed.items()}
    return inputs | {f"{name}_zero": weights.zero for name, weights in packed.items() if weights.zero is not None}


def make_case(case: Case, packing: Packing) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inputs and attributes."""
    H, I = SIZES[case.size][packing.weight_format == "int4"]  # noqa: E741
    expert_bias = bool(case.attributes.get("expert_bias"))
    inputs = moe_inputs(T=case.T, E=case.E, H=H, I=I, visual_top_k=1, expert_bias=expert_bias)
    inputs |= {name: spread(inputs[name], seed) for seed, name in enumerate(("gate_up", "down"))}
    edit(inputs, case.load)
    return pack(inputs, packing), moe_attributes(**case.attributes, **packing._asdict())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_case(moe_kernels: Any, moe_dtype: Any, packing: Packing, name: str) -> None:
    inputs, attributes = make_case(CASES[name], packing)
    moe_kernels.check_schedules(moe_kernels.typed(inputs, moe_dtype), attributes)


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
        "gate_up": pack_int4(q) if weight_format == "int4" else q.view(np.int8),
        "gate_up_scale": np.broadcast_to(factor[:, None], groups),
        "gate_up_zero": np.zeros(groups, np.int8),
    }


@pytest.mark.parametrize("T", [8, 11, 32])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_integers_are_rounded_once(
    moe_kernels: Any, moe_dtype: Any, weight_format: str, group_size: int, T: int
) -> None:
    """The output is the weights of down, every column, bit for bit: scale (q - zero) rounded to the type."""
    I, random = 96, np.random.default_rng(T)  # noqa: E741
    shape = (1, 256, -(-I // group_size))
    q = random.integers(0, 256, (1, 256, I)).astype(np.uint8)
    if weight_format == "int4":
        q &= 15
    packed = {
        "down": pack_int4(q) if weight_format == "int4" else q.view(np.int8),
        "down_scale": (2.0 ** random.uniform(-24, 8, shape)).astype(np.float16),
        "down_zero": random.integers(-128, 128, shape).astype(np.int8),
    }
    weights = dequantise(
        QuantisedWeights(packed["down"], packed["down_scale"], packed["down_zero"]), weight_format, group_size
    )
    attributes = moe_attributes(
        top_k=1, scoring_func="topk_softmax", weight_format=weight_format, group_size=group_size, zero_points=1
    )
    for first in range(0, I, T):
        columns = np.arange(first, first + T) % I
        inputs = identity_inputs(weight_format, group_size, columns, I) | packed
        output, _ = moe_kernels(moe_kernels.typed(inputs, moe_dtype), attributes)
        expected = weights[0, :, columns].astype(moe_dtype)
        np.testing.assert_array_equal(output.astype(np.float32), expected.astype(np.float32))
