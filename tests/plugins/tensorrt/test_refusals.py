# SPDX-License-Identifier: Apache-2.0
"""What the TensorRT plugin refuses, in which of TensorRT's calls, and the line that it logs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.types import Array
from tests.support.operators import moe_attributes, moe_inputs, prune_inputs

# One worker builds the host, not each.
pytestmark = pytest.mark.xdist_group("tensorrt_host")


ERROR = 1  # nvinfer1::ILogger::Severity
BUILD, RUNTIME = 0, 1
FLOAT32, INT32, CHAR, INT64 = 1, 5, 6, 10
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}
FLOATS = ("hidden_states", "residual", "gate_up", "down")


def expect_refusal(harness: Any, call: Callable[[], Any], message: str, failed: str | None = None) -> None:
    """The call fails, which logs exactly one error; `failed`: what the harness says of the call."""
    with pytest.raises(harness.Refused) as refused:
        call()
    expected = [f"{ERROR} {message} (node node)", *([failed] if failed else [])]
    assert str(refused.value).splitlines() == expected


def halves(inputs: dict[str, Array], dtype: Any = np.float16) -> dict[str, Array]:
    return {name: value.astype(dtype) if name in FLOATS else value for name, value in inputs.items()}


WRONG_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"top_k": -1}, "attribute top_k is -1, expected 1 to 16"),
    ({"top_k": 17}, "attribute top_k is 17, expected 1 to 16"),
    ({"top_k": 2.0}, "attribute top_k is a float, expected an int"),
    ({"top_k": "2"}, "attribute top_k is a string, expected an int"),
    ({"swiglu_limit": 7}, "attribute swiglu_limit is an int, expected a float"),
    ({"activation": 1}, "attribute activation is an int, expected a string"),
    ({"activation": "gelu"}, "attribute activation is 'gelu', supported are swiglu, swiglu_oai"),
    ({"norm_topk_prob": 2}, "attribute norm_topk_prob is 2, supported are 0, 1"),
    (
        {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 3},
        "attribute topk_group is 3, expected at most n_group = 2",
    ),
    ({"group_size": 32}, "attribute group_size is 32 with weight_format float, expected 0"),
    (
        {"weight_format": "int4"},
        "attribute group_size is 0 with weight_format int8, int4 or fp8, expected 32, 64 or 128",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_ATTRIBUTES)
def test_attributes(host: Any, harness: Any, changes: dict[str, Any], message: str) -> None:
    fields = harness.parser_fields(moe_attributes(**changes))
    expect_refusal(harness, lambda: host.create("FmmSparseMoE", fields), f"FmmSparseMoE: {message}")


def test_every_attribute_must_be_given(host: Any, harness: Any) -> None:
    for op, attributes in (("FmmSparseMoE", moe_attributes()), ("FmmTokenPrune", MLERP)):
        for name in attributes:
            fields = [field for field in harness.parser_fields(attributes) if field.name != name]
            message = f"{op}: attribute {name} is missing; every attribute must be given"
            expect_refusal(harness, partial(host.create, op, fields), message)


def test_a_list_is_no_attribute(host: Any, harness: Any) -> None:
    window, merge = harness.parser_fields(MLERP)
    pair = dataclasses.replace(window, length=2, data=np.array([3, 4], np.int32).tobytes())
    message = "FmmTokenPrune: attribute window holds 2 values, expected one int"
    expect_refusal(harness, lambda: host.create("FmmTokenPrune", [pair, merge]), message)


def test_integers_of_any_width_and_texts_without_zero_byte(host: Any, harness: Any) -> None:
    _, merge = harness.parser_fields(MLERP)
    short = dataclasses.replace(merge, length=5, data=b"mlerp")
    for field_type, dtype in ((3, np.int8), (4, np.int16), (INT32, np.int32), (INT64, np.int64)):
        window = harness.Field("window", field_type, 1, np.array([3], dtype).tobytes())
        plugin = host.create("FmmTokenPrune", [window, short])
        assert plugin.fields()[1:] == [
            harness.Field("window", INT64, 1, np.int64(3).tobytes()),
            harness.Field("merge", CHAR, 6, b"mlerp\0"),
        ]
        plugin.destroy()


def test_engines_of_another_version(host: Any, harness: Any) -> None:
    plugin = host.create("FmmTokenPrune", harness.parser_fields(MLERP))
    version, *attributes = plugin.fields()
    plugin.destroy()
    other = dataclasses.replace(version, data=np.int64(2).tobytes())
    message = (
        "FmmTokenPrune: the engine was built for version 2 of the operator, this library has version 1; "
        "build the engine again"
    )
    expect_refusal(harness, lambda: host.create("FmmTokenPrune", [other, *attributes], RUNTIME), message)
    message = "FmmTokenPrune: the engine names no version of the operator; it was not built with this plugin"
    expect_refusal(harness, lambda: host.create("FmmTokenPrune", attributes, RUNTIME), message)
    host.create("FmmTokenPrune", [version, *attributes], RUNTIME).destroy()


def test_number_and_rank_of_inputs(host: Any, harness: Any) -> None:
    """Refused as soon as the node is in the network."""
    inputs = halves(prune_inputs(H=32))
    plugin = host.create("FmmTokenPrune", harness.parser_fields(MLERP))
    profiles = [harness.profile_of(array) for array in inputs.values()]
    failed = "harness: getOutputShapes returned -1"
    message = "FmmTokenPrune: 10 inputs, expected with these attributes are 11"
    expect_refusal(harness, lambda: plugin.infer(profiles[:-1]), message, failed)
    flat = dataclasses.replace(profiles[2], dims=profiles[2].dims[:1])
    message = "FmmTokenPrune: routing_probs has rank 1, expected rank 2: [V, E]"
    expect_refusal(harness, lambda: plugin.infer([*profiles[:2], flat, *profiles[3:]]), message, failed)
    outputs = plugin.infer(profiles)
    assert not plugin.supports([*profiles, profiles[-1]], outputs, 0)
    message = "FmmTokenPrune: 12 inputs, expected with these attributes are 11"
    assert host.messages() == [f"{ERROR} {message} (node node)"]
    plugin.destroy()


# Operator, input, its type, message. The other tensors of type F are float16.
WRONG_TYPES: list[tuple[str, str, Any, str]] = [
    ("FmmSparseMoE", "hidden_states", np.float32, "hidden_states is float, expected float16 or bfloat16 on CUDA"),
    (
        "FmmSparseMoE",
        "hidden_states",
        np.int8,
        "hidden_states is int8, expected float or float16 or bfloat16",
    ),
    ("FmmSparseMoE", "router_logits", np.float16, "router_logits is float16, expected float"),
    ("FmmSparseMoE", "visual_index", np.int64, "TensorRT data type 8, expected float, half, bfloat16, int8 or int32"),
    (
        "FmmSparseMoE",
        "gate_up",
        ml_dtypes.bfloat16,
        "gate_up is bfloat16, expected float16 with weight_format float on CUDA",
    ),
    ("FmmSparseMoE", "gate_up", np.int8, "gate_up is int8, expected float16 with weight_format float on CUDA"),
    ("FmmSparseMoE", "down", np.float32, "down is float, expected float16 as the other tensors of type W"),
    (
        "FmmTokenPrune",
        "residual",
        ml_dtypes.bfloat16,
        "residual is bfloat16, expected float16 as the other tensors of type F",
    ),
    ("FmmTokenPrune", "keep_slots", np.int32, "keep_slots is int32, expected int8"),
]


@pytest.mark.parametrize(("op", "name", "dtype", "message"), WRONG_TYPES)
def test_types(host: Any, harness: Any, op: str, name: str, dtype: Any, message: str) -> None:
    """The builder finds no format for the tensor, after the message."""
    is_moe = op == "FmmSparseMoE"
    inputs = halves(moe_inputs(H=32, I=48) if is_moe else prune_inputs(H=32))
    plugin = host.create(op, harness.parser_fields(moe_attributes() if is_moe else MLERP))
    profiles = [harness.profile_of(array) for array in inputs.values()]
    outputs = plugin.infer(profiles)
    position = list(inputs).index(name)
    wrong = [*profiles]
    wrong[position] = dataclasses.replace(profiles[position], dtype=np.dtype(dtype))
    assert all(plugin.supports(wrong, outputs, i) for i in range(position))
    assert host.messages() == []
    assert not plugin.supports(wrong, outputs, position)
    text = message if message.startswith("TensorRT") else f"{op}: {message}"
    assert host.messages() == [f"{ERROR} {text} (node node)"]
    plugin.destroy()


def test_types_of_a_profile(host: Any, harness: Any) -> None:
    inputs = halves(moe_inputs(H=32, I=48))
    plugin = host.create("FmmSparseMoE", harness.parser_fields(moe_attributes()))
    outputs = plugin.infer([harness.profile_of(array) for array in inputs.values()])
    mixed = {name: inputs[name].astype(ml_dtypes.bfloat16) for name in ("gate_up", "down")}
    profiles = [harness.profile_of(array) for array in (inputs | mixed).values()]
    message = "FmmSparseMoE: gate_up is bfloat16, expected float16 with weight_format float on CUDA"
    failed = "harness: configurePlugin returned -1"
    expect_refusal(harness, lambda: plugin.configure(profiles, outputs), message, failed)
    plugin.destroy()


# Operator, changes of the inputs' sizes, message. T 17, E 16, H 32, I 48, top_k 6; T 60, V 44, K 20, M 3.
WRONG_SIZES: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("FmmSparseMoE", {"router_logits": (16, 16)}, "router_logits is [16, 16], expected [T, E] = [17, E]"),
    ("FmmSparseMoE", {"down": (16, 32, 40)}, "down is [16, 32, 40], expected [E, H, I/p] = [16, 32, 48]"),
    ("FmmSparseMoE", {"visual_top_k": (0,)}, "visual_top_k is [0], expected [1] = [1]"),
    (
        "FmmSparseMoE",
        {"hidden_states": (17, 0), "gate_up": (16, 96, 0), "down": (16, 0, 48)},
        "H is 0, expected 1 to 262144 (hidden_states is [17, 0])",
    ),
    (
        "FmmSparseMoE",
        {"gate_up": (16, 0, 32), "down": (16, 32, 0)},
        "I is 0, expected 1 to 262144 (gate_up is [16, 0, 32])",
    ),
    (
        "FmmSparseMoE",
        {"hidden_states": (0, 1 << 40), "router_logits": (0, 16)},
        "H is 1099511627776, expected 1 to 262144 (hidden_states is [0, 1099511627776])",
    ),
    ("FmmSparseMoE", {"visual_index": (18,)}, "V is 18, expected at most T = 17"),
    (
        "FmmSparseMoE",
        {"router_logits": (17, 4), "correction_bias": (4,), "gate_up": (4, 96, 32), "down": (4, 32, 48)},
        "top_k is 6, expected at most E = 4",
    ),
    ("FmmTokenPrune", {"routing_probs": (44, 0)}, "E is 0, expected 1 to 4096 (routing_probs is [44, 0])"),
    (
        "FmmTokenPrune",
        {"hidden_states": (60, 0), "residual": (60, 0)},
        "H is 0, expected 1 to 262144 (hidden_states is [60, 0])",
    ),
    ("FmmTokenPrune", {"hidden_states": (43, 32), "residual": (43, 32)}, "V is 44, expected at most T = 43"),
    ("FmmTokenPrune", {"attention": (43,)}, "attention is [43], expected [V] = [44]"),
    ("FmmTokenPrune", {"keep_slots": (45,)}, "45 keep slots for 44 visual tokens; at most 44 can be kept"),
    ("FmmTokenPrune", {"merge_slots": (13,)}, "13 merge slots, at most 12"),
    ("FmmTokenPrune", {"keep_offsets": (3,)}, "keep_offsets is [3], expected [B+1] = [2]"),
    (
        "FmmTokenPrune",
        {"visual_offsets": (1,), "keep_offsets": (1,), "merge_offsets": (1,)},
        "B is 0, expected 1 to 65536 (visual_offsets is [1])",
    ),
]


@pytest.mark.parametrize(("op", "shapes", "message"), WRONG_SIZES)
def test_sizes(host: Any, harness: Any, op: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    """Refused for the profile that the engine is built for, and for a request."""
    is_moe = op == "FmmSparseMoE"
    inputs = halves(moe_inputs(H=32, I=48) if is_moe else prune_inputs(H=32))
    plugin = host.create(op, harness.parser_fields(moe_attributes() if is_moe else MLERP))
    outputs = plugin.infer([harness.profile_of(array) for array in inputs.values()])
    arrays = [np.zeros(shapes.get(name, array.shape), array.dtype) for name, array in inputs.items()]
    profiles = [harness.profile_of(array) for array in arrays]
    text = f"{op}: {message}"
    expect_refusal(harness, lambda: plugin.configure(profiles, outputs), text, "harness: configurePlugin returned -1")
    expect_refusal(harness, lambda: plugin.run(arrays, outputs, 1 << 16), text, "harness: onShapeChange returned -1")
    plugin.destroy()


def test_the_greatest_sizes_of_a_profile(host: Any, harness: Any) -> None:
    """Refused when the engine is built, before memory for them is counted."""
    inputs = halves(prune_inputs(H=32))
    plugin = host.create("FmmTokenPrune", harness.parser_fields(MLERP))
    first, *others = (harness.profile_of(array) for array in inputs.values())
    outputs = plugin.infer([first, *others])
    wide = dataclasses.replace(first, dims=((1, 60, 1 << 40), first.dims[1]))
    text = f"FmmTokenPrune: T is {1 << 40}, expected 0 to 16777216 (hidden_states is [{1 << 40}, 32])"
    failed = "harness: configurePlugin returned -1"
    expect_refusal(harness, lambda: plugin.configure([wide, *others], outputs), text, failed)
    plugin.destroy()


def test_what_only_the_kernel_refuses(host: Any, harness: Any) -> None:
    """When the engine is built, not when it runs."""
    inputs = list(halves(moe_inputs(H=24, I=48)).values())
    plugin = host.create("FmmSparseMoE", harness.parser_fields(moe_attributes()))
    profiles = [harness.profile_of(array) for array in inputs]
    outputs = plugin.infer(profiles)
    message, failed = "FmmSparseMoE: H is 24, expected a multiple of 16 on CUDA", "harness: configurePlugin returned -1"
    expect_refusal(harness, lambda: plugin.configure(profiles, outputs), message, failed)
    with pytest.raises(harness.Refused, match=re.escape(message)):
        plugin.run(inputs, outputs, 1 << 20)
    plugin.destroy()


def test_without_a_logger_messages_go_to_stderr(host: Any, harness: Any, capfd: pytest.CaptureFixture[str]) -> None:
    attributes = {**MLERP, "window": -1}
    host.set_logger(harness.NO_LOGGER)
    try:
        with pytest.raises(harness.Refused):
            host.create("FmmTokenPrune", harness.parser_fields(attributes))
    finally:
        host.set_logger(harness.BY_FINDER)
    assert host.messages() == []
    line = "fastmmoe: FmmTokenPrune: attribute window is -1, expected 1 to 64 (node node)\n"
    assert capfd.readouterr().err == line


def test_a_finder_that_knows_no_logger(host: Any, harness: Any) -> None:
    """TensorRT's finder knows those of engines that carry the plugin; of all else getLogger does."""
    attributes = {**MLERP, "window": -1}
    host.set_logger(harness.BY_FUNCTION)
    try:
        message = "FmmTokenPrune: attribute window is -1, expected 1 to 64"
        fields = harness.parser_fields(attributes)
        expect_refusal(harness, lambda: host.create("FmmTokenPrune", fields), message)
    finally:
        host.set_logger(harness.BY_FINDER)
