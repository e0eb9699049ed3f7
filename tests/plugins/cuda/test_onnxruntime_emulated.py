# SPDX-License-Identifier: Apache-2.0
"""The operators for ONNX Runtime's CUDA provider, with emulated kernels in sessions of the CPU provider."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from fastmmoe.exporter.ops import (
    ATTENTION,
    DOMAIN,
    OPS,
    OpSpec,
    linear_reference,
    sparse_moe_reference,
    token_prune_reference,
)
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import OTHER_WIDTHS, SMALL, make_inputs
from tests.support.attention_checks import check_outputs
from tests.support.emulated_ort import build_emulated_ort, fetch_ort_headers
from tests.support.linear_cases import IN_ROWS, linear_case, packing_id
from tests.support.native_node import NativeNode, to_array, to_ort_value
from tests.support.operators import moe_attributes, moe_inputs, prune_inputs

# One worker builds the library, not each.
pytestmark = pytest.mark.xdist_group("onnxruntime_emulated")


SPECS = {spec.name: spec for spec in OPS}
ONNX_TYPES = {
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float16): onnx.TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): onnx.TensorProto.BFLOAT16,
    np.dtype(np.int8): onnx.TensorProto.INT8,
    np.dtype(np.int32): onnx.TensorProto.INT32,
}
# Of the output's greatest value.
TOLERANCES = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3, np.dtype(ml_dtypes.bfloat16): 2e-2}


@pytest.fixture(scope="session")
def ort_headers() -> Path:
    """Folder of ONNX Runtime's headers."""
    return fetch_ort_headers()


@pytest.fixture(scope="session")
def library(ort_headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the operators with the emulator."""
    return build_emulated_ort(tmp_path_factory.mktemp("ort_cuda"), ort_headers)


def one_node_model(spec: OpSpec, inputs: dict[str, Array], attributes: dict[str, Any]) -> bytes:
    """A model of one node. NumPy has no bfloat16 to feed: inputs and outputs of 16 bits are float outside."""
    graph_inputs, outputs, nodes = [], [], []
    types = {}
    for tensor, array in zip(spec.inputs_for(attributes), inputs.values(), strict=True):
        types[tensor.types[0]] = element_type = ONNX_TYPES[array.dtype]
        outside = onnx.TensorProto.FLOAT if is_cast(array) else element_type
        graph_inputs.append(onnx.helper.make_tensor_value_info(f"{tensor.name}_fed", outside, None))
        nodes.append(onnx.helper.make_node("Cast", [f"{tensor.name}_fed"], [tensor.name], to=element_type))
    names = [t.name for t in spec.outputs]
    nodes.append(onnx.helper.make_node(spec.name, list(inputs), names, domain=DOMAIN, **attributes))
    for tensor in spec.outputs:
        to = onnx.TensorProto.FLOAT if tensor.types[0] in types else onnx.TensorProto.INT32
        nodes.append(onnx.helper.make_node("Cast", [tensor.name], [f"{tensor.name}_out"], to=to))
        outputs.append(onnx.helper.make_tensor_value_info(f"{tensor.name}_out", to, None))
    graph = onnx.helper.make_graph(nodes, "one_node", graph_inputs, outputs)
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, spec.version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def is_cast(array: Array) -> bool:
    return array.dtype in (np.float16, ml_dtypes.bfloat16)


def run(library: Path, op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    model = one_node_model(SPECS[op], inputs, attributes)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {f"{name}_fed": a.astype(np.float32) if is_cast(a) else a for name, a in inputs.items()}
    return session.run(None, feeds)


def moe_case(
    dtype: Any, weight_format: str, zero_points: bool, bias: int, T: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inputs in the node's order, and attributes."""
    inputs = moe_inputs(T=T, H=64, I=96, expert_bias=bool(bias))
    attributes = moe_attributes(
        expert_bias=bias,
        weight_format=weight_format,
        group_size=0 if weight_format == "float" else 64,
        zero_points=int(zero_points),
    )
    if weight_format != "float":
        for name in ("gate_up", "down"):
            packed = quantise(inputs[name], weight_format, 64, zero_points=zero_points)
            inputs |= {name: packed.values, f"{name}_scale": packed.scale}
            if packed.zero is not None:
                inputs[f"{name}_zero"] = packed.zero
    for name in ("hidden_states", "gate_up_bias", "down_bias"):
        if name in inputs:
            inputs[name] = inputs[name].astype(dtype)
    if weight_format == "float":
        inputs |= {name: inputs[name].astype(dtype) for name in ("gate_up", "down")}
    order = [t.name for t in SPECS["FmmSparseMoE"].inputs_for(attributes)]
    return {name: inputs[name] for name in order}, attributes


MOE_VARIANTS = [("float", False), *itertools.product(("int8", "int4"), (False, True)), ("fp8", False)]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("weight_format", "zero_points"), MOE_VARIANTS)
@pytest.mark.parametrize(("T", "bias"), [(5, 1), (20, 0)])
def test_sparse_moe(library: Path, dtype: Any, weight_format: str, zero_points: bool, T: int, bias: int) -> None:
    inputs, attributes = moe_case(dtype, weight_format, zero_points, bias, T)
    (output,) = run(library, "FmmSparseMoE", inputs, attributes)
    expected = sparse_moe_reference(**inputs, **attributes).astype(np.float32)
    atol = TOLERANCES[np.dtype(dtype)] * np.abs(expected).max()
    np.testing.assert_allclose(output, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("K", "M"), [(20, 3), (44, 0), (0, 0)])
