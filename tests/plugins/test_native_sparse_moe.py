# SPDX-License-Identifier: Apache-2.0
"""Native FmmSparseMoE in ONNX Runtime against the NumPy reference."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import sparse_moe_reference
from fastmmoe.runtime.types import Array
from tests.support.native_node import NativeNode, run_native
from tests.support.operators import moe_attributes, moe_inputs

OP = "FmmSparseMoE"
FLOAT_TOLERANCE = 1e-5  # of the output's greatest value
DTYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def check(inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> Array:
    """Compare with the reference and return the native output."""
    with np.errstate(all="ignore"):
        expected = sparse_moe_reference(**inputs, **attributes)
    (output,) = run_native(OP, inputs, attributes, threads)
    assert output.dtype == np.float32
    assert output.shape == expected.shape
    scale = np.nanmax(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(output, expected, rtol=0, atol=FLOAT_TOLERANCE * scale)
    return output


def test_case(moe_case: tuple[dict[str, Array], dict[str, Any]]) -> None:
    check(*moe_case)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai"])
@pytest.mark.parametrize("expert_bias", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(dtype: str, expert_bias: int, activation: str) -> None:
    inputs = moe_inputs(H=67, I=37, weight_dtype=DTYPES[dtype], expert_bias=bool(expert_bias))
    attributes = moe_attributes(activation=activation, expert_bias=expert_bias, swiglu_limit=1.5)
    check(inputs, attributes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_value_is_converted_exactly(dtype: str) -> None:
    H = 1 << 16
    patterns = np.arange(H).astype(np.uint16).view(DTYPES[dtype])
    gate_up = np.zeros((1, 2, H), DTYPES[dtype])
    gate_up[0, :, 0] = 32, 1 / 32  # silu(32) / 32 is 1 in float
    inputs = {
        "hidden_states": np.eye(1, H, dtype=np.float32),
        "router_logits": np.zeros((1, 1), np.float32),
        "visual_index": np.zeros(0, np.int32),
        "visual_top_k": np.ones(1, np.int32),
        "correction_bias": np.zeros(1, np.float32),
        "gate_up": gate_up,
        "down": patterns.reshape(1, H, 1),
    }
    (output,) = run_native(OP, inputs, moe_attributes(top_k=1))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(output[0], patterns.astype(np.float32))


def test_one_expert_takes_all_tokens() -> None:
    inputs = moe_inputs(T=300, visual_top_k=1)
    inputs["router_logits"][:, 5] += 50
    check(inputs, moe_attributes(top_k=1), threads=2)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "topk_softmax"])
@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy", "noaux_tc"])
def test_nan_logits_spoil_their_token_only(method: str, scoring: str) -> None:
    groups = {} if method == "greedy" else {"n_group": 4, "topk_group": 2}
    attributes = moe_attributes(topk_method=method, scoring_func=scoring, **groups)
    clean = moe_inputs()
    (expected,) = run_native(OP, clean, attributes)
    dirty = {**clean, "router_logits": clean["router_logits"].copy()}
    dirty["router_logits"][3] = np.nan
    dirty["router_logits"][4, 7] = np.nan
    dirty["router_logits"][5] = -np.inf
    dirty["router_logits"][6, 2] = np.inf
    output = check(dirty, attributes)  # where the reference is NaN, so is the output
    (again,) = run_native(OP, dirty, attributes, threads=2)
    np.testing.assert_array_equal(output, again)
    others = np.setdiff1d(np.arange(17), [3, 4, 5, 6])
    np.testing.assert_array_equal(output[others], expected[others])


def test_a_nan_score_comes_last() -> None:
    inputs = moe_inputs()
    inputs["router_logits"][4, 7] = np.nan
    output = check(inputs, moe_attributes(scoring_func="sigmoid"))
    assert np.isfinite(output).all()


def test_threads_give_the_same_bits() -> None:
    for dtype in DTYPES.values():
        inputs = moe_inputs(T=300, E=64, H=100, I=70, weight_dtype=dtype)
        (one,) = run_native(OP, inputs, moe_attributes(), threads=1)
        (two,) = run_native(OP, inputs, moe_attributes(), threads=2)
        np.testing.assert_array_equal(one, two)


def test_visual_token_with_all_its_experts_is_a_text_token() -> None:
    for norm_topk_prob, scoring in itertools.product((0, 1), ("softmax", "sigmoid", "topk_softmax")):
        attributes = moe_attributes(norm_topk_prob=norm_topk_prob, scoring_func=scoring)
        (text,) = run_native(OP, moe_inputs(visual=np.arange(0), visual_top_k=6), attributes)
        (visual,) = run_native(OP, moe_inputs(visual=np.arange(17), visual_top_k=6), attributes)
        np.testing.assert_array_equal(text, visual)


def test_a_row_does_not_depend_on_the_others() -> None:
    inputs = moe_inputs(T=19, E=8, visual=np.arange(0))
    (together,) = run_native(OP, inputs, moe_attributes())
    for t in range(19):
        row = {name: inputs[name][t : t + 1] for name in ("hidden_states", "router_logits")}
        (alone,) = run_native(OP, {**inputs, **row}, moe_attributes())
        np.testing.assert_array_equal(alone[0], together[t])


def test_sessions_and_threads_at_once() -> None:
    requests = [moe_inputs(T=T, E=64, seed=3) for T in (1, 40, 130, 7)]
    nodes = [NativeNode(OP, requests[0], moe_attributes(), threads) for threads in (1, 2)]
    jobs = [(node, request) for node in nodes for request in requests] * 5
    weights = {name: requests[0][name] for name in ("gate_up", "down")}
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda job: job[0](job[1])[0], jobs))
    for (_, request), output in zip(jobs, outputs, strict=True):
        expected = sparse_moe_reference(**{**request, **weights}, **moe_attributes())
        np.testing.assert_allclose(output, expected, rtol=0, atol=FLOAT_TOLERANCE * np.abs(expected).max())
