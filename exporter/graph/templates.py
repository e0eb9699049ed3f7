# SPDX-License-Identifier: Apache-2.0
"""Templates: the graph of each kind of step, traced once in a process.

All kinds that are not known yet are traced in one call of the exporter, side by side, as the call itself is what costs.
From then on they know nothing of each other: a template is the same whichever others were traced beside it, and before
it. Parameters are inputs of it, so that no optimisation can put the values of one layer into the graph of all.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
import onnxscript.optimizer
import sympy
import torch
from torch import nn

from fastmmoe.exporter.graph.fingerprint import fingerprint
from fastmmoe.exporter.graph.tracing import GraphInput, export_module, quiet
from fastmmoe.exporter.models.steps import Step, Take
from fastmmoe.runtime.bundle.graph_io import least_size

Dim: TypeAlias = "int | sympy.Expr | None"


@dataclass(frozen=True)
class Template:
    """The graph of a kind of step; its nodes are cloned, never changed.

    Attributes:
        nodes: in order.
        inputs, outputs, parameters: values by the step's own names.
        constants: values that the template brings along.
        shapes: of every value that a node makes, by identity, in the symbols of the step's inputs.
        paths: of the submodule that a node comes from, by identity; "" = the step's own module.
    """

    nodes: list[ir.Node]
    inputs: dict[str, ir.Value]
    outputs: dict[str, ir.Value]
    parameters: dict[str, ir.Value]
    constants: list[ir.Value]
    shapes: dict[int, tuple[Dim, ...] | None]
    paths: dict[int, str]


_known: dict[Hashable, Template] = {}


def templates_of(steps: Iterable[Step], *, opset: int) -> list[Template]:
    """The template of each step; all that are new are traced now, together."""
    keys = []
    new: dict[Hashable, Step] = {}
    for step in steps:
        key = (fingerprint(step), opset, torch.get_default_dtype())
        keys.append(key)
        if key not in _known:
            new.setdefault(key, step)
    if new:
        _known.update(zip(new, _trace_kinds(list(new.values()), opset), strict=True))
    return [_known[key] for key in keys]


class _Kinds(nn.Module):
    """Steps side by side, each on inputs of its own."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = [(f"k{k}", tuple(step.takes), tuple(step.writes)) for k, step in enumerate(steps)]
        for k, step in enumerate(steps):
            setattr(self, f"k{k}", _without_values(step.module))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for kind, takes, writes in self.steps:
            results = getattr(self, kind)({name: inputs[f"{kind}.{name}"] for name in takes})
            found |= {f"{kind}.{name}": results[name] for name in writes}
        return found


