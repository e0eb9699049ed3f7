# SPDX-License-Identifier: Apache-2.0
"""Gives the routed experts of a traced language model integer weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import torch

from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.quantise import Packing, QuantisedWeights

WEIGHTS = ("gate_up", "down")


def pack_experts(model: ir.Model, load: Callable[[str], torch.Tensor], packing: Packing) -> None:
    """Replace the weights of every FmmSparseMoE by integers, scales and, if wanted, zeros; in place.

    Args:
        load: gives the floating-point weights [E, rows, columns] of an initializer; called when the graph is written.
    """

    @functools.lru_cache(maxsize=1)
    def pack(name: str) -> QuantisedWeights:
        # An expert at a time keeps the float32 copies small.
        experts = [packing.quantise(expert.float().numpy()) for expert in load(name)]
        zeros = [expert.zero for expert in experts if expert.zero is not None]
        return QuantisedWeights(
            np.stack([expert.values for expert in experts]),
            np.stack([expert.scale for expert in experts]),
            np.stack(zeros) if zeros else None,
        )

    for node in [node for node in model.graph if node.op_type == SPARSE_MOE.name]:
        _pack_node(model.graph, node, pack, packing)


def _pack_node(graph: ir.Graph, node: ir.Node, pack: Callable[[str], QuantisedWeights], packing: Packing) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()} | packing.attributes()
    given = dict(zip((t.name for t in SPARSE_MOE.inputs), node.inputs, strict=False))
    for weight in WEIGHTS:
        value = given[weight]
        assert value is not None and value.name is not None
        for suffix, tensor in _packed_tensors(value, pack, packing):
            given[weight + suffix] = ir.val(value.name + suffix, const_value=tensor)
        del graph.initializers[value.name]
    inputs = [given[tensor.name] for tensor in SPARSE_MOE.inputs_for(attributes)]
    for new in inputs:
        assert new is not None
        if new.const_value is not None:
            graph.register_initializer(new)
    packed = ir.node(node.op_type, inputs, attributes, domain=node.domain, num_outputs=1, name=node.name)
    packed.outputs[0].name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [packed], node.outputs, packed.outputs)


def _packed_tensors(
    value: ir.Value, pack: Callable[[str], QuantisedWeights], packing: Packing
) -> Iterator[tuple[str, ir.LazyTensor]]:
    """Suffix and tensor of each part; values are made when they are written."""
    assert value.name is not None and value.shape is not None
    name, (*rows, columns) = value.name, value.shape.numpy()
    groups = -(-columns // packing.group_size)
    width = columns // 2 if packing.weight_format == "int4" else columns

    def lazily(suffix: str, part: str, dtype: ir.DataType, last: int) -> tuple[str, ir.LazyTensor]:
        return suffix, ir.LazyTensor(
            lambda: ir.Tensor(getattr(pack(name), part), name=name + suffix),
            dtype=dtype,
            shape=ir.Shape([*rows, last]),
            name=name + suffix,
        )

    yield lazily("", "values", ir.DataType.INT8, width)
    yield lazily("_scale", "scale", ir.DataType.FLOAT16, groups)
    if packing.zero_points:
        yield lazily("_zero", "zero", ir.DataType.INT8, groups)
