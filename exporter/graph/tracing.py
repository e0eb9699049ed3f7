# SPDX-License-Identifier: Apache-2.0
"""Traces a module without values to an ONNX graph: dynamo exporter, readable names, weights read when written."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript
import onnxscript.optimizer
import torch
from torch.export import Dim

from fastmmoe import __version__
from fastmmoe.exporter.graph.weights import ParameterTensor, parameter_tensor
from fastmmoe.exporter.ops import ATTENTION, DOMAIN, OPS, SPARSE_MOE, TOKEN_PRUNE
from fastmmoe.exporter.ops.attention import torch_op as _attention  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.schema import register_schemas
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)

IR_VERSION = 11
MAX_DIMENSION = 1 << 20

_fastmmoe = onnxscript.values.Opset(DOMAIN, 1)


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph: name, shape with symbolic dimensions as strings, dtype.

    `minimum` is the smallest value the symbolic dimensions may take.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    minimum: int = 0


def trace(
    module: torch.nn.Module,
    inputs: list[GraphInput],
    load: Callable[[str], torch.Tensor],
    *,
    name: str,
    opset: int,
) -> ir.Model:
    """The ONNX graph of a module whose forward takes and gives a dict of named tensors.

    Args:
        module: parameters on the meta device; none of their values is needed.
        load: gives a parameter's values by its name in the module; called when the graph is written, once each time.
        name: the graph's.
        opset: version of the standard operators; what it lacks is spelled out.
    Returns:
        Model with weights that are read lazily, nodes named by module path, no metadata of this machine.
    """
    register_schemas()
    sizes: dict[str, int] = {}
    dims: dict[str, Any] = {}
    example = {i.name: torch.empty(_example_shape(i, sizes), dtype=i.dtype, device="meta") for i in inputs}
    shapes = {i.name: _dynamic_shape(i, dims) for i in inputs}
    with torch.no_grad(), torch.device("meta"), _quiet():
        traced = torch.onnx.export(
            module.eval(),
            (),
            kwargs={"inputs": example},
            dynamic_shapes={"inputs": shapes},
            dynamo=True,
            opset_version=opset,
            verbose=False,
            optimize=False,
            custom_translation_table={
                torch.ops.fastmmoe.sparse_moe.default: _translate_sparse_moe,
                torch.ops.fastmmoe.token_prune.default: _translate_token_prune,
                torch.ops.fastmmoe.attention.default: _translate_attention,
            },
        )
    assert traced is not None and traced.exported_program is not None
    output_names = list(traced.exported_program.call_spec.out_spec.context)  # type: ignore[union-attr]
    model = traced.model
    _drop_absent_outputs(model)
    _attach_weights(model, module, load)
    with _quiet():
        onnxscript.optimizer.optimize_ir(model, should_fold=_transpose_when_written)
    _rename(model, [i.name for i in inputs], output_names)
    _clean(model, name, opset)
    return model


def _translate_sparse_moe(
    hidden_states: Any,
    router_logits: Any,
    visual_index: Any,
    visual_top_k: Any,
    correction_bias: Any,
    gate_up: Any,
    down: Any,
    biases: Any,
    attributes: str,
) -> Any:
    tensors = (hidden_states, router_logits, visual_index, visual_top_k, correction_bias, gate_up, down, *biases)
    return _fastmmoe.FmmSparseMoE(*tensors, **SPARSE_MOE.decode(attributes))


def _translate_token_prune(
    hidden_states: Any,
    residual: Any,
    routing_probs: Any,
    attention: Any,
    visual_index: Any,
    visual_offsets: Any,
    keep_slots: Any,
    keep_offsets: Any,
    merge_slots: Any,
    merge_offsets: Any,
    alpha: Any,
    attributes: str,
) -> Any:
    states = (hidden_states, residual, routing_probs, attention)
    visual = (visual_index, visual_offsets)
    slots = (keep_slots, keep_offsets, merge_slots, merge_offsets)
    return _fastmmoe.FmmTokenPrune(*states, *visual, *slots, alpha, **TOKEN_PRUNE.decode(attributes))


def _translate_attention(
    query: Any,
    key: Any,
    past_key: Any,
    past_lengths: Any,
    sequence_ids: Any,
    sequence_offsets: Any,
    others: Any,
    attributes: str,
) -> Any:
    tensors = (query, key, past_key, past_lengths, sequence_ids, sequence_offsets, *others)
    return _fastmmoe.FmmAttention(*tensors, **ATTENTION.decode(attributes))


def _drop_absent_outputs(model: ir.Model) -> None:
    """Leave our operators' nodes the outputs that they have with their attributes: onnxscript gives them all."""
    specs = {spec.name: spec for spec in OPS}
    for node in model.graph:
        if node.domain == DOMAIN:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            node.resize_outputs(len(specs[node.op_type].outputs_for(attributes)))


