# SPDX-License-Identifier: Apache-2.0
"""The ONNX graph of a program: the template of each step's kind, cloned with the step's own weights and names.

What it costs goes by the number of kinds; a layer more is a few dozen nodes more to clone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
import torch
from onnx_ir.passes import common as passes
from torch import nn

from fastmmoe import __version__
from fastmmoe.exporter.graph.templates import Dim, Template, as_expression, templates_of
from fastmmoe.exporter.graph.tracing import GraphInput
from fastmmoe.exporter.graph.weights import IR_DTYPES, ParameterTensor, parameter_tensor
from fastmmoe.exporter.models.steps import Part, Program, Step
from fastmmoe.exporter.ops import DOMAIN

IR_VERSION = 11
Load = Callable[[str], torch.Tensor]


def trace(
    module: nn.Module, program: Program, inputs: list[GraphInput], load: Load, *, name: str, opset: int
) -> ir.Model:
    """The ONNX graph of a module as a program of steps.

    Args:
        module: what the steps' parameters and submodules belong to, by whose paths they are named; none of its values
            is needed.
        inputs: what the program runs on.
        load: gives a parameter's values by its name in the module; called when the graph is written, once each time.
        name: the graph's.
        opset: version of the standard operators; what it lacks is spelled out.
    Returns:
        Model with weights that are read lazily (`ParameterTensor`), nodes named by their step and their module's path,
        no metadata of this machine. Its bytes do not depend on what was traced before.
    """
    templates = templates_of(program.steps, opset=opset)
    stitcher = _Stitcher(module, inputs, load)
    for step, template in zip(program.steps, templates, strict=True):
        stitcher.add(step, template)
    return stitcher.finish(program.outputs, name, opset)


class _Stitcher:
    """Clones templates one after the other. `_values` are those of the program by name, `_shapes` theirs."""

    def __init__(self, module: nn.Module, inputs: list[GraphInput], load: Load) -> None:
        self._parameters = {id(p): name for name, p in module.named_parameters()}
        self._modules = {id(m): name for name, m in module.named_modules()}
        self._load = load
        self._inputs = [_value(i.name, i.shape, IR_DTYPES[i.dtype]) for i in inputs]
        self._values = dict(zip((i.name for i in inputs), self._inputs, strict=True))
        self._shapes: dict[str, tuple[Dim, ...]] = {i.name: _expressions(i.shape) for i in inputs}
        self._nodes: list[ir.Node] = []
        self._paths: dict[int, str] = {}
        self._weights: dict[str, dict[tuple[int, ...] | None, ir.Value]] = defaultdict(dict)
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def add(self, step: Step, template: Template) -> None:
        """Clone the template of a step."""
        symbols = self._bind(step)
        parameters = dict(step.module.named_parameters())
        values: dict[int, ir.Value] = {id(v): self._read(step, local) for local, v in template.inputs.items()}
        sources = {id(v): parameters[local] for local, v in template.parameters.items()}
        values |= {id(v): self._constant(v.const_value) for v in template.constants if v.const_value is not None}
        shapes: dict[int, tuple[Dim, ...] | None] = {}
        for node in template.nodes:
            if node.op_type == "Transpose" and id(node.inputs[0]) in sources:
                # Linear weights are almost all of a vision tower: they are transposed when they are written.
                order = tuple(node.attributes["perm"].as_ints())
                values[id(node.outputs[0])] = self._weight(sources[id(node.inputs[0])], order)
                continue
            for value in node.inputs:
                if id(value) in sources and id(value) not in values:
                    values[id(value)] = self._weight(sources[id(value)], None)
            new = ir.Node(
                node.domain,
                node.op_type,
                [None if v is None else values[id(v)] for v in node.inputs],
                node.attributes.values(),
                overload=node.overload,
                num_outputs=len(node.outputs),
                version=node.version,
            )
            for old, value in zip(node.outputs, new.outputs, strict=True):
                shapes[id(old)] = shape = _substituted(template.shapes[id(old)], symbols)
                value.type, value.shape = old.type, None if shape is None else _shape(shape)
                values[id(old)] = value
            self._append(new, self._path(step, template.paths[id(node)]))
        for local, name in step.writes.items():
            output = template.outputs[local]
            self._values[name], found = values[id(output)], shapes[id(output)]
            assert found is not None, f"{step.name}: {local} has no shape"
            self._shapes[name] = found

    def finish(self, outputs: dict[str, str], name: str, opset: int) -> ir.Model:
        """The model with these outputs of the graph, by names of the program."""
        results = [self._values[inner] for inner in outputs.values()]
        for i, value in enumerate(value for node in self._nodes for value in node.outputs):
            value.name = f"v{i}"
        graph = ir.Graph(
            self._inputs,
            results,
            nodes=self._nodes,
            initializers=[*self._named_weights(), *self._constants.values()],
            opset_imports={"": opset} | ({DOMAIN: 1} if any(node.domain for node in self._nodes) else {}),
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="fastmmoe", producer_version=__version__)
        passes.RemoveUnusedNodesPass()(model)
        passes.CommonSubexpressionEliminationPass()(model)
        self._name(graph, list(outputs))
        return model

    def _bind(self, step: Step) -> dict[sympy.Symbol, Dim]:
        """Symbol of the step -> what it is in the graph. Every use of a symbol must mean the same."""
        symbols: dict[sympy.Symbol, Dim] = {}
        for local, (shape, dtype) in step.takes.items():
            source = step.reads[local]
            value = self._values[source.name if isinstance(source, Part) else source]
            actual = (1,) if isinstance(source, Part) else self._shapes[source]
            where = f"{step.name or 'model'}: {local} is {value.dtype}{list(actual)}, expected {dtype}{list(shape)}"
            if len(actual) != len(shape) or value.dtype != IR_DTYPES[dtype]:
                raise ValueError(where)
            for d, a in zip(shape, actual, strict=True):
                known = d if isinstance(d, int) else symbols.setdefault(sympy.Symbol(d, integer=True), a)
                if known is None or sympy.expand(sympy.sympify(known) - a) != 0:
                    raise ValueError(where)
        return symbols

    def _read(self, step: Step, local: str) -> ir.Value:
        source = step.reads[local]
        if not isinstance(source, Part):
            return self._values[source]
        vector = self._values[source.name]
        first, end, axis = (self._constant(ir.tensor(np.array([n]))) for n in (source.place, source.place + 1, 0))
        node = ir.Node("", "Slice", [vector, first, end, axis], num_outputs=1)
        node.outputs[0].type, node.outputs[0].shape = vector.type, ir.Shape([1])
        self._append(node, step.name)
        return node.outputs[0]

    def _append(self, node: ir.Node, path: str) -> None:
        self._nodes.append(node)
        self._paths[id(node)] = path

    def _path(self, step: Step, local: str) -> str:
        """What a node is named after. A site asks its layer's router: that node is the site's, not the MoE block's."""
        own = self._modules.get(id(step.module.get_submodule(local)), "")
        if own and f"{own}.".startswith(f"{step.name}." if step.name else ""):
            return own
        return ".".join(filter(None, (step.name, local)))

    def _weight(self, parameter: nn.Parameter, order: tuple[int, ...] | None) -> ir.Value:
        name = self._parameters[id(parameter)]
        kinds = self._weights[name]
        if order not in kinds:
            tensor = parameter_tensor(name, IR_DTYPES[parameter.dtype], parameter.shape, self._load, order)
            kinds[order] = _value(name, tensor.shape.numpy(), tensor.dtype)
            kinds[order].const_value = tensor
        return kinds[order]

    def _named_weights(self) -> list[ir.Value]:
        """All weights; of a parameter that is stored in two orders the transposed one gets another name."""
        for name, kinds in self._weights.items():
            for order, value in kinds.items():
                value.name = name if order is None or len(kinds) == 1 else f"{name}.transposed"
                assert isinstance(value.const_value, ParameterTensor)
                value.const_value.name = value.name
        return [value for kinds in self._weights.values() for value in kinds.values()]

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        array = tensor.numpy()
        key = (tensor.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            value = ir.Tensor(np.array(array), dtype=tensor.dtype, name=name)
            self._constants[key] = _value(name, array.shape, tensor.dtype)
            self._constants[key].const_value = value
        return self._constants[key]

    def _name(self, graph: ir.Graph, output_names: list[str]) -> None:
        """Nodes get their step's name and module's path, values their node's name, outputs those of the graph."""
        outputs = {id(value) for value in graph.outputs}
        counts: Counter[str] = Counter()
        for node in graph:
            path = self._paths[id(node)]
            base = f"{path}/{node.op_type}" if path else node.op_type
            counts[base] += 1
            node.name = base if counts[base] == 1 else f"{base}_{counts[base]}"
            for i, value in enumerate(node.outputs):
                if id(value) not in outputs and value.name:
                    value.name = node.name if len(node.outputs) == 1 else f"{node.name}.{i}"
        for value, name in zip(graph.outputs, output_names, strict=True):
            value.name = name


def _value(name: str, shape: Sequence[int | str], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _expressions(shape: tuple[int | str, ...]) -> tuple[Dim, ...]:
    return tuple(d if isinstance(d, int) else as_expression(d) for d in shape)


def _substituted(shape: tuple[Dim, ...] | None, symbols: dict[sympy.Symbol, Dim]) -> tuple[Dim, ...] | None:
    if shape is None:
        return None
    return tuple(d if d is None or isinstance(d, int) else _simple(d.subs(symbols, simultaneous=True)) for d in shape)


def _simple(dim: sympy.Expr) -> Dim:
    found = sympy.expand(dim)
    return int(found) if found.is_Integer else found


def _shape(shape: tuple[Dim, ...]) -> ir.Shape:
    return ir.Shape([d if d is None or isinstance(d, int) else str(d) for d in shape])
