# SPDX-License-Identifier: Apache-2.0
"""Checks the portable variant: it is the native graph node by node, and each kind of operator's body computes the same.

A body is run on what a node of its kind was given in torch, in a prefill and in a decode step. The whole variant need
not run: it differs from the native graph in the bodies alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastmmoe.exporter.check.stored import bits_of
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.graph.weights import IR_DTYPES, as_tensor
from fastmmoe.exporter.ops import DOMAIN, OPS, SPARSE_MOE
from fastmmoe.exporter.ops.contract import Attributes, OpSpec
from fastmmoe.exporter.ops.functions import OPSET, function_for
from fastmmoe.exporter.ops.schema import attribute_value
from fastmmoe.runtime.backends.onnxruntime import run_model
from fastmmoe.runtime.bundle.manifest import graph_file
from fastmmoe.runtime.types import Array

_TORCH_NAMES = {
    "fastmmoe::attention": "FmmAttention",
    "fastmmoe::sparse_moe": "FmmSparseMoE",
    "fastmmoe::token_prune": "FmmTokenPrune",
    "fastmmoe::vision_attention": "FmmVisionAttention",
}
TRIES = 8
ROWS = 8
"""Of a call of FmmSparseMoE."""
_SPECS = {spec.name: spec for spec in OPS}


def check_same_graph(directory: Path, graph: str = "language_model") -> None:
    """Raise CheckFailed unless the portable graph is the native one, each operator with the body of its attributes."""
    native, portable = (
        onnx.load(str(directory / graph_file(graph, portable=is_portable)), load_external_data=False)
        for is_portable in (False, True)
    )
    bodies = {function.name: function for function in portable.functions}
    if len(native.graph.node) != len(portable.graph.node):
        raise CheckFailed(
            f"{len(portable.graph.node)} nodes in the portable graph, {len(native.graph.node)} in the other"
        )
    for ours, theirs in zip(native.graph.node, portable.graph.node, strict=True):
        if ours.domain == DOMAIN:
            _check_body(ours, theirs, bodies)
            theirs.op_type = ours.op_type
        if ours.SerializeToString(deterministic=True) != theirs.SerializeToString(deterministic=True):
            raise CheckFailed(f"node {ours.name} is another one in the portable graph")
    for field in ("input", "output", "initializer"):
        if list(getattr(native.graph, field)) != list(getattr(portable.graph, field)):
            raise CheckFailed(f"the portable graph has another {field} than the other")


def _check_body(ours: onnx.NodeProto, theirs: onnx.NodeProto, bodies: dict[str, onnx.FunctionProto]) -> None:
    attributes = {a.name: attribute_value(a) for a in ours.attribute}
    body = bodies.get(theirs.op_type)
    expected = ir.to_proto(function_for(_SPECS[ours.op_type], attributes))
    expected.name = theirs.op_type
    if body is None or body.SerializeToString(deterministic=True) != expected.SerializeToString(deterministic=True):
        raise CheckFailed(f"node {ours.name} has another body in the portable graph than its attributes ask for")


class BodyChecks(TorchDispatchMode):
    """While it is on, runs the body of each operator that torch computes, once for each kind of node and of call.

    A call that prunes is another kind than one that does not. Where a body differs, so may two correct ones on a near
    tie: the next calls of the kind decide, up to `TRIES`.

    Args:
        limit: greatest difference that settles a kind.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit
        self._found: dict[tuple[str, Hashable], list[float]] = {}

    @property
    def worst(self) -> dict[str, float]:
        """Operator's name -> greatest difference of an output, of each kind's closest call."""
        found: dict[str, float] = {}
        for (name, _), differences in self._found.items():
            found[name] = max(min(differences), found.get(name, 0.0))
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        spec = _SPECS.get(_TORCH_NAMES.get(func.name(), ""))
        if spec is not None:
            self._check(spec, args, found)
        return found

    def _check(self, spec: OpSpec, args: Any, found: Any) -> None:
        attributes = spec.decode(args[-1])
        tensors = [tensor for arg in args[:-1] for tensor in (arg if isinstance(arg, list) else [arg])]
        inputs = dict(zip((t.name for t in spec.inputs_for(attributes)), tensors, strict=True))
        outputs = [found] if isinstance(found, torch.Tensor) else list(found)
        kind = spec.name, (args[-1], _way(attributes, inputs, outputs), *(tensor.dtype for tensor in tensors))
        differences = self._found.setdefault(kind, [])
        if len(differences) == TRIES or any(d <= self._limit for d in differences):
            return
        if spec.name == SPARSE_MOE.name:
            inputs, outputs = _some_rows(inputs, outputs)
        results = run_model(_model_of(spec, attributes, inputs), {n: bits_of(t) for n, t in inputs.items()})
        worst = [_distance(result, output) for result, output in zip(results, outputs, strict=True)]
        differences.append(np.inf if np.isnan(worst).any() else max(worst))


