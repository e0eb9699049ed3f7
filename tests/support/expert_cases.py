# SPDX-License-Identifier: Apache-2.0
"""The table of cases of FmmSparseMoE's expert kernels: types, formats of weights, tiles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastmmoe.runtime.types import Array
from tests.support.moe_params import packed
from tests.support.operators import moe_attributes, moe_inputs


class Packing(NamedTuple):
    """How the experts' weights are stored: the attributes of the contract."""

    weight_format: str
    group_size: int
    zero_points: int

    def __str__(self) -> str:
        zeros = "-zeros" if self.zero_points else ""
        return f"{self.weight_format}-{self.group_size}{zeros}" if self.group_size else self.weight_format


PACKINGS = [
    Packing("float", 0, 0),
    *itertools.starmap(Packing, itertools.product(("int8", "int4"), (32, 64, 128), (0, 1))),
    *itertools.starmap(Packing, itertools.product(("fp8",), (32, 64, 128), (0,))),
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
    """Make routing uneven, or states not finite, as the load says."""
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
    return packed(inputs, packing.weight_format, packing.group_size, zero_points=bool(packing.zero_points))


def make_case(case: Case, packing: Packing) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inputs and attributes."""
    H, I = SIZES[case.size][packing.weight_format == "int4"]  # noqa: E741
    expert_bias = bool(case.attributes.get("expert_bias"))
    inputs = moe_inputs(T=case.T, E=case.E, H=H, I=I, visual_top_k=1, expert_bias=expert_bias)
    inputs |= {name: spread(inputs[name], seed) for seed, name in enumerate(("gate_up", "down"))}
    edit(inputs, case.load)
    return pack(inputs, packing), moe_attributes(**case.attributes, **packing._asdict())
