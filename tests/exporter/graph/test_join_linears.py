# SPDX-License-Identifier: Apache-2.0
"""FmmLinears of the same rows become one where that is possible, and the graph computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastmmoe.exporter.check.stored import Initializer, initializers_of
from fastmmoe.exporter.graph.join_linears import join_linears
from fastmmoe.exporter.graph.pack_linears import pack_linears
from fastmmoe.exporter.graph.weights import JoinedTensor, parameter_tensor
from fastmmoe.exporter.ops import DOMAIN, LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.linear.reference import linear_reference
from tests.support.linear_cases import logical_attributes

K = 64
SIZES = {"q": 32, "k": 16, "v": 20}
INT4, INT8 = LinearPacking("int4", 32, zero_points=True), LinearPacking("int8", 128)
Layers = dict[str, dict[str, Any]]


def values_of(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())))


def parameter(name: str, *shape: int) -> ir.Value:
    tensor = parameter_tensor(name, ir.DataType.FLOAT, shape, lambda _: values_of(name, *shape))
    return ir.val(name, ir.DataType.FLOAT, shape, const_value=tensor)


def graph_of(layers: Layers, *, bias: bool = False) -> ir.Model:
    """x -> y of each layer, through an Identity; a layer's `of` is another value that it multiplies."""
    x = {name: ir.val(name, ir.DataType.FLOAT, ("T", K)) for name in ("x", "z")}
    nodes, outputs, initializers = [], [], []
    for name, own in layers.items():
        N = own.get("rows", SIZES[name])
        weights = [parameter(f"attn.{name}.weight", N, K)]
        weights += [parameter(f"attn.{name}.bias", N)] if bias else []
        attributes = logical_attributes(N, has_bias=bias) | own.get("attributes", {})
        node = ir.node(LINEAR.name, [x[own.get("of", "x")], *weights], attributes, domain=DOMAIN)
        node.name, node.outputs[0].name = f"attn.{name}/{LINEAR.name}", f"attn.{name}/{LINEAR.name}"
        node.outputs[0].shape = ir.Shape(("T", N))
        last = ir.node("Identity", [node.outputs[0]])
        last.outputs[0].name = name
        nodes += [node] if own.get("is_output") else [node, last]
        outputs.append(node.outputs[0] if own.get("is_output") else last.outputs[0])
        initializers += weights
    graph = ir.Graph([*x.values()], outputs, nodes=nodes, initializers=initializers, name="g")
    return ir.Model(graph, ir_version=11)


def packing_of(name: str) -> LinearPacking:
    return INT4


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Identity"]


@pytest.mark.parametrize("has_bias", [False, True])
def test_layers_of_the_same_rows_are_one(has_bias: bool) -> None:
    model = graph_of({"q": {}, "k": {}, "v": {}}, bias=has_bias)
    join_linears(model, packing_of)
    joined, split = list(model.graph)[:2]
    assert kinds(model) == [LINEAR.name, "Split"] and joined.name == f"attn.q+k+v/{LINEAR.name}"
    assert joined.attributes["out_features"].as_int() == 68
    assert [value.name for value in split.outputs] == [f"attn.q+k+v/Split.{i}" for i in range(3)]
    assert [node.inputs[0] for node in model.graph if node.op_type == "Identity"] == list(split.outputs)
    widths = model.graph.initializers["attn.q+k+v/widths"].const_value
    assert widths is not None and widths.numpy().tolist() == list(SIZES.values())
    assert split.attributes["axis"].as_int() == 1
    first, rows = 0, {}
    for name, size in SIZES.items():
        rows[name], first = (first, first + size), first + size
    parts = ("weight", "bias") if has_bias else ("weight",)
    assert initializers_of(model) == {
        f"attn.{name}.{part}": Initializer(f"attn.q+k+v.{part}", None, rows[name]) for name in SIZES for part in parts
    }
    expected = [values_of(f"attn.{name}.weight", size, K) for name, size in SIZES.items()]
    tensor = model.graph.initializers["attn.q+k+v.weight"].const_value
    assert isinstance(tensor, JoinedTensor)
    np.testing.assert_array_equal(tensor.numpy(), torch.cat(expected).numpy())


def test_packed_they_compute_what_each_does() -> None:
    model = graph_of({"q": {}, "k": {}, "v": {}})
    join_linears(model, packing_of)
    weights = {f"attn.{name}.weight": values_of(f"attn.{name}.weight", size, K) for name, size in SIZES.items()}
    pack_linears(model, packing_of, lambda name, count: iter(weights[name].split(16)))
    node = model.graph[0]
    x = np.random.default_rng(0).standard_normal((3, K)).astype(np.float32)
    given = {"x": x}
    for name, value in zip(("weight", "scale", "zero"), node.inputs[1:], strict=True):
        assert value is not None and value.const_value is not None
        given[name] = value.const_value.numpy()
    found = linear_reference(given, {name: a.value for name, a in node.attributes.items()})
    own = [x @ INT4.round(weight.numpy()).T for weight in weights.values()]
    np.testing.assert_allclose(found, np.concatenate(own, axis=1), rtol=1e-6, atol=1e-5)


APART: dict[str, Layers] = {
    "other rows": {"q": {}, "k": {"of": "z"}},
    "an activation": {"q": {}, "k": {"attributes": {"activation": "gelu"}}},
    "an output of the graph": {"q": {}, "k": {"is_output": True}},
    "rows that fill no tile": {"q": {"rows": 20}, "k": {}},
    "one layer": {"q": {}},
}


@pytest.mark.parametrize("layers", APART.values(), ids=APART)
def test_others_stay_as_they_are(layers: Layers) -> None:
    model = graph_of(layers)
    join_linears(model, packing_of)
    assert kinds(model) == [LINEAR.name] * len(layers)


def test_other_packings_and_shared_weights_stay_as_they_are() -> None:
    model = graph_of({"q": {}, "k": {}})
    join_linears(model, lambda name: INT8 if ".k." in name else INT4)
    assert kinds(model) == [LINEAR.name] * 2
    model = graph_of({"q": {}, "k": {}})
    weight = model.graph[0].inputs[1]
    assert weight is not None
    model.graph.append(ir.node("Identity", [weight]))
    join_linears(model, packing_of)
    assert kinds(model) == [LINEAR.name] * 2
