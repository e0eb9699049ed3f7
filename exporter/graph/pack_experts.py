# SPDX-License-Identifier: Apache-2.0
"""Gives the routed experts of a traced language model integer weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import torch

from fastmmoe.exporter.checkpoint.open_file import write_all
from fastmmoe.exporter.graph.weights import ParameterTensor
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.quantise import Packing, QuantisedWeights
from fastmmoe.runtime.types import Array

WEIGHTS = ("gate_up", "down")
Experts = Callable[[str], Iterator[torch.Tensor]]


def pack_experts(model: ir.Model, experts: Experts, packing: Packing) -> None:
    """Replace the weights of every FmmSparseMoE by integers, scales and, if wanted, zeros; in place.

    Args:
        experts: gives a parameter's floating-point experts, [rows, columns] each; called when the graph is written.
    """
    for node in [node for node in model.graph if node.op_type == SPARSE_MOE.name]:
        _pack_node(model.graph, node, experts, packing)


def _pack_node(graph: ir.Graph, node: ir.Node, experts: Experts, packing: Packing) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()} | packing.attributes()
    given = dict(zip((t.name for t in SPARSE_MOE.inputs), node.inputs, strict=False))
    for weight in WEIGHTS:
        value = given[weight]
        assert value is not None and value.name is not None
        for suffix, tensor in _packed_tensors(value, experts, packing):
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


class _Stack:
    """The experts of a parameter, packed one at a time.

    What is small of them is kept from the time when the integers are written to when it is written itself, so that they
    are packed once.
    """

    def __init__(self, name: str, experts: Experts, packing: Packing) -> None:
        self._name, self._experts, self._packing = name, experts, packing
        self._small: dict[str, Array] = {}

    def packed(self) -> Iterator[QuantisedWeights]:
        scales, zeros = [], []
        for expert in self._experts(self._name):
            packed = self._packing.quantise(expert.float().numpy())
            scales.append(packed.scale)
            zeros += [] if packed.zero is None else [packed.zero]
            yield packed
        self._small = {"scale": np.stack(scales)} | ({"zero": np.stack(zeros)} if zeros else {})

    def small(self, part: str) -> Array:
        if part not in self._small:
            for _ in self.packed():
                pass
        return self._small.pop(part)


class PackedTensor(ir.LazyTensor):
    """A part of packed experts: the field `part` of `QuantisedWeights`, of all experts."""

    def __init__(self, stack: _Stack, part: str, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> None:
        super().__init__(self._read, dtype=dtype, shape=ir.Shape(shape), name=name)
        self._stack, self._part = stack, part

    def write(self, target: int, at: int, report: Callable[[int], None]) -> None:
        """Write the part, integers expert by expert.

        Args:
            target, at: descriptor of the file, and the offset of the first byte.
            report: is told the number of bytes that were written, now and then.
        """
        found = (packed.values for packed in self._stack.packed())
        for values in found if self._part == "values" else [self._stack.small(self._part)]:
            write_all(target, np.ascontiguousarray(values).data.cast("B"), at)
            at += values.nbytes
            report(values.nbytes)

    def _read(self) -> ir.Tensor:
        return ir.Tensor(np.stack([getattr(packed, self._part) for packed in self._stack.packed()]), name=self.name)


def _packed_tensors(value: ir.Value, experts: Experts, packing: Packing) -> Iterator[tuple[str, PackedTensor]]:
    """Suffix and tensor of each part; values are made when they are written."""
    assert isinstance(value.const_value, ParameterTensor)
    stack = _Stack(value.const_value.parameter, experts, packing)
    *rows, columns = value.const_value.shape.numpy()
    groups = -(-columns // packing.group_size)
    width = columns // 2 if packing.weight_format == "int4" else columns
    yield "", PackedTensor(stack, "values", ir.DataType.INT8, (*rows, width), f"{value.name}")
    yield "_scale", PackedTensor(stack, "scale", ir.DataType.FLOAT16, (*rows, groups), f"{value.name}_scale")
    if packing.zero_points:
        yield "_zero", PackedTensor(stack, "zero", ir.DataType.INT8, (*rows, groups), f"{value.name}_zero")