def _example_shape(graph_input: GraphInput, sizes: dict[str, int]) -> list[int]:
    # Distinct example sizes, so that the tracer cannot take two dimensions for one.
    return [d if isinstance(d, int) else sizes.setdefault(d, 64 + 3 * len(sizes)) for d in graph_input.shape]


def _dynamic_shape(graph_input: GraphInput, dims: dict[str, Any]) -> dict[int, Any]:
    return {
        axis: dims.setdefault(d, Dim(d, min=graph_input.minimum, max=MAX_DIMENSION))
        for axis, d in enumerate(graph_input.shape)
        if isinstance(d, str)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on libraries that are not there and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _attach_weights(model: ir.Model, module: torch.nn.Module, load: Callable[[str], torch.Tensor]) -> None:
    """Give every initializer that stands for a parameter a tensor that is read when it is written."""
    parameters = dict(module.named_parameters())
    for name, value in model.graph.initializers.items():
        if name in parameters:
            assert value.dtype is not None
            value.const_value = parameter_tensor(name, value.dtype, parameters[name].shape, load)


def _transpose_when_written(node: ir.Node) -> bool | None:
    """Asked by constant folding for each node whose inputs are constant: whether to compute it now; None = its rules.

    Transposed weights of linear layers are almost all of a vision tower, and folding keeps what it computed. So a
    parameter's transposition is left out of the graph here, as folding would, but computed when it is written.
    """
    (value, *others), (output,) = node.inputs, node.outputs
    if node.op_type != "Transpose" or value is None or not isinstance(value.const_value, ParameterTensor):
        return None
    if len(value.consumers()) > 1:
        return None
    assert not others and node.graph is not None and output.name is not None
    name = output.name
    tensor = value.const_value.permuted(node.attributes["perm"].as_ints(), name)
    # The node is dead from here on and is removed with what else is; its output must not keep the name.
    output.name = f"{name}.unused"
    initializer = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    node.graph.register_initializer(initializer)
    output.replace_all_uses_with(initializer)
    return False


def _rename(model: ir.Model, input_names: list[str], output_names: list[str]) -> None:
    """Inputs and outputs get their ABI names, nodes their module's path, values their node's name."""
    graph = model.graph
    outputs = {id(value) for value in graph.outputs}
    paths: dict[int, str] = {}
    counts: Counter[str] = Counter()
    for node in graph:
        path = paths[id(node)] = _module_path(node, paths)
        base = f"{path}/{node.op_type}" if path else node.op_type
        counts[base] += 1
        node.name = base if counts[base] == 1 else f"{base}_{counts[base]}"
        for i, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}.{i}"
    for value, name in zip(graph.inputs, input_names, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name


def _module_path(node: ir.Node, paths: dict[int, str]) -> str:
    """Path of the module a node came from; a node that an optimisation made takes its first producer's."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    if len(scopes) > 1:
        # The last scope is the call itself; the tracer's own helpers carry no dotted or known module name.
        return "" if scopes[-2].startswith("_") else scopes[-2]
    producers = (value.producer() for value in node.inputs if value is not None)
    return next((paths[id(p)] for p in producers if p is not None and id(p) in paths), "")


def _clean(model: ir.Model, name: str, opset: int) -> None:
    """Remove what the tracer recorded about this machine and this run."""
    graph = model.graph
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.ir_version = "fastmmoe", __version__, IR_VERSION
    graph.name, graph.doc_string, model.doc_string = name, None, None
    model.opset_imports.update({"": opset})
