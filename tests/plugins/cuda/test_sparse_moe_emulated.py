# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of FmmSparseMoE: routing and what holds for all of them, by the emulator; built by nvcc."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.types import Array
from tests.plugins.cuda.conftest import ARCHITECTURES
from tests.support.operators import moe_attributes, moe_inputs

KERNELS = Path(__file__).resolve().parents[3] / "plugins" / "sparse_moe" / "cuda"
SCORING_FUNCS = ("softmax", "sigmoid", "topk_softmax")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
SEED = 1


def assert_same_bits(output: Array, expected: Array) -> None:
    assert output.tobytes() == expected.tobytes()


def test_case(moe_kernels: Any, moe_case: tuple[dict[str, Array], dict[str, Any]], moe_dtype: Any) -> None:
    """The cases of the CPU kernel, which are of routing most of all."""
    inputs, attributes = moe_case
    moe_kernels.check_schedules(moe_kernels.typed(inputs, moe_dtype), attributes)


@pytest.mark.parametrize("E", [8, 31, 72, 160, 256])
def test_numbers_of_experts(moe_kernels: Any, E: int) -> None:
    for T in (3, 40):
        inputs = moe_kernels.typed(moe_inputs(T=T, E=E, H=16, I=16), np.float16)
        moe_kernels.check(inputs, moe_attributes(top_k=min(E, 16)))


@pytest.mark.parametrize("T", [7, 17])
@pytest.mark.parametrize("scoring", SCORING_FUNCS)
@pytest.mark.parametrize("method", TOPK_METHODS)
def test_values_that_are_not_finite_spoil_their_token_only(moe_kernels: Any, method: str, scoring: str, T: int) -> None:
    groups = {} if method == "greedy" else {"n_group": 4, "topk_group": 2}
    attributes = moe_attributes(topk_method=method, scoring_func=scoring, **groups)
    clean = moe_kernels.typed(moe_inputs(T=T, H=32, I=32), np.float16)
    expected = moe_kernels.check(clean, attributes)
    dirty = clean | {name: clean[name].copy() for name in ("hidden_states", "router_logits")}
    dirty["hidden_states"][1, 3] = np.nan
    dirty["router_logits"][2] = np.nan
    dirty["router_logits"][3, 4:] = np.nan  # NaN only in slots that this visual token does not use
    dirty["router_logits"][4, 7] = np.nan
    dirty["router_logits"][5] = -np.inf
    dirty["router_logits"][6, 2] = np.inf
    output, _ = moe_kernels(dirty, attributes)
    moe_kernels.check_output(output, dirty, attributes)  # where the reference is NaN, so is the output
    assert_same_bits(moe_kernels(dirty, attributes, seed=SEED)[0], output)
    others = np.setdiff1d(np.arange(T), [1, 2, 3, 4, 5, 6])
    assert_same_bits(output[others], expected[others])
    if scoring == "sigmoid":
        assert np.isfinite(output[4]).all(), "a NaN score comes last"


@pytest.mark.parametrize("T", [8, 17])
def test_visual_token_with_all_its_experts_is_a_text_token(moe_kernels: Any, T: int) -> None:
    for norm_topk_prob, scoring in itertools.product((0, 1), SCORING_FUNCS):
        attributes = moe_attributes(norm_topk_prob=norm_topk_prob, scoring_func=scoring)
        text, visual = (
            moe_kernels.typed(moe_inputs(T=T, H=32, I=16, visual=index, visual_top_k=6), np.float16)
            for index in (np.arange(0), np.arange(T))
        )
        assert_same_bits(moe_kernels(visual, attributes)[0], moe_kernels(text, attributes)[0])


@pytest.mark.parametrize(("T", "E"), [(8, 16), (40, 16), (100, 8)])
def test_a_row_does_not_depend_on_its_place(moe_kernels: Any, T: int, E: int) -> None:
    inputs = moe_kernels.typed(moe_inputs(T=T, E=E, H=32, I=48, visual=np.arange(0)), np.float16)
    reversed_rows = {name: np.ascontiguousarray(inputs[name][::-1]) for name in ("hidden_states", "router_logits")}
    output, _ = moe_kernels(inputs, moe_attributes())
    reversed_output, _ = moe_kernels(inputs | reversed_rows, moe_attributes())
    assert_same_bits(reversed_output, np.ascontiguousarray(output[::-1]))