def run_body(spec: OpSpec, attributes: Attributes, inputs: dict[str, Array]) -> list[Array]:
    """Outputs of the operator's body in ONNX Runtime, float64."""
    tensors = {name: as_tensor(values) for name, values in inputs.items()}
    return run_model(_model_of(spec, attributes, tensors), {name: bits_of(tensor) for name, tensor in tensors.items()})


def _some_rows(
    inputs: dict[str, torch.Tensor], outputs: list[torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Of FmmSparseMoE some text and visual tokens: rows do not know of each other, and all would take every expert."""
    visual_index = inputs["visual_index"]
    start = max(0, int(visual_index[0]) - ROWS // 2) if len(visual_index) else 0
    rows = slice(start, start + ROWS)
    own = visual_index[(visual_index >= start) & (visual_index < start + ROWS)] - start
    cut = {name: inputs[name][rows] for name in ("hidden_states", "router_logits")} | {"visual_index": own}
    return inputs | cut, [output[rows] for output in outputs]


def _way(attributes: Attributes, inputs: dict[str, torch.Tensor], outputs: list[torch.Tensor]) -> Hashable:
    """What a call has a body do: the unmodified model keeps every row and every expert, so that it would hide others.

    One row or many, which inputs have none, whether rows go, and whether visual tokens take fewer experts.
    """
    rows = len(next(iter(inputs.values())))
    has_fewer = "visual_top_k" in inputs and int(inputs["visual_top_k"][0]) < int(attributes["top_k"])
    return rows == 1, len(outputs[0]) == rows, has_fewer, *(tensor.numel() == 0 for tensor in inputs.values())


def _distance(result: Array, expected: torch.Tensor) -> float:
    values = expected.double().numpy()
    return float(np.abs(result.astype(np.float64) - values).max(initial=0)) if result.shape == values.shape else np.inf


def _model_of(spec: OpSpec, attributes: Attributes, inputs: dict[str, torch.Tensor]) -> bytes:
    """One call of the operator's body; outputs of bfloat16 become float32."""
    values = [
        ir.Value(name=name, type=ir.TensorType(IR_DTYPES[tensor.dtype]), shape=ir.Shape([None] * tensor.ndim))
        for name, tensor in inputs.items()
    ]
    names = [tensor.name for tensor in spec.outputs_for(attributes)]
    node = ir.node(spec.name, values, dict(attributes), domain=DOMAIN, num_outputs=len(names))
    nodes = [node, *_casts(node.outputs)]
    graph = ir.Graph(
        values, [n.outputs[0] for n in nodes[1:]], nodes=nodes, name=spec.name, opset_imports={"": OPSET, DOMAIN: 1}
    )
    function = function_for(spec, attributes)
    model = ir.Model(graph, ir_version=10, functions=[function])
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto.SerializeToString()


def _casts(outputs: Any) -> Iterator[ir.Node]:
    """float64 holds every output exactly."""
    for i, output in enumerate(outputs):
        output.name = f"output.{i}"
        cast = ir.node("Cast", [output], {"to": ir.DataType.DOUBLE})
        cast.outputs[0].name = f"result.{i}"
        cast.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
        yield cast
