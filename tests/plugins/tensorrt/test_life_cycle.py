# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin through a plugin's whole life, its kernels run by the emulator, against the references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import ENGINE_OPS, sparse_moe_reference, token_prune_reference
from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.runtime.types import Array
from tests.support.operators import moe_attributes, moe_inputs, prune_inputs

# One worker builds the host, not each.
pytestmark = pytest.mark.xdist_group("tensorrt_host")

LifeCycle = Callable[..., list[Array]]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Of the output's greatest value.
TOLERANCES = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3, BFLOAT16: 2e-2}
HALVES = [np.dtype(np.float16), BFLOAT16]

FLOATS = ("hidden_states", "residual", "gate_up", "down", "gate_up_bias", "down_bias")
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}
BUILD, RUNTIME = 0, 1
CHW2 = 1  # nvinfer1::TensorFormat


def with_dtype(inputs: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """Tensors of type F, and floating-point weights, rounded to the type."""
    return {
        name: value.astype(dtype) if name in FLOATS and value.dtype == np.float32 else value
        for name, value in inputs.items()
    }


def check_values(output: Array, expected: Array) -> None:
    assert output.dtype == expected.dtype
    assert output.shape == expected.shape
    values = expected.astype(np.float32)
    atol = TOLERANCES[output.dtype] * np.abs(values).max(initial=0.0)
    np.testing.assert_allclose(output.astype(np.float32), values, rtol=0, atol=atol)


def check_moe(output: Array, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    check_values(output, sparse_moe_reference(**inputs, **attributes).astype(output.dtype))


def check_prune(outputs: list[Array], inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    expected = token_prune_reference(**inputs, **attributes)
    for output, values in zip(outputs[:2], expected[:2], strict=True):
        check_values(output, values)
    for output, indices in zip(outputs[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(output, indices, strict=True)


def test_creators_declare_what_the_exporter_writes(host: Any) -> None:
    types = {"int": 5, "float": 1, "string": 6}  # kINT32, kFLOAT32, kCHAR
    assert host.creators() == [
        ["fastmmoe", spec.name, "1", *(f"{a.name}:{types[a.kind]}" for a in spec.attributes)] for spec in ENGINE_OPS
    ]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("T", [0, 1, 17])
@pytest.mark.parametrize("expert_bias", [0, 1])
def test_sparse_moe(life_cycle: LifeCycle, dtype: Any, T: int, expert_bias: int) -> None:
    inputs = with_dtype(moe_inputs(T=T, H=32, I=48, expert_bias=bool(expert_bias)), dtype)
    attributes = moe_attributes(expert_bias=expert_bias)
    (output,) = life_cycle("FmmSparseMoE", inputs, attributes)
    check_moe(output, inputs, attributes)


def test_every_attribute_survives_the_engine(life_cycle: LifeCycle) -> None:
    """Each value differs from that of the other cases, so one that is lost between the phases changes the result."""
    attributes = moe_attributes(
        top_k=5,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        n_group=8,
        topk_group=3,
        norm_topk_prob=1,
        routed_scaling_factor=2.5,
        reduction_weights="none",
        activation="swiglu_oai",
        swiglu_limit=1.5,
        expert_bias=1,
    )
    inputs = with_dtype(moe_inputs(T=33, E=32, H=32, I=48, expert_bias=True), np.float16)
    (output,) = life_cycle("FmmSparseMoE", inputs, attributes)
    check_moe(output, inputs, attributes)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("weight_format", "group_size", "zero_points"),
    [("int8", 32, 0), ("int8", 32, 1), ("int4", 64, 0), ("int4", 64, 1), ("fp8", 32, 0)],
)
@pytest.mark.parametrize("T", [3, 17])
def test_packed_weights(
    life_cycle: LifeCycle, dtype: Any, weight_format: str, group_size: int, zero_points: int, T: int
) -> None:
    inputs = moe_inputs(T=T, H=64, I=96)
    for name in ("gate_up", "down"):
        weights = quantise(inputs[name], weight_format, group_size, zero_points=bool(zero_points))
        inputs |= {name: weights.values, f"{name}_scale": weights.scale}
        if weights.zero is not None:
            inputs[f"{name}_zero"] = weights.zero
    inputs = with_dtype(inputs, dtype)
    attributes = moe_attributes(weight_format=weight_format, group_size=group_size, zero_points=zero_points)
    (output,) = life_cycle("FmmSparseMoE", inputs, attributes)
    check_moe(output, inputs, attributes)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"K": 44, "M": 0},
        {"K": 0, "M": 0},
        {"T": 5, "K": 0, "M": 0, "visual": np.arange(0)},
        {"T": 0, "K": 0, "M": 0, "visual": np.arange(0)},
    ],
    ids=["prefill", "keeping all", "keeping none", "decode", "no tokens"],
)
def test_token_prune(life_cycle: LifeCycle, sizes: dict[str, Any], dtype: Any) -> None:
    inputs = with_dtype(prune_inputs(H=32, **sizes), dtype)
    outputs = life_cycle("FmmTokenPrune", inputs, MLERP)
    check_prune(outputs, inputs, MLERP)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_token_prune_of_several_sequences(
    life_cycle: LifeCycle, packed_prune_case: tuple[dict[str, Array], dict[str, Any]], dtype: Any
) -> None:
    inputs, attributes = with_dtype(packed_prune_case[0], dtype), packed_prune_case[1]
    check_prune(life_cycle("FmmTokenPrune", inputs, attributes), inputs, attributes)


def in_two(inputs: dict[str, Array]) -> dict[str, Array]:
    """The request of prune_inputs() as two sequences, its runs of visual tokens."""
    offsets = {"visual_offsets": [0, 30, 44], "keep_offsets": [0, 13, 20], "merge_offsets": [0, 2, 3]}
    return inputs | {name: np.array(values, np.int32) for name, values in offsets.items()}


def test_one_plugin_serves_many_shapes(host: Any, harness: Any) -> None:
    """One context, the workspace of its profile, requests of many sizes; each schedule gives the same bits."""
    cases = {
        "FmmSparseMoE": [
            (with_dtype(moe_inputs(T=T, H=32, I=48), np.float16), moe_attributes()) for T in (40, 1, 0, 17)
        ],
        "FmmTokenPrune": [
            (with_dtype(prune_inputs(H=32, T=T, K=K, M=M, visual=np.arange(3, 3 + V)), np.float16), MLERP)
            for T, V, K, M in ((60, 44, 20, 3), (9, 0, 0, 0), (30, 20, 20, 0), (50, 40, 0, 0))
        ]
        + [(with_dtype(in_two(prune_inputs(H=32)), np.float16), MLERP)],
    }
    for op, requests in cases.items():
        names = [t.name for t in harness.SPECS[op].inputs_for(requests[0][1])]
        profiles = harness.covering_profiles([[inputs[name] for name in names] for inputs, _ in requests])
        plugin = host.create(op, harness.parser_fields(requests[0][1]))
        workspace_bytes = plugin.configure(profiles, plugin.infer(profiles))
        context = plugin.attach()
        for inputs, attributes in requests:
            arrays = [inputs[name] for name in names]
            outputs = context.infer([harness.profile_of(array) for array in arrays])
            host.set_seed(0)
            results = context.run(arrays, outputs, workspace_bytes)
            host.set_seed(7)
            again = context.run(arrays, outputs, workspace_bytes)
            assert [a.tobytes() for a in again] == [a.tobytes() for a in results]
            if op == "FmmSparseMoE":
                check_moe(results[0], inputs, attributes)
            else:
                check_prune(results, inputs, attributes)
        context.destroy()
        plugin.destroy()
    assert host.messages() == []


def test_workspace_is_that_of_the_greatest_shape(host: Any, harness: Any) -> None:
    attributes = moe_attributes()
    plugin = host.create("FmmSparseMoE", harness.parser_fields(attributes))

    def workspace_bytes(*token_counts: int) -> int:
        requests = [list(with_dtype(moe_inputs(T=T, H=32, I=48), np.float16).values()) for T in token_counts]
        profiles = harness.covering_profiles(requests)
        return plugin.configure(profiles, plugin.infer(profiles))

    assert workspace_bytes(0) == 0
    assert 0 < workspace_bytes(1) < workspace_bytes(70)
    assert workspace_bytes(1, 70) == workspace_bytes(70)
    plugin.destroy()


def test_a_workspace_that_is_too_small_is_found(host: Any, harness: Any) -> None:
    """The guard zones work: the kernel uses its workspace to the last byte."""
    inputs = list(with_dtype(prune_inputs(H=32), np.float16).values())
    profiles = [harness.profile_of(array) for array in inputs]
    plugin = host.create("FmmTokenPrune", harness.parser_fields(MLERP))
    outputs = plugin.infer(profiles)
    workspace_bytes = plugin.configure(profiles, outputs)
    plugin.run(inputs, outputs, workspace_bytes)
    with pytest.raises(harness.Refused, match=f"written behind the {workspace_bytes - 1} bytes of the workspace"):
        plugin.run(inputs, outputs, workspace_bytes - 1)
    plugin.destroy()


def test_pruning_does_not_widen_the_range_of_tokens(host: Any, harness: Any) -> None:
    """TensorRT bounds T - V + K by the bounds of T, V and K alone, which must not give more than T or less than 0."""
    prefill = list(with_dtype(prune_inputs(H=32, T=60), np.float16).values())
    decode = list(with_dtype(prune_inputs(H=32, T=1, K=0, M=0, visual=np.arange(0)), np.float16).values())
    plugin = host.create("FmmTokenPrune", harness.parser_fields(MLERP))
    first = plugin.infer(harness.covering_profiles([prefill, decode]))
    assert [output.dims[0] for output in first] == [(0, 36, 60), (0, 36, 60), (0, 36, 60), (0, 20, 20)]
    plugin.destroy()


def test_only_linear_tensors(host: Any, harness: Any) -> None:
    inputs = with_dtype(moe_inputs(H=32, I=48), np.float16)
    plugin = host.create("FmmSparseMoE", harness.parser_fields(moe_attributes()))
    profiles = [harness.profile_of(array) for array in inputs.values()]
    outputs = plugin.infer(profiles)
    positions = range(len(profiles) + len(outputs))
    assert not any(plugin.supports(profiles, outputs, i, CHW2) for i in positions)
    assert host.messages() == [], "builders ask for other formats as a matter of course"
    plugin.destroy()


def test_engines_hold_each_attribute_and_the_version(host: Any, harness: Any) -> None:
    attributes = moe_attributes()
    plugin = host.create("FmmSparseMoE", harness.parser_fields(attributes))
    fields = {field.name: field for field in plugin.fields()}
    assert list(fields) == ["contract_version", *attributes]
    expected: dict[str, Any] = {"contract_version": 1, **attributes}
    for name, value in expected.items():
        field = fields[name]
        if isinstance(value, str):
            assert (field.type, field.data) == (harness.CHAR, value.encode() + b"\0")
        elif isinstance(value, int):
            assert (field.type, field.data) == (harness.INT64, np.int64(value).tobytes())
        else:
            assert (field.type, field.data) == (harness.FLOAT32, np.float32(value).tobytes())
    plugin.destroy()
