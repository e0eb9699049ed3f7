# SPDX-License-Identifier: Apache-2.0
"""Engines of the double: what they compute, against the operators' references."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastmmoe.exporter.ops import (
    ATTENTION,
    LINEAR,
    SPARSE_MOE,
    attention_reference,
    linear_reference,
    sparse_moe_reference,
)
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import SMALL, Case, make_inputs
from tests.support.double import Double
from tests.support.double_engine import Runner, build, operator_model
from tests.support.linear_cases import IN_ROWS, linear_case
from tests.support.operators import assert_close, moe_attributes, moe_inputs

WEIGHTS = ("gate_up", "down")
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
FORMATS = [("float", False), ("int8", False), ("int4", False), ("int4", True)]


@pytest.fixture
def plugin(fake_plugin: Callable[..., Path]) -> Path:
    return fake_plugin(architecture=platform.machine())


def experts(weight_format: str, zero_points: bool, dtype: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inputs and attributes of FmmSparseMoE in a type, experts in a format."""
    group = 0 if weight_format == "float" else 32
    inputs = moe_inputs(H=64, I=32, weight_dtype=np.float32)
    inputs["hidden_states"] = inputs["hidden_states"].astype(dtype)
    for name in WEIGHTS:
        if weight_format == "float":
            inputs[name] = inputs[name].astype(dtype)
        else:
            packed = quantise(inputs[name], weight_format, group, zero_points=zero_points)
            inputs |= {name: packed.values, f"{name}_scale": packed.scale}
            inputs |= {} if packed.zero is None else {f"{name}_zero": packed.zero}
    attributes = moe_attributes(weight_format=weight_format, group_size=group, zero_points=int(zero_points))
    return {t.name: inputs[t.name] for t in SPARSE_MOE.inputs_for(attributes)}, attributes


def moe_engine(
    double: Double,
    folder: Path,
    plugin: Path,
    inputs: dict[str, Array],
    attributes: dict[str, Any],
    are_inputs: bool,
) -> Runner:
    constant = () if are_inputs else tuple(name for name in inputs if name.startswith(WEIGHTS))
    model_inputs = {"hidden_states": "T", "router_logits": "T", "visual_index": "V"}
    hidden = inputs["hidden_states"]
    outputs: Any = {"output": (hidden.dtype, ("T", hidden.shape[1]))}
    model = operator_model(
        SPARSE_MOE.name, inputs, attributes, dynamic=model_inputs, constant=constant, outputs=outputs
    )
    modules = double.modules()
    return Runner(modules, build(modules, model, folder, plugin))


@pytest.mark.parametrize("are_inputs", [False, True], ids=["constants", "inputs"])
@pytest.mark.parametrize(("weight_format", "zero_points"), FORMATS)
@pytest.mark.parametrize("name", TYPES)
def test_sparse_moe(
    double: Double, tmp_path: Path, plugin: Path, name: str, weight_format: str, zero_points: bool, are_inputs: bool
) -> None:
    inputs, attributes = experts(weight_format, zero_points, TYPES[name])
    runner = moe_engine(double, tmp_path, plugin, inputs, attributes, are_inputs)
    runner.set(inputs)
    expected = sparse_moe_reference(**inputs, **attributes)
    for _ in range(2):
        assert_close(runner.run({"output": TYPES[name]})["output"], expected)


