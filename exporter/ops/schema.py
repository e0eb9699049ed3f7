# SPDX-License-Identifier: Apache-2.0
"""ONNX schemas of the custom operators, made from their contracts: the checker and shape inference then know them."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceContext, InferenceError

from fastmmoe.exporter.ops import OPS
from fastmmoe.exporter.ops.contract import DOMAIN, Attribute, OpSpec, Tensor

_ATTRIBUTE_TYPES = {
    "int": OpSchema.AttrType.INT,
    "float": OpSchema.AttrType.FLOAT,
    "string": OpSchema.AttrType.STRING,
}


def register_schemas() -> None:
    """Register every operator of `fastmmoe.exporter.ops.OPS` with onnx; a second call does nothing.

    After it `onnx.checker` refuses nodes with missing inputs or wrong attributes, and `onnx.shape_inference` gives the
    outputs' element types and the dimensions that are dimensions of an input. T - V + K stays unknown.
    """
    for spec in OPS:
        if not onnx.defs.has(spec.name, DOMAIN):
            onnx.defs.register_schema(_schema(spec))


def _schema(spec: OpSpec) -> OpSchema:
    schema = OpSchema(
        spec.name,
        DOMAIN,
        spec.version,
        spec.doc,
        inputs=[_parameter(tensor) for tensor in spec.inputs],
        outputs=[_parameter(tensor) for tensor in spec.outputs],
        type_constraints=[
            (variable, [f"tensor({t})" for t in types], f"Type {variable}.")
            for variable, types in spec.type_variables.items()
        ],
        attributes=[_attribute(attribute) for attribute in spec.attributes],
    )
    schema.set_type_and_shape_inference_function(_inference(spec))
    return schema


def _parameter(tensor: Tensor) -> OpSchema.FormalParameter:
    options = OpSchema.FormalParameterOption
    return OpSchema.FormalParameter(
        tensor.name,
        _type_string(tensor),
        f"{tensor.doc} Shape [{', '.join(tensor.shape)}].",
        param_option=options.Single if tensor.only_if is None else options.Optional,
    )


def _type_string(tensor: Tensor) -> str:
    (element_type,) = tensor.types
    return element_type if _is_variable(tensor) else f"tensor({element_type})"


def _is_variable(tensor: Tensor) -> bool:
    return len(tensor.types[0]) == 1


def _attribute(attribute: Attribute) -> OpSchema.Attribute:
    return OpSchema.Attribute(attribute.name, _ATTRIBUTE_TYPES[attribute.kind], attribute.doc, required=True)


def _inference(spec: OpSpec) -> Callable[[InferenceContext], None]:
    """The inference function: check the node, bind types and dimensions by letter, write them to the outputs."""

    def infer(context: InferenceContext) -> None:
        _check_node(spec, context)
        types: dict[str, int] = {}
        dimensions: dict[str, onnx.TensorShapeProto.Dimension] = {}
        for i, tensor in enumerate(spec.inputs[: context.get_num_inputs()]):
            given = context.get_input_type(i)
            if given is None:
                continue
            types[tensor.types[0]] = given.tensor_type.elem_type
            if given.tensor_type.HasField("shape"):
                _bind(spec, tensor, given.tensor_type.shape, dimensions)
        for i, tensor in enumerate(spec.outputs):
            context.set_output_type(i, _output_type(tensor, types, dimensions))

    return infer


def _check_node(spec: OpSpec, context: InferenceContext) -> None:
    """Refuse what a schema cannot say: attribute values outside the contract, inputs that depend on an attribute."""
    given = [context.get_attribute(a.name) for a in spec.attributes]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in given if a is not None}
    attributes = {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}
    try:
        spec.check_attributes(attributes)
    except ValueError as error:
        raise InferenceError(str(error)) from error
    expected = [tensor.name for tensor in spec.inputs_for(attributes)]
    if context.get_num_inputs() != len(expected):
        raise InferenceError(
            f"{spec.name}: {context.get_num_inputs()} inputs, expected with these attributes are {len(expected)}: "
            f"{', '.join(expected)}"
        )


def _bind(
    spec: OpSpec,
    tensor: Tensor,
    shape: onnx.TensorShapeProto,
    dimensions: dict[str, onnx.TensorShapeProto.Dimension],
) -> None:
    """Add the dimensions of one input to those known; a static size beats a symbol."""
    found = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in shape.dim]
    if len(found) != len(tensor.shape):
        raise InferenceError(
            f"{spec.name}: input {tensor.name} has shape {found}, expected the {len(tensor.shape)} dimensions "
            f"[{', '.join(tensor.shape)}]"
        )
    for letter, dimension in zip(tensor.shape, shape.dim, strict=True):
        known = dimensions.setdefault(letter, dimension)
        if not dimension.HasField("dim_value"):
            continue
        if known.HasField("dim_value") and known.dim_value != dimension.dim_value:
            raise InferenceError(
                f"{spec.name}: input {tensor.name} has {letter} = {dimension.dim_value}, an input before it has "
                f"{letter} = {known.dim_value}; they must agree"
            )
        dimensions[letter] = dimension


def _output_type(
    tensor: Tensor, types: dict[str, int], dimensions: dict[str, onnx.TensorShapeProto.Dimension]
) -> onnx.TypeProto:
    result = onnx.TypeProto()
    if _is_variable(tensor):
        result.tensor_type.elem_type = types.get(tensor.types[0], onnx.TensorProto.UNDEFINED)
    else:
        result.tensor_type.elem_type = getattr(onnx.TensorProto, tensor.types[0].upper())
    for letter in tensor.shape:
        result.tensor_type.shape.dim.append(dimensions.get(letter, onnx.TensorShapeProto.Dimension()))
    return result
