# SPDX-License-Identifier: Apache-2.0
"""Makes one linear layer of those that multiply the same rows, as a layer's queries, keys and values do.

In a decode step each is so little work that to call it, to share it out among threads and to round its row takes a
good part of its time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import onnx_ir as ir

from fastmmoe.exporter.graph.pack_linears import parameters_of
from fastmmoe.exporter.graph.weights import JoinedTensor, ParameterTensor
from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.tiles import PANEL_ROWS


def join_linears(model: ir.Model, packing_of: Callable[[str], LinearPacking | None]) -> None:
    """Join FmmLinears of the same rows, and split what comes of them; in place.

    Call it after `fuse_linears`, as those with an activation or a residual of their own stay apart, and before the
    weights are packed.

    Args:
        packing_of: gives a parameter's packing.
    """
    alike = defaultdict(list)
    for node in model.graph:
        if node.op_type == LINEAR.name:
            kind = {name: a.value for name, a in node.attributes.items() if name != "out_features"}
            (parameter,) = parameters_of(node)
            alike[id(node.inputs[0]), LINEAR.encode(kind | {"out_features": 1}), packing_of(parameter)].append(node)
    for group in alike.values():
        if len(group) > 1 and all(_can_be_joined(node, is_last=node is group[-1]) for node in group):
            _join(model.graph, group)


def _can_be_joined(node: ir.Node, *, is_last: bool) -> bool:
    """Whether nothing else needs its weights and products by their names, and rows of another can follow in tiles."""
    attributes, weights = node.attributes, [node.inputs[i] for i in _weights(node)]
    if attributes["activation"].as_string() != "none" or attributes["has_residual"].as_int():
        return False
    if node.outputs[0].is_graph_output() or any(value is None or len(value.uses()) > 1 for value in weights):
        return False
    return is_last or attributes["out_features"].as_int() % PANEL_ROWS == 0


def _join(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Put the joined layer in place of the first of the nodes."""
    first = nodes[0]
    name = _joined([str(node.name).removesuffix(f"/{LINEAR.name}") for node in nodes])
    inputs = [first.inputs[0], *(_stacked(graph, name, [node.inputs[i] for node in nodes]) for i in _weights(first))]
    sizes = [node.attributes["out_features"].as_int() for node in nodes]
    attributes = {key: attribute.value for key, attribute in first.attributes.items()} | {"out_features": sum(sizes)}
    joined = ir.node(LINEAR.name, inputs, attributes, domain=first.domain, num_outputs=1, name=f"{name}/{LINEAR.name}")
    rows = first.outputs[0]
    joined.outputs[0].name, joined.outputs[0].type = joined.name, rows.type
    joined.outputs[0].shape = None if rows.shape is None else ir.Shape((rows.shape[0], sum(sizes)))
    widths = ir.val(f"{name}/widths", const_value=ir.tensor(sizes, name=f"{name}/widths"))
    graph.register_initializer(widths)
    split = ir.node("Split", [joined.outputs[0], widths], {"axis": 1}, num_outputs=len(nodes), name=f"{name}/Split")
    graph.insert_before(first, [joined, split])
    for i, (node, new) in enumerate(zip(nodes, split.outputs, strict=True)):
        old = node.outputs[0]
        new.name, new.type, new.shape = f"{split.name}.{i}", old.type, old.shape
        old.replace_all_uses_with(new)
        weights = [node.inputs[i] for i in _weights(node)]
        graph.remove(node, safe=True)
        for weight in weights:
            assert weight is not None and weight.name is not None
            del graph.initializers[weight.name]


def _weights(linear: ir.Node) -> range:
    """Numbers of the inputs that are parameters: weight, and bias."""
    return range(1, len(linear.inputs))


def _joined(paths: Sequence[str]) -> str:
    """a.q, a.k -> a.q+k."""
    parent, _, first = paths[0].rpartition(".")
    return "+".join([f"{parent}.{first}" if parent else first, *(path.rpartition(".")[2] for path in paths[1:])])


def _stacked(graph: ir.Graph, name: str, values: Sequence[ir.Value | None]) -> ir.Value:
    """An initializer that stands for several."""
    given = [value.const_value for value in values if value is not None]
    tensors = [tensor for tensor in given if isinstance(tensor, ParameterTensor) and tensor.order is None]
    assert len(tensors) == len(values), name
    suffix = str(tensors[0].name).rpartition(".")[2]
    tensor = JoinedTensor(tensors, f"{name}.{suffix}")
    value = ir.val(tensor.name, const_value=tensor)
    graph.register_initializer(value)
    return value
