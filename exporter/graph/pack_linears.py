# SPDX-License-Identifier: Apache-2.0
"""Gives the linear layers of a traced graph weights of 16, 8 or 4 bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fastmmoe.exporter.checkpoint.open_file import write_all
from fastmmoe.exporter.graph.weights import JoinedTensor, ParameterTensor
from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.tiles import PANEL_ROWS
from fastmmoe.runtime.types import Array

BLOCK_VALUES = 1 << 22
"""Weights that are packed at a time, about: a head would be a gigabyte of floats."""
WEIGHT, SUFFIXES = "weight", {"weight": "", "scale": "_scale", "zero": "_zero"}
"""The part that is large; what follows a parameter's name in that of its parts."""
Rows = Callable[[str, int], Iterator[torch.Tensor]]


def pack_linears(model: ir.Model, packing_of: Callable[[str], LinearPacking | None], rows: Rows) -> None:
    """Replace the weights of every FmmLinear by packed ones; in place.

    Args:
        packing_of: gives a parameter's packing.
        rows: gives a parameter's floating-point rows, so many at a time; called when the graph is written.
    """
    for node in [node for node in model.graph if node.op_type == LINEAR.name]:
        (packing,) = {packing_of(name) for name in parameters_of(node)}
        assert packing is not None, node.name
        _pack_node(model.graph, node, packing, rows)


def parameters_of(linear: ir.Node) -> tuple[str, ...]:
    """The parameters that an FmmLinear's weight consists of, before it is packed."""
    weight = linear.inputs[1]
    assert weight is not None
    if isinstance(weight.const_value, JoinedTensor):
        return tuple(tensor.parameter for tensor in weight.const_value.parameters)
    assert isinstance(weight.const_value, ParameterTensor), weight.name
    return (weight.const_value.parameter,)


def block_rows(columns: int) -> int:
    """How many rows of so many columns are packed at a time: whole panels."""
    return max(BLOCK_VALUES // columns // PANEL_ROWS, 1) * PANEL_ROWS


def _pack_node(graph: ir.Graph, node: ir.Node, packing: LinearPacking, rows: Rows) -> None:
    given = dict(zip((t.name for t in LINEAR.inputs_for(_attributes(node))), node.inputs, strict=True))
    weight = given.pop("weight")
    assert weight is not None and weight.name is not None and weight.const_value is not None
    N, K = weight.const_value.shape.numpy()
    kept = {name: value for name, value in _attributes(node).items() if name in ("activation", "has_residual")}
    attributes = packing.attributes(N, has_bias="bias" in given) | kept
    blocks = _Blocks(parameters_of(node), K, packing, rows)
    # Two nodes may have one weight, as a tied head would.
    if weight.name in graph.initializers:
        del graph.initializers[weight.name]
    for part, (dtype, shape) in packing.parts(N, K).items():
        name = weight.name + SUFFIXES[part]
        if name not in graph.initializers:
            tensor = PackedLinearTensor(blocks, part, ir.DataType[dtype.upper()], shape, name)
            graph.register_initializer(ir.val(name, const_value=tensor))
        given[part] = graph.initializers[name]
    inputs = [given[tensor.name] for tensor in LINEAR.inputs_for(attributes)]
    packed = ir.node(node.op_type, inputs, attributes, domain=node.domain, num_outputs=1, name=node.name)
    packed.outputs[0].name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [packed], node.outputs, packed.outputs)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


class _Blocks:
    """The weights of a layer, packed some rows at a time.

    What is small of them is kept from the time when the weights are written to when it is written itself, so that they
    are packed once.
    """

    def __init__(self, names: Sequence[str], columns: int, packing: LinearPacking, rows: Rows) -> None:
        """names: of the parameters that it consists of; of all but the last, rows fill whole panels."""
        self._names, self._packing, self._rows = names, packing, rows
        self._count = block_rows(columns)
        self._small: dict[str, list[Array]] = {}

    def packed(self) -> Iterator[dict[str, Array]]:
        small: dict[str, list[Array]] = {}
        for block in itertools.chain.from_iterable(self._rows(name, self._count) for name in self._names):
            parts = self._packing.pack(block.float().numpy())
            for part, values in parts.items():
                if part != WEIGHT:
                    small.setdefault(part, []).append(values)
            yield parts
        self._small = small

    def pieces(self, part: str) -> Iterator[Array]:
        """The part, one block after the other."""
        if part == WEIGHT:
            yield from (parts[WEIGHT] for parts in self.packed())
            return
        if part not in self._small:
            for _ in self.packed():
                pass
        yield from self._small.pop(part)


class PackedLinearTensor(ir.LazyTensor):
    """A part of a packed layer: an input of FmmLinear by name."""

    def __init__(self, blocks: _Blocks, part: str, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> None:
        super().__init__(self._read, dtype=dtype, shape=ir.Shape(shape), name=name)
        self._blocks, self._part = blocks, part

    def write(self, target: int, at: int, report: Callable[[int], None]) -> None:
        """Write the part; arguments as of `PackedTensor.write`."""
        for values in self._blocks.pieces(self._part):
            write_all(target, np.ascontiguousarray(values).view(np.uint8).data.cast("B"), at)
            at += values.nbytes
            report(values.nbytes)

    def _read(self) -> ir.Tensor:
        return ir.Tensor(np.concatenate(list(self._blocks.pieces(self._part))), name=self.name)
