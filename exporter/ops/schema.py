# SPDX-License-Identifier: Apache-2.0
"""ONNX schemas of the custom operators, made from their contracts: the checker and shape inference then know them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import onnx
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceContext, InferenceError

from fastmmoe.exporter.ops import OPS
from fastmmoe.exporter.ops.contract import DOMAIN, Attribute, Attributes, Dimension, OpSpec, Tensor

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
        inputs=_inputs(spec),
        outputs=_outputs(spec),
        type_constraints=_constraints(spec),
        attributes=[_attribute(attribute) for attribute in spec.attributes],
    )
    schema.set_type_and_shape_inference_function(_inference(spec))
    return schema


def _inputs(spec: OpSpec) -> list[OpSchema.FormalParameter]:
    """A parameter for each input. What a conditional place holds depends on the attributes: inference checks it."""
    return _parameters(spec.inputs, "conditional")


def _outputs(spec: OpSpec) -> list[OpSchema.FormalParameter]:
    """A parameter for each output, likewise."""
    return _parameters(spec.outputs, "conditional_output")


def _parameters(tensors: tuple[Tensor, ...], place: str) -> list[OpSchema.FormalParameter]:
    conditional = [t.name for t in tensors if t.is_conditional]
    return [_parameter(t) for t in tensors if not t.is_conditional] + [
        OpSchema.FormalParameter(
            name,
            name,
            f"The next of {', '.join(conditional)} that the attributes ask for.",
            param_option=OpSchema.FormalParameterOption.Optional,
        )
        for name in conditional_places(tensors, place)
    ]


def conditional_places(tensors: tuple[Tensor, ...], place: str = "conditional") -> list[str]:
    """Schema names of the places of tensors that only some nodes have; each is its own type variable, too."""
    return [f"{place}_{i}" for i in range(sum(t.is_conditional for t in tensors))]


def _parameter(tensor: Tensor) -> OpSchema.FormalParameter:
    return OpSchema.FormalParameter(
        tensor.name, _type_string(tensor), f"{tensor.doc} Shape [{', '.join(tensor.shape)}]."
    )


def _constraints(spec: OpSpec) -> list[tuple[str, list[str], str]]:
    variables = dict(spec.type_variables)
    for tensors, place in ((spec.inputs, "conditional"), (spec.outputs, "conditional_output")):
        conditional = (t.types for t in tensors if t.is_conditional)
        types = itertools.chain.from_iterable(spec.type_variables.get(t[0], t) for t in conditional)
        any_type = tuple(dict.fromkeys(types))
        variables |= dict.fromkeys(conditional_places(tensors, place), any_type)
    return [(name, [f"tensor({t})" for t in types], f"Type {name}.") for name, types in variables.items()]


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
        attributes = _check_node(spec, context)
        types: dict[str, int] = {}
        known = spec.known_sizes(attributes)
        dimensions = {letter: onnx.TensorShapeProto.Dimension(dim_value=size) for letter, size in known.items()}
        for i, tensor in enumerate(spec.inputs_for(attributes)):
            given = context.get_input_type(i)
            if given is None:
                continue
            _bind_type(spec, tensor, given.tensor_type.elem_type, types)
            if given.tensor_type.HasField("shape"):
                _bind(spec, tensor, tensor.shape_with(attributes), given.tensor_type.shape, dimensions)
        for i, tensor in enumerate(spec.outputs_for(attributes)):
            context.set_output_type(i, _output_type(tensor, types, dimensions))

    return infer


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Its value as contracts have it, strings as text."""
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _check_node(spec: OpSpec, context: InferenceContext) -> Attributes:
    """The node's attributes. Refuses what a schema cannot say: illegal values, inputs and outputs that are missing."""
    given = [context.get_attribute(a.name) for a in spec.attributes]
    attributes = {a.name: attribute_value(a) for a in given if a is not None}
    try:
        spec.check_attributes(attributes)
    except ValueError as error:
        raise InferenceError(str(error)) from error
    inputs = spec.inputs_for(attributes)
    if context.get_num_inputs() != len(inputs):
        raise InferenceError(
            f"{spec.name}: {context.get_num_inputs()} inputs, expected with these attributes are {len(inputs)}: "
            f"{', '.join(tensor.name for tensor in inputs)}"
        )
    outputs = spec.outputs_for(attributes)
    if context.get_num_outputs() != len(outputs):
        raise InferenceError(
            f"{spec.name}: {context.get_num_outputs()} outputs, expected with these attributes are {len(outputs)}: "
            f"{', '.join(tensor.name for tensor in outputs)}"
        )
    return attributes


def _bind_type(spec: OpSpec, tensor: Tensor, element_type: int, types: dict[str, int]) -> None:
    """Check the element type of one input; the first input of a type variable binds it."""
    name = _type_name(element_type)
    expected = tensor.types
    if _is_variable(tensor):
        bound = types.get(tensor.types[0])
        expected = spec.type_variables[tensor.types[0]] if bound is None else (_type_name(bound),)
        types.setdefault(tensor.types[0], element_type)
    if name not in expected:
        raise InferenceError(f"{spec.name}: input {tensor.name} is of type {name}, expected {' or '.join(expected)}")


def _type_name(element_type: int) -> str:
    return onnx.TensorProto.DataType.Name(element_type).lower()


def _bind(
    spec: OpSpec,
    tensor: Tensor,
    expected: tuple[str, ...],
    shape: onnx.TensorShapeProto,
    dimensions: dict[str, onnx.TensorShapeProto.Dimension],
) -> None:
    """Add the dimensions of one input to those known; a static size beats a symbol."""
    found = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in shape.dim]
    if len(found) != len(expected):
        raise InferenceError(
            f"{spec.name}: input {tensor.name} has shape {found}, expected the {len(expected)} dimensions "
            f"[{', '.join(expected)}]"
        )
    for letter, dimension in zip(expected, shape.dim, strict=True):
        known = dimensions.setdefault(letter, dimension)
        if not dimension.HasField("dim_value"):
            continue
        _check_size(spec, tensor, letter, dimension.dim_value)
        if known.HasField("dim_value") and known.dim_value != dimension.dim_value:
            raise InferenceError(
                f"{spec.name}: input {tensor.name} has {letter} = {dimension.dim_value}, an input before it has "
                f"{letter} = {known.dim_value}; they must agree"
            )
        dimensions[letter] = dimension


def _check_size(spec: OpSpec, tensor: Tensor, dimension: str, size: int) -> None:
    """Refuse a static size that no letter of the contract can have."""
    solved = Dimension.parse(dimension).solve(size)
    # Those of the order of weights have one size, which attributes give.
    has_limits = solved is not None and any(limits.letter == solved[0] for limits in spec.sizes)
    wrong = spec.wrong_size(*solved[:2]) if solved is not None and has_limits else None
    if wrong:
        raise InferenceError(f"{spec.name}: {wrong} (input {tensor.name})")


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
