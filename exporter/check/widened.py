# SPDX-License-Identifier: Apache-2.0
"""The graphs of a 16-bit bundle as no more than float32 arithmetic on its own weights, so that a CPU can run them.

What a graph says of float16 and bfloat16 says float32 instead; weights stay where they are, in the bundle's files, and
become float32 when a node takes them. Integers of linear layers stay what they are, with their scales of 16 bits.
Experts stay in 16 bits, which FmmSparseMoE multiplies in float32; what integer and fp8 experts stand for comes from
experts.py. Constants of formulas, which a 16-bit graph has rounded, are given the digits that torch has.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fastmmoe.exporter.models.layers import VisionAttention
from fastmmoe.exporter.ops import DOMAIN, LINEAR, SPARSE_MOE
from fastmmoe.exporter.ops.schema import attribute_value
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, graph_file, weights_file
from fastmmoe.runtime.bundle.storage import ExpertsInfo, ExpertTensor

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
WEIGHTS = ("gate_up", "down")
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")
# Of both forms of GELU.
_CONSTANTS = (math.sqrt(2 / math.pi), 0.044715, math.sqrt(2), math.sqrt(0.5))
_FLOAT_FORMAT = {"weight_format": "float", "group_size": 0, "zero_points": 0}


def write_widened(bundle: Path, directory: Path, manifest: Manifest, vision: nn.Module) -> Manifest:
    """Write the graphs, and links to their weights, to a new directory; the manifest of that.

    Its expert inputs are of 16 bits also where the bundle's are integers: their values are the caller's.

    Args:
        vision: the tower's module, whose formulas have constants of its own.
    """
    # An export that was interrupted may have left one (--resume).
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    widths = {m.qkv.in_features // m.heads for m in vision.modules() if isinstance(m, VisionAttention)}
    constants = [*_CONSTANTS, *(width**power for width in widths for power in (-0.5, -0.25))]
    shapes: dict[str, tuple[int, ...]] = {}
    for graph in GRAPHS:
        model = onnx.load(str(bundle / graph_file(graph)), load_external_data=False)
        if graph == "language_model":
            shapes = _take_out_experts(model.graph)
        _widen(model.graph, set(shapes) | set(_scales(model.graph)), constants)
        onnx.save(model, str(directory / graph_file(graph)))
        if (bundle / weights_file(graph)).is_file():
            _link(bundle / weights_file(graph), directory / weights_file(graph))
    of = manifest.experts.inputs
    is_packed = manifest.experts.weight_format != "float"
    inputs = {
        name: ExpertTensor(dtype="bfloat16" if is_packed else of[name].dtype, shape=shape, offset=0)
        for name, shape in shapes.items()
    }
    experts = ExpertsInfo(weight_format="float", group_size=0, zero_points=False, inputs=inputs)
    return msgspec.structs.replace(
        manifest, activation_dtype="float32", cache_dtype="float32", experts=experts, portable=False, plugin=None
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _take_out_experts(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Make integer experts floating-point ones; shapes of all inputs that are experts' weights, by name."""
    inputs = {value.name: value for value in graph.input}
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        if node.domain != DOMAIN or node.op_type != SPARSE_MOE.name:
            continue
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        given = dict(zip((t.name for t in SPARSE_MOE.inputs_for(attributes)), node.input, strict=True))
        is_packed = attributes["weight_format"] != "float"
        for weight in WEIGHTS:
            value = inputs[given[weight]]
            *rows, columns = (d.dim_value for d in value.type.tensor_type.shape.dim)
            columns *= 2 if attributes["weight_format"] == "int4" else 1
            shapes[value.name] = (*rows, columns)
            if is_packed:
                value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.BFLOAT16, shapes[value.name]))
        if is_packed:
            parts = {given[f"{w}{part}"] for w in WEIGHTS for part in ("_scale", "_zero") if f"{w}{part}" in given}
            for name in parts:
                graph.input.remove(inputs[name])
            _set_attributes(node, given, attributes | _FLOAT_FORMAT)
    return shapes


def _scales(graph: onnx.GraphProto) -> Iterator[str]:
    """The scales of integer linear layers, which the contract has in 16 bits beside any activations."""
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == LINEAR.name:
            attributes = {a.name: attribute_value(a) for a in node.attribute}
            names = [tensor.name for tensor in LINEAR.inputs_for(attributes)]
            yield from (name for tensor, name in zip(names, node.input, strict=True) if tensor == "scale")


def _set_attributes(node: onnx.NodeProto, given: Mapping[str, str], attributes: dict[str, Any]) -> None:
    del node.attribute[:], node.input[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    node.input.extend(given[tensor.name] for tensor in SPARSE_MOE.inputs_for(attributes))


def _widen(graph: onnx.GraphProto, kept: set[str], constants: Sequence[float]) -> None:
    """Let float32 stand for 16-bit floats everywhere but in the inputs and initializers `kept`."""
    # What is known of values within is found again by ONNX Runtime.
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.name not in kept and value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _widen_tensor(attribute.t, constants)
            if attribute.HasField("g"):
                _widen(attribute.g, set(), constants)
    tensors = [tensor for tensor in graph.initializer if tensor.name not in kept]
    casts = [cast for tensor in tensors for cast in _widen_weight(graph, tensor, constants)]
    nodes = [*(cast for cast, is_first in casts if is_first), *graph.node]
    for cast, is_first in casts:
        if not is_first:
            nodes.insert(next(i for i, n in enumerate(nodes) if cast.input[0] in n.output) + 1, cast)
    del graph.node[:]
    graph.node.extend(nodes)


def _widen_weight(
    graph: onnx.GraphProto, tensor: TensorProto, constants: Sequence[float]
) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Casts of a 16-bit initializer, and whether one stands before all nodes; none where it becomes float32 itself."""
    if tensor.data_type not in HALVES:
        return
    if tensor.data_location != TensorProto.EXTERNAL:
        _widen_tensor(tensor, constants)
        return
    users = [node for node in graph.node if tensor.name in node.input]
    if all(node.op_type == "Gather" and node.input[0] == tensor.name for node in users):
        # Rows of a table: only those that are taken become float32.
        for node in users:
            output = node.output[0]
            node.output[0] = f"{output}.stored"
            yield helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT), False
        return
    name = tensor.name
    tensor.name = f"{name}.stored"
    yield helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT), True


def _widen_tensor(tensor: TensorProto, constants: Sequence[float]) -> None:
    if tensor.data_type not in HALVES:
        return
    rounded = np.asarray(numpy_helper.to_array(tensor))
    wide = rounded.astype(np.float32)
    if wide.size == 1:
        exact = [c for c in constants if rounded.ravel()[0] in _roundings(c, rounded.dtype)]
        wide = np.full_like(wide, exact[0]) if exact else wide
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _roundings(constant: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """What a graph may hold of a constant: it, rounded, or the root of its rounded square, as of attention's scale."""
    square = np.asarray(constant * constant).astype(dtype)
    return np.asarray(constant).astype(dtype)[()], np.sqrt(square.astype(np.float32)).astype(dtype)[()]
