# SPDX-License-Identifier: Apache-2.0
"""What the native operators refuse, and the message that says so."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from fastmmoe.runtime.types import Array
from tests.support.linear_cases import PACKINGS, linear_case
from tests.support.native_node import NativeNode, run_native
from tests.support.operators import moe_attributes, moe_inputs, prune_inputs


def expect_refusal(op: str, inputs: dict[str, Array], attributes: dict[str, Any], message: str) -> None:
    # ONNX Runtime makes a RuntimeException of what is refused when the session is made.
    with pytest.raises((InvalidArgument, RuntimeException), match=re.escape(f"{op}: {message}") + "$"):
        run_native(op, inputs, attributes)


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


# Input, its bad value, message. T 17, E 16, H 24, I 20, V 6, top_k 6.
MOE_INPUTS: list[tuple[str, Array, str]] = [
    ("hidden_states", zeros(17), "hidden_states is [17], expected rank 2: [T, H]"),
    ("router_logits", zeros(16), "router_logits is [16], expected rank 2: [T, E]"),
    ("router_logits", zeros(16, 16), "router_logits is [16, 16], expected [T, E] = [17, E]"),
    ("visual_index", zeros(1, 1, dtype=np.int32), "visual_index is [1, 1], expected rank 1: [V]"),
    ("visual_index", np.array([3, 17], np.int32), "visual_index[1] is 17, expected 0 to 16"),
    ("visual_index", np.array([-1, 3], np.int32), "visual_index[0] is -1, expected 0 to 16"),
    ("visual_index", np.array([4, 4], np.int32), "visual_index[1] is 4 after 4, expected ascending rows"),
    ("visual_index", np.array([4, 7, 5], np.int32), "visual_index[2] is 5 after 7, expected ascending rows"),
    ("visual_top_k", np.array([0], np.int32), "visual_top_k is 0, expected 1 to top_k = 6"),
    ("visual_top_k", np.array([7], np.int32), "visual_top_k is 7, expected 1 to top_k = 6"),
    ("visual_top_k", np.array([2, 2], np.int32), "visual_top_k is [2], expected [1] = [1]"),
    ("visual_top_k", np.array(2, np.int32), "visual_top_k is [], expected rank 1: [1]"),
    ("correction_bias", zeros(15), "correction_bias is [15], expected [E] = [16]"),
    ("gate_up", zeros(16, 40), "gate_up is [16, 40], expected rank 3: [E, 2I, H/p]"),
    ("gate_up", zeros(16, 41, 24), "gate_up is [16, 41, 24], expected [E, 2I, H/p] = [16, 2I, 24]"),
    ("gate_up", zeros(15, 40, 24), "gate_up is [15, 40, 24], expected [E, 2I, H/p] = [16, 2I, 24]"),
    ("gate_up", zeros(16, 40, 23), "gate_up is [16, 40, 23], expected [E, 2I, H/p] = [16, 40, 24]"),
    ("down", zeros(16, 24), "down is [16, 24], expected rank 3: [E, H, I/p]"),
    ("down", zeros(16, 20, 24), "down is [16, 20, 24], expected [E, H, I/p] = [16, 24, 20]"),
    (
        "gate_up",
        zeros(16, 40, 24, dtype=np.float64),
        "input 5 has ONNX element type 11, which no input of the operator may have",
    ),
    (
        "down",
        zeros(16, 24, 20, dtype=np.int8),
        "down is int8, expected float as the other tensors of type W",
    ),
    (
        "down",
        zeros(16, 24, 20, dtype=np.float16),
        "down is float16, expected float as the other tensors of type W",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), MOE_INPUTS)
def test_sparse_moe_inputs(name: str, value: Array, message: str) -> None:
    expect_refusal("FmmSparseMoE", {**moe_inputs(), name: value}, moe_attributes(), message)


SEVEN = "hidden_states, router_logits, visual_index, visual_top_k, correction_bias, gate_up, down"
INPUTS_EXPECTED = "inputs, expected with these attributes are"


def test_sparse_moe_biases() -> None:
    op, inputs, biased = "FmmSparseMoE", moe_inputs(expert_bias=True), moe_attributes(expert_bias=1)
    nine = f"9: {SEVEN}, gate_up_bias, down_bias"
    expect_refusal(op, inputs, moe_attributes(), f"9 {INPUTS_EXPECTED} 7: {SEVEN}")
    expect_refusal(op, moe_inputs(), biased, f"7 {INPUTS_EXPECTED} {nine}")
    one = {name: array for name, array in inputs.items() if name != "down_bias"}
    expect_refusal(op, one, biased, f"8 {INPUTS_EXPECTED} {nine}")
    wrong = {**inputs, "gate_up_bias": zeros(16, 20)}
    expect_refusal(op, wrong, biased, "gate_up_bias is [16, 20], expected [E, 2I] = [16, 40]")
    wrong = {**inputs, "down_bias": zeros(24)}
    expect_refusal(op, wrong, biased, "down_bias is [24], expected rank 2: [E, H]")


def test_weights_that_are_not_of_their_format() -> None:
    inputs = moe_inputs(weight_dtype=np.int8)
    message = "gate_up is int8, expected float, float16 or bfloat16 with weight_format float"
    expect_refusal("FmmSparseMoE", inputs, moe_attributes(), message)


MOE_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 0}, "attribute top_k is 0, expected 1 to 16"),
    ({"top_k": 17}, "attribute top_k is 17, expected 1 to 16"),
    ({"top_k": 2.0}, "attribute top_k is missing or no int; every attribute must be given"),
    (
        {"scoring_func": "relu"},
        "attribute scoring_func is 'relu', supported are softmax, sigmoid, topk_softmax",
    ),
    (
        {"topk_method": "noaux"},
        "attribute topk_method is 'noaux', supported are greedy, group_limited_greedy, noaux_tc",
    ),
    ({"n_group": 0}, "attribute n_group is 0, expected 1 to 64"),
    ({"topk_group": 65}, "attribute topk_group is 65, expected 1 to 64"),
    (
        {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 3},
        "attribute topk_group is 3, expected at most n_group = 2",
    ),
    ({"topk_method": "noaux_tc", "n_group": 3}, "n_group is 3, expected a divisor of E = 16"),
    ({"norm_topk_prob": 2}, "attribute norm_topk_prob is 2, supported are 0, 1"),
    (
        {"routed_scaling_factor": 1},
        "attribute routed_scaling_factor is missing or no float; every attribute must be given",
    ),
    ({"reduction_weights": "sum"}, "attribute reduction_weights is 'sum', supported are preserve_sum, none"),
    ({"activation": "gelu"}, "attribute activation is 'gelu', supported are swiglu, swiglu_oai"),
    ({"swiglu_limit": "7"}, "attribute swiglu_limit is missing or no float; every attribute must be given"),
    (
        {"weight_layout": "tiles"},
        "attribute expert_size is 0 with weight_layout tiles, expected 0 with logical only",
    ),
    ({"expert_size": 20}, "attribute expert_size is 20 with weight_layout logical, expected 0 with logical only"),
    (
        {"weight_layout": "tiles", "expert_size": 20, "weight_format": "fp8", "group_size": 32},
        "attribute weight_layout is tiles with weight_format fp8, expected logical",
    ),
    (
        {"weight_format": "int4"},
        "attribute group_size is 0 with weight_format int8, int4 or fp8, expected 32, 64 or 128",
    ),
    ({"group_size": 32}, "attribute group_size is 32 with weight_format float, expected 0"),
    ({"group_size": 48}, "attribute group_size is 48, supported are 0, 32, 64, 128"),
    ({"zero_points": 1}, "attribute zero_points is 1 with weight_format float, expected 0"),
    ({"expert_bias": 2}, "attribute expert_bias is 2, supported are 0, 1"),
]


@pytest.mark.parametrize(("changes", "message"), MOE_ATTRIBUTES)
def test_sparse_moe_attributes(changes: dict[str, Any], message: str) -> None:
    expect_refusal("FmmSparseMoE", moe_inputs(), moe_attributes(**changes), message)


def test_every_sparse_moe_attribute_must_be_given() -> None:
    kinds = {int: "int", float: "float", str: "string"}
    for name, value in moe_attributes().items():
        rest = {n: v for n, v in moe_attributes().items() if n != name}
        message = f"attribute {name} is missing or no {kinds[type(value)]}; every attribute must be given"
        expect_refusal("FmmSparseMoE", moe_inputs(), rest, message)


def test_more_experts_than_there_are() -> None:
    message = "top_k is 6, expected at most E = 4"
    expect_refusal("FmmSparseMoE", moe_inputs(E=4), moe_attributes(), message)


# Input, its bad value, message. T 60, V 44, E 8, H 12, K 20, window 3.
PRUNE_INPUTS: list[tuple[str, Array, str]] = [
    ("hidden_states", zeros(60), "hidden_states is [60], expected rank 2: [T, H]"),
    ("residual", zeros(60, 11), "residual is [60, 11], expected [T, H] = [60, 12]"),
    ("routing_probs", zeros(44), "routing_probs is [44], expected rank 2: [V, E]"),
    ("routing_probs", zeros(43, 8), "attention is [44], expected [V] = [43]"),
    ("attention", zeros(45), "attention is [45], expected [V] = [44]"),
    ("visual_index", np.arange(17, 61, dtype=np.int32), "visual_index[43] is 60, expected 0 to 59"),
    ("visual_index", zeros(44, dtype=np.int32), "visual_index[1] is 0 after 0, expected ascending rows"),
    ("keep_slots", zeros(1, 1, dtype=np.int8), "keep_slots is [1, 1], expected rank 1: [K]"),
    ("keep_slots", zeros(45, dtype=np.int8), "45 keep slots for 44 visual tokens; at most 44 can be kept"),
    ("merge_slots", zeros(1, 1, dtype=np.int8), "merge_slots is [1, 1], expected rank 1: [M]"),
    ("merge_slots", zeros(13, dtype=np.int8), "13 merge slots, at most 12"),
    ("visual_offsets", zeros(0, dtype=np.int32), "B is -1, expected 1 to 65536 (visual_offsets is [0])"),
    ("visual_offsets", zeros(1, dtype=np.int32), "B is 0, expected 1 to 65536 (visual_offsets is [1])"),
    ("visual_offsets", zeros(2, 1, dtype=np.int32), "visual_offsets is [2, 1], expected rank 1: [B+1]"),
    ("visual_offsets", np.array([1, 44], np.int32), "visual_offsets[0] is 1, expected 0"),
    ("visual_offsets", np.array([0, 43], np.int32), "visual_offsets[1] is 43, expected 44"),
    ("keep_offsets", zeros(3, dtype=np.int32), "keep_offsets is [3], expected [B+1] = [2]"),
    ("keep_offsets", np.array([-1, 20], np.int32), "keep_offsets[0] is -1, expected 0"),
    ("keep_offsets", np.array([0, 21], np.int32), "keep_offsets[1] is 21, expected 20"),
    ("merge_offsets", np.array([0, -3], np.int32), "merge_offsets[1] is -3 after 0, expected not descending"),
    ("merge_offsets", np.array([0, 4], np.int32), "merge_offsets[1] is 4, expected 3"),
    ("alpha", zeros(2), "alpha is [2], expected [1] = [1]"),
    ("alpha", np.array([1.5], np.float32), "alpha is 1.5, expected 0 to 1"),
    ("alpha", np.array([-0.5], np.float32), "alpha is -0.5, expected 0 to 1"),
    ("alpha", np.array([np.nan], np.float32), "alpha is nan, expected 0 to 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), PRUNE_INPUTS)
def test_token_prune_inputs(name: str, value: Array, message: str) -> None:
    attributes = {"window": 3, "merge": "mlerp"}
    expect_refusal("FmmTokenPrune", {**prune_inputs(), name: value}, attributes, message)


def test_more_merge_slots_than_survivors() -> None:
    attributes = {"window": 3, "merge": "mlerp"}
    expect_refusal("FmmTokenPrune", prune_inputs(K=2, M=3), attributes, "3 merge slots, at most 2")
    few = prune_inputs(visual=np.arange(6), K=2, M=2)
    expect_refusal("FmmTokenPrune", few, attributes, "2 merge slots, at most 1")
    attributes = {"window": 1, "merge": "mlerp"}
    expect_refusal("FmmTokenPrune", prune_inputs(M=1), attributes, "1 merge slots, at most 0")


# Offsets of three sequences (V 44, K 20, M 3, window 3), message.
PACKED_OFFSETS: list[tuple[list[int], list[int], list[int], str]] = [
    (
        [0, 30, 29, 44],
        [0, 10, 20, 20],
        [0, 1, 2, 3],
        "visual_offsets[2] is 29 after 30, expected not descending",
    ),
    (
        [0, 10, 40, 44],
        [0, 11, 20, 20],
        [0, 1, 3, 3],
        "sequence 0: 11 keep slots for 10 visual tokens; at most 10 can be kept",
    ),
    ([0, 10, 40, 44], [0, 10, 20, 20], [0, 1, 3, 3], "sequence 0: 1 merge slots, at most 0"),
    ([0, 20, 40, 44], [0, 10, 20, 20], [0, 1, 2, 3], "sequence 2: 1 merge slots, at most 0"),
    ([0, 35, 35, 44], [0, 17, 17, 20], [0, 0, 0, 3], "sequence 2: 3 merge slots, at most 2"),
    ([0, 35, 35, 44], [0, 17, 17, 20], [0, 0, 1, 3], "sequence 1: 1 merge slots, at most 0"),
]


@pytest.mark.parametrize(("visual", "keep", "merge", "message"), PACKED_OFFSETS)
def test_offsets_of_several_sequences(visual: list[int], keep: list[int], merge: list[int], message: str) -> None:
    offsets = {"visual_offsets": visual, "keep_offsets": keep, "merge_offsets": merge}
    inputs = prune_inputs() | {name: np.array(values, np.int32) for name, values in offsets.items()}
    expect_refusal("FmmTokenPrune", inputs, {"window": 3, "merge": "mlerp"}, message)


def test_a_request_without_sequences() -> None:
    none = {name: zeros(1, dtype=np.int32) for name in ("visual_offsets", "keep_offsets", "merge_offsets")}
    inputs = prune_inputs(K=0, M=0, visual=np.arange(0)) | none
    message = "B is 0, expected 1 to 65536 (visual_offsets is [1])"
    expect_refusal("FmmTokenPrune", inputs, {"window": 3, "merge": "mlerp"}, message)


PRUNE_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"window": 0, "merge": "mean"}, "attribute window is 0, expected 1 to 64"),
    ({"window": 65, "merge": "mean"}, "attribute window is 65, expected 1 to 64"),
    ({"merge": "mean"}, "attribute window is missing or no int; every attribute must be given"),
    ({"window": 3, "merge": "max"}, "attribute merge is 'max', supported are mlerp, mean"),
    ({"window": 3}, "attribute merge is missing or no string; every attribute must be given"),
]


@pytest.mark.parametrize(("attributes", "message"), PRUNE_ATTRIBUTES)
def test_token_prune_attributes(attributes: dict[str, Any], message: str) -> None:
    expect_refusal("FmmTokenPrune", prune_inputs(), attributes, message)


def test_weights_that_a_request_replaces() -> None:
    """Shapes of constants are asked for once, but not of those that a call may replace: it would read beyond them."""
    inputs, attributes = linear_case(PACKINGS[1], "odd")
    node = NativeNode("FmmLinear", inputs, attributes, may_replace=True)
    expected = node(inputs)[0]
    np.testing.assert_array_equal(run_native("FmmLinear", inputs, attributes)[0], expected)
    shape = list(inputs["weight"].shape)
    message = f"FmmLinear: weight is {[1, *shape[1:]]}, expected [N/n, K/w, n, b] = {shape}"
    with pytest.raises(InvalidArgument, match=re.escape(message) + "$"):
        node.session.run(None, inputs | {"weight": inputs["weight"][:1]})
    other = node.session.run(None, inputs | {"weight": np.zeros_like(inputs["weight"])})[0]
    np.testing.assert_allclose(other, np.broadcast_to(inputs["bias"], other.shape), rtol=1e-6)
    np.testing.assert_array_equal(node(inputs)[0], expected)
    expect_refusal("FmmLinear", inputs | {"weight": inputs["weight"][:1]}, attributes, message.partition(": ")[2])
