# SPDX-License-Identifier: Apache-2.0
"""Moves what follows the linear layers of a traced graph into them: GELU, and the sum with a residual."""

from __future__ import annotations

import onnx_ir as ir

from fastmmoe.exporter.ops import LINEAR

ACTIVATIONS = {"none": "gelu", "tanh": "gelu_tanh"}
"""Gelu's attribute `approximate` -> FmmLinear's `activation`."""


def fuse_linears(model: ir.Model) -> None:
    """Put each GELU and each residual that only a FmmLinear feeds into the FmmLinear; in place.

    A Reshape between the two stays behind: both work value by value. Call it before the weights are packed.
    """
    earlier = {id(value) for value in model.graph.inputs}
    for node in list(model.graph):
        last = node
        if node.op_type == LINEAR.name:
            last = _fuse_residual(model.graph, _fuse_activation(model.graph, node), earlier)
        earlier |= {id(value) for value in last.outputs}


def _fuse_activation(graph: ir.Graph, linear: ir.Node) -> ir.Node:
    last = _reshaped(linear)
    user = _only_user(last)
    if user is None or user.op_type != "Gelu":
        return linear
    given = user.attributes.get("approximate")
    activation = ACTIVATIONS["none" if given is None else given.as_string()]
    user.outputs[0].replace_all_uses_with(last)
    graph.remove(user, safe=True)
    return _with(graph, linear, list(linear.inputs), {"activation": activation})


def _fuse_residual(graph: ir.Graph, linear: ir.Node, earlier: set[int]) -> ir.Node:
    """earlier: identities of the values that are there before the node."""
    last = _reshaped(linear)
    user = _only_user(last)
    if user is None or user.op_type != "Add":
        return linear
    (other,) = (value for value in user.inputs if value is not last)
    if other is None or id(other) not in earlier or other.shape is None or other.shape != last.shape:
        return linear
    residual = other
    if last is not linear.outputs[0]:
        width = linear.attributes["out_features"].as_int()
        shape = ir.val(f"{linear.name}/rows", const_value=ir.tensor([-1, width], name=f"{linear.name}/rows"))
        graph.register_initializer(shape)
        rows = ir.node("Reshape", [other, shape], num_outputs=1, name=f"{linear.name}/Reshape")
        rows.outputs[0].name, rows.outputs[0].type = rows.name, other.type
        rows.outputs[0].shape = linear.outputs[0].shape
        graph.insert_before(linear, rows)
        residual = rows.outputs[0]
    user.outputs[0].replace_all_uses_with(last)
    graph.remove(user, safe=True)
    return _with(graph, linear, [*linear.inputs, residual], {"has_residual": 1})


def _reshaped(linear: ir.Node) -> ir.Value:
    """The products, behind the Reshape that is their only use, if there is one."""
    user = _only_user(linear.outputs[0])
    return user.outputs[0] if user is not None and user.op_type == "Reshape" else linear.outputs[0]


def _only_user(value: ir.Value) -> ir.Node | None:
    """None also where value or result are outputs of the graph, whose names stay."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output() or users[0].node.outputs[0].is_graph_output():
        return None
    return users[0].node


def _with(graph: ir.Graph, linear: ir.Node, inputs: list[ir.Value | None], changes: dict[str, str | int]) -> ir.Node:
    """The node with other inputs and attributes."""
    attributes = {name: attribute.value for name, attribute in linear.attributes.items()} | changes
    new = ir.node(linear.op_type, inputs, attributes, domain=linear.domain, num_outputs=1, name=linear.name)
    new.outputs[0].name = linear.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, linear, [linear], [new], linear.outputs, new.outputs)
    return new