def test_experts_are_read_again_once_they_are_written(double: Double, tmp_path: Path, plugin: Path) -> None:
    inputs, attributes = experts("int4", False, np.float16)
    runner = moe_engine(double, tmp_path, plugin, inputs, attributes, are_inputs=True)
    runner.set(inputs)
    before = runner.run({"output": np.float16})["output"]
    inputs["down_scale"] = 2 * inputs["down_scale"]
    runner.upload(inputs["down_scale"], runner.context.get_tensor_address("down_scale"))
    after = runner.run({"output": np.float16})["output"]
    assert_close(after, sparse_moe_reference(**inputs, **attributes))
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("packing", [p for p in IN_ROWS if p.group_size == 32], ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_linear_layers_keep_their_integers(
    double: Double, tmp_path: Path, plugin: Path, name: str, packing: LinearPacking
) -> None:
    dtype = TYPES[name]
    inputs, attributes = linear_case(packing, "words", dtype=dtype, activation="gelu", has_residual=True)
    model = operator_model(
        LINEAR.name,
        inputs,
        attributes,
        dynamic={"x": "T", "residual": "T"},
        constant=tuple(name for name in inputs if name not in ("x", "residual")),
        outputs={"y": (dtype, ("T", attributes["out_features"]))},
    )
    modules = double.modules()
    runner = Runner(modules, build(modules, model, tmp_path, plugin))
    runner.set({name: inputs[name] for name in ("x", "residual")})
    assert_close(runner.run({"y": dtype})["y"], linear_reference(inputs, attributes))


CASES = [case for case in SMALL if case.name in ("ragged, groups, lse", "decode", "window") or case.value_width]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_writes_its_caches_in_place(
    double: Double, tmp_path: Path, plugin: Path, case: Case, name: str
) -> None:
    inputs = make_inputs(case, 0, TYPES[name])
    wide = {n: a.astype(np.float32) if a.dtype == TYPES[name] else a for n, a in inputs.items()}
    expected = attention_reference(case.attributes, wide)
    tensors = ATTENTION.outputs_for(case.attributes)
    own_types = {"output": TYPES[name], "lse": np.float32}
    types = {t.name: inputs[t.alias].dtype if t.alias else own_types[t.name] for t in tensors}
    shapes = {t.name: a.shape if t.alias else ("T", *a.shape[1:]) for t, a in zip(tensors, expected, strict=True)}
    model = operator_model(
        ATTENTION.name,
        inputs,
        case.attributes,
        dynamic=dict.fromkeys(("query", "key", "value", "sequence_ids", "position_ids"), "T"),
        outputs={n: (types[n], shapes[n]) for n in types},
    )
    modules = double.modules()
    runner = Runner(modules, build(modules, model, tmp_path, plugin))
    assert {n: runner.engine.get_aliased_input_tensor(n) for n in types} == {t.name: t.alias for t in tensors}
    runner.set(inputs)
    found = runner.run(types)
    for tensor, right in zip(tensors, expected, strict=True):
        if right.dtype == np.int32:
            np.testing.assert_array_equal(found[tensor.name], right)
            continue
        # Rows of caches that are not in use hold NaN.
        is_known = np.isfinite(right)
        ours, right = (np.where(is_known, a, 0).astype(types[tensor.name]) for a in (found[tensor.name], right))
        assert_close(ours, right)


def test_16_bit_types_within_a_graph(double: Double, tmp_path: Path, plugin: Path) -> None:
    """Casts, constants and branches of 16-bit types: the twin has none, the result crosses the border rounded."""
    half, wide = TensorProto.FLOAT16, TensorProto.FLOAT
    branch = [
        helper.make_graph(
            [
                helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([number], np.float16))),
                helper.make_node("Mul", ["h", "c"], ["m"]),
            ],
            f"times {number}",
            [],
            [helper.make_tensor_value_info("m", half, ["T"])],
        )
        for number in (2, 3)
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=half),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node(
            "ConstantOfShape", ["s"], ["ones"], value=numpy_helper.from_array(np.ones(1, ml_dtypes.bfloat16))
        ),
        helper.make_node("If", ["is_two"], ["m"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Cast", ["m"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Add", ["b", "ones"], ["y"]),
        helper.make_node("Add", ["m", "w"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [
            helper.make_tensor_value_info("x", wide, ["T"]),
            helper.make_tensor_value_info("is_two", TensorProto.BOOL, [1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["T"]),
            helper.make_tensor_value_info("z", half, ["T"]),
        ],
        [numpy_helper.from_array(np.array([0.5], np.float16), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    modules = double.modules()
    runner = Runner(modules, build(modules, model, tmp_path, plugin))
    x = np.array([1.0, 70000.0, np.nan, -3.1415927, 1e-9], np.float32)
    runner.set({"x": x, "is_two": np.array([False])})
    found = runner.run({"y": ml_dtypes.bfloat16, "z": np.float16})
    rounded = (3 * x + 1).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found["y"].astype(np.float32), rounded.astype(np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found["z"], (3 * x + np.float32(0.5)).astype(np.float16))


def test_bfloat16_crosses_the_border_as_rounded_to_nearest_even(double: Double) -> None:
    double.modules()
    from device_double.twin import from_device, to_device

    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, np.uint64).astype(np.uint32)
    ties = np.arange(0, 1 << 31, 1 << 18, dtype=np.uint32) | np.uint32(0x8000)
    numbers = np.concatenate([bits, ties, ties ^ np.uint32(0x80000000)]).view(np.float32)
    numbers = numbers[~np.isnan(numbers)]
    raw = to_device(numbers, TensorProto.BFLOAT16)
    expected = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(from_device(raw, TensorProto.BFLOAT16, numbers.shape), expected)


def test_outputs_and_scratch_memory_are_poison_before_a_run(double: Double, tmp_path: Path, plugin: Path) -> None:
    """Seen where the run fails: the operator refuses a row that there is not."""
    inputs, attributes = experts("float", False, np.float16)
    runner = moe_engine(double, tmp_path, plugin, inputs, attributes, are_inputs=True)
    inputs["visual_index"][-1] = 10_000
    runner.set(inputs)
    scratch = runner.cudart.cudaMalloc(runner.engine.device_memory_size_v2)[1]
    user_managed = runner.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    runner.context, first = runner.engine.create_execution_context(user_managed), runner.context
    runner.context.set_optimization_profile_async(0, runner.stream)
    runner.context.set_device_memory(scratch, runner.engine.device_memory_size_v2)
    for name in (*runner.inputs, *runner.outputs):
        runner.context.set_tensor_address(name, first.get_tensor_address(name))
    for name in runner.inputs:
        runner.context.set_input_shape(name, inputs[name].shape)
    output = runner.context.get_tensor_address("output")
    for address in (output, scratch):
        runner.upload(np.zeros(256, np.uint8), address)
    with pytest.raises(double.control().Misuse, match=r"run-failed: .*visual_index"):
        runner.run({"output": np.float16})
    for address in (output, scratch):
        assert set(runner.download(address, (256,), np.uint8)) == {0xFF}


def test_no_op_engines_check_and_leave_zeros(double: Double, tmp_path: Path, plugin: Path) -> None:
    inputs, attributes = experts("float", False, np.float16)
    runner = moe_engine(double, tmp_path, plugin, inputs, attributes, are_inputs=True)
    runner.set(inputs)
    control = double.control()
    control.no_op()
    assert not runner.run({"output": np.float16})["output"].any()
    assert control.counters().enqueues == 1
    runner.context.set_tensor_address("output", 0)
    with pytest.raises(control.Misuse, match=r"unset-address: .* output"):
        runner.context.execute_async_v3(runner.stream)