def test_token_prune(library: Path, dtype: Any, K: int, M: int) -> None:
    check_prune(library, prune_inputs(K=K, M=M, H=16), {"window": 3, "merge": "mlerp"}, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_token_prune_of_several_sequences(
    library: Path, packed_prune_case: tuple[dict[str, Array], dict[str, Any]], dtype: Any
) -> None:
    check_prune(library, *packed_prune_case, dtype)


def check_prune(library: Path, inputs: dict[str, Array], attributes: dict[str, Any], dtype: Any) -> None:
    """Compare with the reference, the states in `dtype`."""
    inputs = inputs | {name: inputs[name].astype(dtype) for name in ("hidden_states", "residual")}
    outputs = run(library, "FmmTokenPrune", inputs, attributes)
    with np.errstate(invalid="ignore"):
        expected = token_prune_reference(**inputs, **attributes)
    for output, values in zip(outputs[:2], expected[:2], strict=True):
        atol = TOLERANCES[np.dtype(dtype)] * np.abs(values.astype(np.float32)).max()
        np.testing.assert_allclose(output, values.astype(np.float32), rtol=0, atol=atol)
    for output, values in zip(outputs[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(output, values)


ATTENTION_CASES = {case.name: case for case in SMALL}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["ragged, groups, lse", "window, decode", "sinks", "latent, decode"])
def test_attention(library: Path, name: str, dtype: Any) -> None:
    case = ATTENTION_CASES[name]
    inputs = make_inputs(case, dtype=dtype)
    check_outputs(case, inputs, NativeNode(ATTENTION.name, inputs, case.attributes, library=library)(inputs))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_attention_in_place(library: Path, dtype: Any) -> None:
    """A cache that is bound as input and output stays where it is."""
    case = ATTENTION_CASES["window, decode"]
    inputs = make_inputs(case, dtype=dtype)
    node = NativeNode(ATTENTION.name, inputs, case.attributes, library=library)
    binding = node.session.io_binding()
    values = {name: to_ort_value(array) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    outputs = ATTENTION.outputs_for(case.attributes)
    for output in outputs:
        if output.alias:
            binding.bind_ortvalue_output(output.name, values[output.alias])
        else:
            binding.bind_output(output.name)
    node.session.run_with_iobinding(binding)
    found = binding.get_outputs()
    assert all(v.data_ptr() == values[o.alias].data_ptr() for o, v in zip(outputs, found, strict=True) if o.alias)
    check_outputs(case, inputs, [to_array(value) for value in found])


def test_attention_that_the_kernels_do_not_take_is_refused(library: Path) -> None:
    case = OTHER_WIDTHS[1]
    inputs = make_inputs(case, dtype=np.float16)
    node = NativeNode(ATTENTION.name, inputs, case.attributes, library=library)
    with pytest.raises(InvalidArgument, match="FmmAttention: D is 20 and W is 12, expected multiples of 8 up to 128"):
        node(inputs)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("packing", [IN_ROWS[1], IN_ROWS[-1]], ids=packing_id)
@pytest.mark.parametrize("T", [0, 3, 40])
def test_linear(library: Path, packing: LinearPacking, dtype: Any, T: int) -> None:
    inputs, attributes = linear_case(packing, (T, 50, 160), activation="gelu", has_residual=True, dtype=dtype)
    (output,) = run(library, "FmmLinear", inputs, attributes)
    expected = linear_reference(inputs, attributes).astype(np.float32)
    atol = TOLERANCES[np.dtype(dtype)] * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(output, expected, rtol=0, atol=atol)


def test_linear_layers_that_the_kernels_do_not_take_are_refused(library: Path) -> None:
    inputs, attributes = linear_case(IN_ROWS[-1], (3, 50, 48), dtype=np.float16)
    with pytest.raises(InvalidArgument, match="FmmLinear: K is 48, expected a multiple of 32 with int4 weights"):
        run(library, "FmmLinear", inputs, attributes)
    inputs, attributes = linear_case(None, (3, 50, 48), weight_dtype=np.float16, dtype=np.float16)
    with pytest.raises(RuntimeException, match="FmmLinear: attribute weight_format is float, expected int8 or int4"):
        run(library, "FmmLinear", inputs, attributes)


def test_what_the_contract_does_not_allow_is_refused(library: Path) -> None:
    attributes = {"window": 3, "merge": "mlerp"}
    with pytest.raises(InvalidArgument, match="FmmTokenPrune: 45 keep slots for 44 visual tokens"):
        run(library, "FmmTokenPrune", prune_inputs(K=45), attributes)
    wrong = prune_inputs() | {"residual": np.zeros((60, 11), np.float32)}
    with pytest.raises(InvalidArgument, match=r"residual is \[60, 11\], expected \[T, H\] = \[60, 12\]"):
        run(library, "FmmTokenPrune", wrong, attributes)
