# SPDX-License-Identifier: Apache-2.0
"""Gives the routed experts of a traced language model weights of another format or order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import torch

from fastmmoe.exporter.checkpoint.open_file import write_all
from fastmmoe.exporter.graph.weights import ParameterTensor
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.quantise import QuantisedWeights
from fastmmoe.exporter.ops.sparse_moe.storage import Storage, part_of
from fastmmoe.runtime.types import Array

WEIGHTS = ("gate_up", "down")
Experts = Callable[[str], Iterator[torch.Tensor]]


def pack_experts(model: ir.Model, experts: Experts, storage: Storage) -> None:
    """Replace the weights of every FmmSparseMoE by what is stored of them; in place.

    Args:
        experts: gives a parameter's floating-point experts, [rows, columns] each; called when the graph is written.
    """
    for node in [node for node in model.graph if node.op_type == SPARSE_MOE.name]:
        _pack_node(model.graph, node, experts, storage)


def _pack_node(graph: ir.Graph, node: ir.Node, experts: Experts, storage: Storage) -> None:
    given = dict(zip((t.name for t in SPARSE_MOE.inputs), node.inputs, strict=False))
    down = given["down"]
    assert down is not None and down.const_value is not None
    expert_size = int(down.const_value.shape.numpy()[-1])
    own = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes = own | storage.attributes(expert_size)
    for weight in WEIGHTS:
        value = given[weight]
        assert value is not None and value.name is not None
        for suffix, tensor in _packed_tensors(value, experts, storage, is_gate_up=weight == "gate_up"):
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
    are packed once. It lies in one array: small ones between what is large for a moment would keep the heap from
    shrinking.
    """

    def __init__(self, name: str, count: int, experts: Experts, storage: Storage, *, is_gate_up: bool) -> None:
        self._name, self._count, self._experts = name, count, experts
        self._storage, self._is_gate_up = storage, is_gate_up
        self._small: dict[str, Array] = {}

    def packed(self) -> Iterator[QuantisedWeights | Array]:
        small: dict[str, Array] = {}
        for e, expert in enumerate(self._experts(self._name)):
            bits = expert.float() if self._storage.packing is not None else expert.bfloat16().view(torch.int16)
            packed = self._storage.store(bits.numpy(), is_gate_up=self._is_gate_up)
            for part in self._storage.parts[1:]:
                values = part_of(packed, part)
                if e == 0:
                    small[part] = np.empty((self._count, *values.shape), values.dtype)
                small[part][e] = values
            yield packed
        self._small = small

    def small(self, part: str) -> Array:
        if part not in self._small:
            for _ in self.packed():
                pass
        return self._small.pop(part)


class PackedTensor(ir.LazyTensor):
    """A part of packed experts, of all of them."""

    def __init__(self, stack: _Stack, part: str, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> None:
        super().__init__(self._read, dtype=dtype, shape=ir.Shape(shape), name=name)
        self._stack, self._part = stack, part

    def write(self, target: int, at: int, report: Callable[[int], None]) -> None:
        """Write the part, integers expert by expert.

        Args:
            target, at: descriptor of the file, and the offset of the first byte.
            report: is told the number of bytes that were written, now and then.
        """
        found = (part_of(packed, "") for packed in self._stack.packed())
        for values in [self._stack.small(self._part)] if self._part else found:
            write_all(target, np.ascontiguousarray(values).data.cast("B"), at)
            at += values.nbytes
            report(values.nbytes)

    def _read(self) -> ir.Tensor:
        values = np.stack([part_of(packed, self._part) for packed in self._stack.packed()])
        return ir.Tensor(values.view(self.dtype.numpy()), name=self.name)


def _packed_tensors(
    value: ir.Value, experts: Experts, storage: Storage, *, is_gate_up: bool
) -> Iterator[tuple[str, PackedTensor]]:
    """Suffix and tensor of each part; values are made when they are written."""
    assert isinstance(value.const_value, ParameterTensor)
    sizes = [int(size) for size in value.const_value.shape.numpy()]
    stack = _Stack(value.const_value.parameter, sizes[0], experts, storage, is_gate_up=is_gate_up)
    of_values = ir.DataType.BFLOAT16 if storage.packing is None else ir.DataType.INT8
    dtypes = {"": of_values, "_scale": ir.DataType.FLOAT16, "_zero": ir.DataType.INT8}
    for part in storage.parts:
        shape = storage.shape(part, *sizes, is_gate_up=is_gate_up)
        yield part, PackedTensor(stack, part, dtypes[part], shape, f"{value.name}{part}")
