# SPDX-License-Identifier: Apache-2.0
"""The schemas: models of one node pass the checker and strict shape inference, broken ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx.checker import ValidationError
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceError

from fastmmoe.exporter.ops import (
    ATTENTION,
    DOMAIN,
    LINEAR,
    OPS,
    ROTARY,
    SPARSE_MOE,
    TOKEN_PRUNE,
    VISION_ATTENTION,
    OpSpec,
)
from fastmmoe.exporter.ops.schema import conditional_places, register_schemas
from tests.support.linear_cases import logical_attributes
from tests.support.operator_bodies import body_model
from tests.support.operators import (
    moe_attributes,
)

ATTRIBUTES: dict[str, dict[str, Any]] = {
    SPARSE_MOE.name: moe_attributes(expert_bias=1),
    TOKEN_PRUNE.name: {"window": 3, "merge": "mlerp"},
    ATTENTION.name: {
        "window": 128,
        "value_width": 0,
        "scale": 0.125,
        "has_sinks": 0,
        "writes_position_ids": 0,
        "has_lse": 1,
    },
    VISION_ATTENTION.name: {"scale": 0.125, "compute": "bfloat16"},
    LINEAR.name: logical_attributes(5, has_bias=True),
    ROTARY.name: {"has_norm": 1, "epsilon": 1e-6},
}
TYPES = {"F": "float16", "W": "bfloat16", "S": "bfloat16"}


@pytest.fixture(autouse=True)
def registered() -> None:
    register_schemas()
    register_schemas()


def make(spec: OpSpec, **keywords: Any) -> onnx.ModelProto:
    """A model of one node whose dimensions are the contract's letters; see `body_model`."""
    return body_model(spec, ATTRIBUTES[spec.name], TYPES, **keywords)


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_schema_says_what_the_contract_says(spec: OpSpec) -> None:
    schema = onnx.defs.get_schema(spec.name, DOMAIN)
    assert schema.since_version == spec.version
    variables = dict(spec.type_variables)
    for declared, tensors, place in (
        (schema.inputs, spec.inputs, "conditional"),
        (schema.outputs, spec.outputs, "conditional_output"),
    ):
        always = [t for t in tensors if not t.is_conditional]
        assert [p.name for p in declared] == [*(t.name for t in always), *conditional_places(tensors, place)]
        assert all(p.option == OpSchema.FormalParameterOption.Optional for p in declared[len(always) :])
        assert len(declared) == len(tensors)
        types = [spec.type_variables.get(t.types[0], t.types) for t in tensors if t.is_conditional]
        variables |= dict.fromkeys(conditional_places(tensors, place), tuple(t for group in types for t in group))
    assert schema.min_input == sum(not t.is_conditional for t in spec.inputs)
    assert set(schema.attributes) == {a.name for a in spec.attributes}
    assert all(a.required for a in schema.attributes.values())
    constraints = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    assert constraints == {v: {f"tensor({t})" for t in types} for v, types in variables.items()}


@pytest.mark.parametrize("with_function", [False, True])
@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_one_node_models_pass_the_checker(spec: OpSpec, with_function: bool) -> None:
    onnx.checker.check_model(make(spec, with_function=with_function), full_check=True)


@pytest.mark.parametrize("with_function", [False, True])
def test_inference_knows_types_and_dimensions(with_function: bool) -> None:
    expected: dict[str, list[tuple[str, list[Any]]]] = {
        SPARSE_MOE.name: [("FLOAT16", ["T", "H"])],
        TOKEN_PRUNE.name: [("FLOAT16", [None, "H"])] * 2 + [("INT32", [None]), ("INT32", ["K"])],
        ATTENTION.name: [
            ("FLOAT16", ["T", "N", "W"]),
            ("BFLOAT16", ["B", "K", "C", "D"]),
            ("BFLOAT16", ["B", "K", "C", "W"]),
            ("FLOAT", ["T", "N"]),
        ],
        VISION_ATTENTION.name: [("FLOAT16", ["B", "T", "N", "D"])],
        LINEAR.name: [("FLOAT16", ["T", 5])],
        ROTARY.name: [("FLOAT", ["T", "N", "2P"])],
    }
    for spec in OPS:
        model = make(spec, with_function=with_function)
        for output in model.graph.output:
            output.ClearField("type")
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        for output, (element_type, shape) in zip(inferred.graph.output, expected[spec.name], strict=True):
            found = output.type.tensor_type
            assert onnx.TensorProto.DataType.Name(found.elem_type) == element_type
            assert len(found.shape.dim) == len(shape)
            for dimension, name in zip(found.shape.dim, shape, strict=True):
                # inference names an unknown dimension unk__n
                assert (dimension.dim_param or dimension.dim_value) == name or (
                    name is None and dimension.dim_param.startswith("unk__")
                )


def test_static_sizes_win_over_symbols() -> None:
    model = make(TOKEN_PRUNE, with_function=False)
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 64
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="residual_out"))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 64


def rename_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].name = "no_such_attribute"


def drop_attribute(model: onnx.ModelProto) -> None:
    del model.graph.node[0].attribute[0]


def change_attribute_type(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].attribute[0].name
    model.graph.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute(name, [1.5]))


def change_attribute_value(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].attribute[0].name
    model.graph.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute(name, 1 << 40))


def drop_last_input(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[-1]


def drop_most_inputs(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[4:]


def add_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.append(model.graph.node[0].input[0])


def change_input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def change_output_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def drop_dimension(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[1]


def contradict_dimension(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 6


def exceed_dimension(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 20


def test_inference_alone_refuses_a_missing_attribute() -> None:
    model = make(TOKEN_PRUNE, with_function=False)
    drop_attribute(model)
    with pytest.raises(InferenceError, match=r"attributes \['merge'\], expected exactly \['merge', 'window'\]"):
        onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("spec", (SPARSE_MOE, TOKEN_PRUNE, ATTENTION), ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename_attribute, "Unrecognized attribute: no_such_attribute"),
        (drop_attribute, "Required attribute '{attribute}' is missing"),
        (change_attribute_type, "Mismatched attribute type"),
        (change_attribute_value, "attribute {attribute} is 1099511627776, expected [01] to"),
        (
            drop_last_input,
            "has input size 10 not in range|[89] inputs, expected with these attributes are (9|10): ",
        ),
        (drop_most_inputs, "has input size 4 not in range"),
        (add_input, "not in range|1[01] inputs, expected with these attributes are (9|10): "),
        (change_input_type, r"is of type double, expected float or float16"),
        (change_output_type, "Inferred elem type differs"),
        (drop_dimension, r"has shape \['T'.*\], expected the [23] dimensions \[T, [HN]"),
        (contradict_dimension, "has T = 6, an input before it has T = 5"),
        (exceed_dimension, r"[HN] is 1048576, expected 1 to \d+ \(input (hidden_states|query)\)"),
    ],
)
def test_the_checker_refuses(spec: OpSpec, spoil: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = make(spec, with_function=False)
    spoil(model)
    with pytest.raises((ValidationError, InferenceError), match=message.format(attribute=spec.attributes[0].name)):
        onnx.checker.check_model(model, full_check=True)