def _without_values(module: nn.Module) -> nn.Module:
    """A copy on the meta device, which shares nothing with other steps."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    copied: nn.Module = copy.deepcopy(module, empty)
    return copied


def _trace_kinds(steps: list[Step], opset: int) -> list[Template]:
    module = _Kinds(steps)
    groups = [_inputs_of(f"k{k}", step) for k, step in enumerate(steps)]
    model, output_names = export_module(module, groups, lambda size: least_size(size.partition("_")[2]), opset=opset)
    inputs = dict(zip((i.name for group in groups for i in group), model.graph.inputs, strict=True))
    outputs = dict(zip(output_names, model.graph.outputs, strict=True))
    return [_cut(model, f"k{k}", step, getattr(module, f"k{k}"), inputs, outputs) for k, step in enumerate(steps)]


def _inputs_of(kind: str, step: Step) -> list[GraphInput]:
    return [
        GraphInput(f"{kind}.{name}", tuple(d if isinstance(d, int) else f"{kind}_{d}" for d in shape), dtype)
        for name, (shape, dtype) in step.takes.items()
    ]


def _cut(
    model: ir.Model, kind: str, step: Step, module: nn.Module, inputs: dict[str, ir.Value], outputs: dict[str, ir.Value]
) -> Template:
    """One kind of a traced model, optimised by itself."""
    weights = {name: model.graph.initializers.get(f"{kind}.{name}") for name, _ in module.named_parameters()}
    given = {name: inputs[f"{kind}.{name}"] for name in step.takes}
    parameters = {name: value for name, value in weights.items() if value is not None}
    results = {name: outputs[f"{kind}.{name}"] for name in step.writes}
    bounds = [*given.values(), *parameters.values()]
    graph = ir.convenience.extract(model.graph, bounds, list(results.values()))
    for value in graph.inputs:
        if value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]
        value.const_value = None
    _read_lengths_in_order(graph, list(step.takes.values()))
    with quiet():
        onnxscript.optimizer.optimize_ir(ir.Model(graph, ir_version=model.ir_version))
    nodes = list(graph)
    assert not [node for node in nodes for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH], kind
    paths: dict[int, str] = {}
    for node in nodes:
        paths[id(node)] = _path(node, kind, paths)
    return Template(
        nodes,
        dict(zip(given, graph.inputs, strict=False)),
        dict(zip(results, graph.outputs, strict=True)),
        dict(zip(parameters, graph.inputs[len(given) :], strict=True)),
        _constants(graph),
        {id(value): _local_shape(value, kind) for node in nodes for value in node.outputs},
        paths,
    )


def _constants(graph: ir.Graph) -> list[ir.Value]:
    """Its initializers by their first use: their own order depends on what is traced beside."""
    kept = {id(value) for value in graph.initializers.values()}
    used = {id(value): value for node in graph for value in node.inputs if value is not None and id(value) in kept}
    outputs = {id(value): value for value in graph.outputs if value is not None and id(value) in kept}
    return list((used | outputs).values())


def _read_lengths_in_order(graph: ir.Graph, takes: list[Take]) -> None:
    """Read each length from the first input that has it, first of all and in the order of the inputs.

    The exporter takes one of the inputs that have it; which one depends on what is traced beside.
    """
    places: dict[str, tuple[int, int]] = {}
    for number, (shape, _) in enumerate(takes):
        for axis, d in enumerate(shape):
            if isinstance(d, str):
                places.setdefault(d, (number, axis))
    numbers = {id(value): number for number, value in enumerate(graph.inputs[: len(takes)])}
    found: list[tuple[tuple[int, int], ir.Node]] = []
    for node in graph:
        given = numbers.get(id(node.inputs[0])) if node.op_type == "Shape" else None
        if given is None or "end" not in node.attributes:
            continue
        axis = node.attributes["start"].as_int()
        d = takes[given][0][axis]
        if isinstance(d, str) and node.attributes["end"].as_int() == axis + 1:
            found.append((places[d], node))
    graph.remove([node for _, node in found])
    found.sort(key=lambda pair: pair[0])
    for (number, axis), node in found:
        node.replace_input_with(0, graph.inputs[number])
        node.attributes.update({"start": ir.AttrInt64("start", axis), "end": ir.AttrInt64("end", axis + 1)})
    if found:
        graph.insert_before(graph[0], [node for _, node in found])


def _path(node: ir.Node, kind: str, paths: dict[int, str]) -> str:
    """Path of the submodule that a node comes from; a node that an optimisation made takes its first producer's."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    # The last scope is the call itself; the tracer's own helpers carry no known module name.
    own = [scope for scope in scopes[:-1] if scope == kind or scope.startswith(f"{kind}.")]
    if own:
        return own[-1].removeprefix(kind).removeprefix(".")
    producers = (value.producer() for value in node.inputs if value is not None)
    return next((paths[id(p)] for p in producers if p is not None and id(p) in paths), "")


def _local_shape(value: ir.Value, kind: str) -> tuple[Dim, ...] | None:
    return None if value.shape is None else tuple(_local_dim(d, f"{kind}_") for d in value.shape)


def _local_dim(dim: Any, prefix: str) -> Dim:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else as_expression(re.sub(rf"\b{prefix}(?=\w)", "", dim.value))


def as_expression(text: str) -> sympy.Expr:
    """A symbolic dimension as the exporter writes it."""
    names = {name: sympy.Symbol(name, integer=True) for name in re.findall(r"[A-Za-z_]\w*", text)}
    functions = {name: getattr(sympy, name) for name in ("Max", "Min", "Mod", "floor") if name in names}
    return sympy.sympify(text, locals=names | functions)
