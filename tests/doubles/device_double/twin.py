# SPDX-License-Identifier: Apache-2.0
"""The float32 twin of an engine's graph, and how values cross the border between device memory and the twin.

ONNX Runtime computes few operators in 16 bits on a CPU. Integer experts are unpacked; linear layers keep their integers
and the 16 bits of their scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastmmoe.exporter.ops import ATTENTION, DOMAIN, LINEAR, SPARSE_MOE
from fastmmoe.exporter.ops.quantise import QuantisedWeights, dequantise

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")
_PACKED = ("gate_up", "down")


class Packed(NamedTuple):
    """Integer experts that are inputs of the engine: the twin's input and what it is made from."""

    values: str
    scale: str
    zero: str | None
    weight_format: str
    group_size: int


class Twin(NamedTuple):
    """The graph that ONNX Runtime runs.

    Attributes:
        packed: input of the twin -> the inputs of the engine that it stands for.
    """

    model: onnx.ModelProto
    packed: dict[str, Packed]


def make_twin(model: onnx.ModelProto) -> Twin:
    """A copy of a graph, weights within, in which float32 takes the place of 16-bit floats and of integer experts."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    packed = _unpack_experts(twin.graph)
    _widen_graph(twin.graph)
    for function in twin.functions:
        _widen_nodes(function.node)
    return Twin(twin, packed)


def aliases(graph: onnx.GraphProto) -> dict[str, str]:
    """Output of the graph -> the input that it shares its address with, by the operators' contract."""
    inputs = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.domain != DOMAIN or node.op_type != ATTENTION.name:
            continue
        attributes = {a.name: _plain(a) for a in node.attribute}
        given = dict(zip((t.name for t in ATTENTION.inputs_for(attributes)), node.input, strict=False))
        for tensor, name in zip(ATTENTION.outputs_for(attributes), node.output, strict=False):
            if tensor.alias is not None and name in outputs and given.get(tensor.alias) in inputs:
                found[name] = given[tensor.alias]
    return found


def operators(graph: onnx.GraphProto) -> set[str]:
    """The operators of fastmmoe in a graph."""
    return {node.op_type for node in graph.node if node.domain == DOMAIN}


def from_device(raw: Any, onnx_type: int, shape: tuple[int, ...]) -> Any:
    """Bytes of a tensor in device memory, uint8, as the twin takes it: a new array."""
    if onnx_type == TensorProto.BFLOAT16:
        wide = raw.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    values = raw.view(numpy_type(onnx_type)).reshape(shape)
    return values.astype(np.float32 if onnx_type == TensorProto.FLOAT16 else values.dtype)


def to_device(values: Any, onnx_type: int) -> Any:
    """An output of the twin as the bytes of a tensor in device memory, uint8; floats round to nearest, ties to even."""
    if onnx_type == TensorProto.BFLOAT16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), rounded).reshape(-1).view(np.uint8)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(numpy_type(onnx_type), copy=False)).reshape(-1).view(np.uint8)


def numpy_type(onnx_type: int) -> np.dtype[Any]:
    """How a type lies in memory; bfloat16: uint16."""
    return np.dtype(np.uint16) if onnx_type == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(onnx_type)


def unpack(packed: Packed, arrays: dict[str, Any]) -> Any:
    """Float32 weights from integer experts, by the exporter's own reference.

    Args:
        arrays: by input of the engine; scales may be float32 copies.
    """
    zero = None if packed.zero is None else arrays[packed.zero]
    weights = QuantisedWeights(arrays[packed.values], arrays[packed.scale], zero)
    return dequantise(weights, packed.weight_format, packed.group_size).astype(np.float32)


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _unpack_experts(graph: onnx.GraphProto) -> dict[str, Packed]:
    """Replace integer experts by float32 ones: initializers at once, inputs by inputs of the whole shape."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    packed: dict[str, Packed] = {}
    unused: set[str] = set()
    for node in graph.node:
        if node.domain != DOMAIN or node.op_type != SPARSE_MOE.name:
            continue
        attributes = {a.name: _plain(a) for a in node.attribute}
        if attributes["weight_format"] == "float":
            continue
        given = dict(zip((t.name for t in SPARSE_MOE.inputs_for(attributes)), node.input, strict=True))
        for weight in _PACKED:
            parts = Packed(
                given[weight],
                given[f"{weight}_scale"],
                given.get(f"{weight}_zero"),
                attributes["weight_format"],
                attributes["group_size"],
            )
            names = [name for name in parts[:3] if name is not None]
            unused.update(names)
            new = f"{parts.values}.float32"
            given[weight] = new
            if parts.values in initializers:
                arrays = {name: numpy_helper.to_array(initializers[name]) for name in names}
                graph.initializer.append(numpy_helper.from_array(unpack(parts, arrays), new))
            else:
                packed[new] = parts
                graph.input.append(_unpacked_input(graph, new, parts))
        _set_float(node, given, attributes)
    for field in (graph.initializer, graph.input):
        for value in [value for value in field if value.name in unused]:
            field.remove(value)
    return packed


def _unpacked_input(graph: onnx.GraphProto, name: str, parts: Packed) -> onnx.ValueInfoProto:
    shape = next(shape_of(value) for value in graph.input if value.name == parts.values)
    columns = int(shape[-1]) * (2 if parts.weight_format == "int4" else 1)
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*shape[:-1], columns])


def _set_float(node: onnx.NodeProto, given: dict[str, str], attributes: dict[str, Any]) -> None:
    """Make a node one of float weights."""
    attributes |= {"weight_format": "float", "group_size": 0, "zero_points": 0}
    del node.attribute[:], node.input[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    node.input.extend(given[tensor.name] for tensor in SPARSE_MOE.inputs_for(attributes))


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Sizes, and names or sums of names where they may change."""
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim)


def _linear_scales(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Scales of integer linear layers."""
    for node in nodes:
        if node.domain == DOMAIN and node.op_type == LINEAR.name:
            tensors = LINEAR.inputs_for({a.name: _plain(a) for a in node.attribute})
            yield from (name for tensor, name in zip(tensors, node.input, strict=True) if tensor.name == "scale")


def _widen_graph(graph: onnx.GraphProto) -> None:
    scales = set(_linear_scales(graph.node))
    for tensor in graph.initializer:
        if tensor.name not in scales:
            _widen_tensor(tensor)
    # What is known of values within is said again by ONNX Runtime.
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen_graph(attribute.g)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in HALVES:
        wide = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