@pytest.mark.parametrize(("E", "top_k"), [(8, 1), (64, 6), (72, 6), (128, 8), (256, 16)])
@pytest.mark.parametrize("packing", [{}, {"weight_format": "int4", "group_size": 32}], ids=["float", "int4"])
def test_workspace_grows_with_tokens(moe_kernels: Any, E: int, top_k: int, packing: dict[str, Any]) -> None:
    sizes, attributes = {"V": 0, "H": 64, "I": 32, "E": E}, moe_attributes(top_k=top_k, **packing)
    lengths = [moe_kernels.workspace_bytes(sizes | {"T": T}, np.float16, attributes) for T in range(12000)]
    assert lengths[0] == 0
    assert (np.diff(lengths) >= 0).all()


INT8 = {"weight_format": "int8", "group_size": 32}
INT4 = {"weight_format": "int4", "group_size": 32}


@pytest.mark.parametrize(
    ("size", "attributes", "message"),
    [
        ({"E": 257}, {}, "FmmSparseMoE: E is 257, expected 1 to 256 experts on CUDA"),
        ({"H": 24}, {}, "FmmSparseMoE: H is 24, expected a multiple of 16 on CUDA"),
        ({"I": 40}, {}, "FmmSparseMoE: I is 40, expected a multiple of 16 on CUDA"),
        ({"I": 40}, INT8, "FmmSparseMoE: I is 40, expected a multiple of 16 on CUDA"),
        ({"H": 48}, INT4, "FmmSparseMoE: H is 48, expected a multiple of 32 with int4 weights on CUDA"),
        ({"I": 16}, INT4, "FmmSparseMoE: I is 16, expected a multiple of 32 with int4 weights on CUDA"),
        ({"E": 32}, {"top_k": 17}, "FmmSparseMoE: top_k is 17, expected 1 to 16"),
        ({"E": 4}, {"top_k": 5}, "FmmSparseMoE: top_k is 5, expected 1 to 4"),
        ({"E": 20}, {"n_group": 8}, "FmmSparseMoE: n_group is 8, expected 1 to 64, a divisor of 20"),
    ],
)
def test_sizes_it_cannot_take_are_refused(
    moe_kernels: Any, size: dict[str, int], attributes: dict[str, Any], message: str
) -> None:
    sizes: dict[str, Any] = {"T": 2, "H": 32, "I": 32} | size
    inputs = moe_kernels.typed(moe_inputs(**sizes), np.float16)
    with pytest.raises(RuntimeError, match=f"^{message}$"):  # as the workspace is asked for, which comes first
        moe_kernels(inputs, moe_attributes(**attributes))


def test_float_states_are_refused(moe_kernels: Any) -> None:
    message = "FmmSparseMoE: hidden_states is float, expected float16 or bfloat16 on CUDA"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        moe_kernels(moe_inputs(H=32, I=32), moe_attributes())


KERNEL_COUNTS = {
    "kernel": 3 + 2,  # choosing and sorting; the sum for two types
    "kernel_float": 2 * 2 * 4,  # for each type two products: of few tokens, and with three tiles
    "kernel_int8": 2 * 2 * 3,  # no large tiles
    "kernel_int4": 2 * 2 * 3,
    "kernel_fp8": 2 * 2 * 3,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNEL_COUNTS)
def test_nvcc_compiles_it_without_spills(count_kernels: Callable[[Path, int], int], name: str, arch: int) -> None:
    assert sorted(path.stem for path in KERNELS.glob("*.cu")) == sorted(KERNEL_COUNTS)
    assert count_kernels(KERNELS / f"{name}.cu", arch) == KERNEL_COUNTS[name]
