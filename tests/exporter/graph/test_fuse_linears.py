# SPDX-License-Identifier: Apache-2.0
"""What follows a FmmLinear goes into it where nothing else needs what was before, and the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from fastmmoe.exporter.graph.fuse_linears import fuse_linears
from fastmmoe.exporter.ops import DOMAIN, LINEAR
from fastmmoe.exporter.ops.functions import function_for
from fastmmoe.runtime.types import Array
from tests.support.linear_cases import logical_attributes

ROWS, WIDTH = 3, 4
Value = ir.Value


class Graph:
    """A graph under construction: x [2, 3, 4] -> an output."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(2, ROWS, WIDTH))
        weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
        self.weight = ir.val("weight", const_value=ir.tensor(weight, name="weight"))
        self.bias = ir.val("bias", const_value=ir.tensor(weight[0], name="bias"))
        self.shapes = {
            name: ir.val(name, const_value=ir.tensor(np.array(shape, np.int64), name=name))
            for name, shape in {"as_rows": (-1, WIDTH), "as_tiles": (-1, ROWS, WIDTH)}.items()
        }

    def add(self, kind: str, *inputs: Value, domain: str = "", **attributes: Any) -> Value:
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=1, name=f"{kind}_{len(self.nodes)}")
        self.nodes.append(node)
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
        rows = kind == "FmmLinear" or inputs[-1] is self.shapes["as_rows"]
        node.outputs[0].shape = ir.Shape((2 * ROWS, WIDTH) if rows else (2, ROWS, WIDTH))
        return node.outputs[0]

    def linear(self, x: Value) -> Value:
        rows = self.add("Reshape", x, self.shapes["as_rows"])
        attributes = logical_attributes(WIDTH, has_bias=True)
        y = self.add(LINEAR.name, rows, self.weight, self.bias, domain=DOMAIN, **attributes)
        return self.add("Reshape", y, self.shapes["as_tiles"])

    def model(self, *outputs: Value) -> ir.Model:
        initializers = [self.weight, self.bias, *self.shapes.values()]
        imports = {"": 23, DOMAIN: 1}
        graph = ir.Graph(
            [self.x], outputs, nodes=self.nodes, initializers=initializers, opset_imports=imports, name="g"
        )
        return ir.Model(graph, ir_version=10)


def block(graph: Graph) -> list[Value]:
    """As in a tower: x + linear(gelu(linear(x)))."""
    hidden = graph.add("Gelu", graph.linear(graph.x), approximate="tanh")
    return [graph.add("Neg", graph.add("Add", graph.x, graph.linear(hidden)))]


def used_twice(graph: Graph) -> list[Value]:
    y = graph.linear(graph.x)
    return [graph.add("Add", graph.add("Gelu", y), y)]


def an_output(graph: Graph) -> list[Value]:
    y = graph.linear(graph.x)
    return [graph.add("Gelu", y), y]


def made_later(graph: Graph) -> list[Value]:
    """The other summand comes after the layer, which could not read it."""
    y = graph.linear(graph.x)
    return [graph.add("Neg", graph.add("Add", y, graph.add("Gelu", graph.x)))]


def the_sum_is_an_output(graph: Graph) -> list[Value]:
    return [graph.add("Add", graph.x, graph.linear(graph.x))]


def run(model: ir.Model) -> list[Array]:
    """The outputs, by the body of FmmLinear."""
    model = model.clone()
    kinds: dict[str, ir.Function] = {}
    for node in model.graph:
        if node.op_type == LINEAR.name:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            key = LINEAR.encode(attributes)
            function = kinds.setdefault(key, function_for(LINEAR, attributes))
            function.name = node.op_type = f"{LINEAR.name}_{list(kinds).index(key)}"
            model.functions[function.identifier()] = function
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, ROWS, WIDTH)).astype(np.float32)
    outputs: list[Array] = session.run(None, {"x": x})
    return outputs


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (block, ["Reshape", "FmmLinear", "Reshape", "Reshape", "Reshape", "FmmLinear", "Reshape", "Neg"]),
        (used_twice, ["Reshape", "FmmLinear", "Reshape", "Gelu", "Add"]),
        (an_output, ["Reshape", "FmmLinear", "Reshape", "Gelu"]),
        (made_later, ["Reshape", "FmmLinear", "Reshape", "Gelu", "Add", "Neg"]),
        (the_sum_is_an_output, ["Reshape", "FmmLinear", "Reshape", "Add"]),
    ],
)
def test_what_is_moved(build: Callable[[Graph], list[Value]], kinds: list[str]) -> None:
    graph = Graph()
    model = graph.model(*build(graph))
    expected = run(model)
    names = [output.name for output in model.graph.outputs]
    fuse_linears(model)
    assert [node.op_type for node in model.graph] == kinds
    for found, own in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(found, own, atol=1e-6)
    assert [output.name for output in model.graph.outputs] == names
