# SPDX-License-Identifier: Apache-2.0
"""One call of the dynamo exporter: a module without values becomes nodes that nothing has optimised yet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from onnx_ir.passes import common as passes
from torch.export import Dim

from fastmmoe.exporter.ops import ATTENTION, DOMAIN, LINEAR, OPS, ROTARY, SPARSE_MOE, TOKEN_PRUNE, VISION_ATTENTION
from fastmmoe.exporter.ops.attention import torch_op as _attention  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.linear import torch_op as _linear  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.rotary import torch_op as _rotary  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.schema import register_schemas
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.vision_attention import torch_op as _vision  # noqa: F401  (registers the operator)

MAX_DIMENSION = 1 << 20

_fastmmoe = onnxscript.values.Opset(DOMAIN, 1)


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph: name, shape with symbolic dimensions as strings, dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


def export_module(
    module: torch.nn.Module, groups: list[list[GraphInput]], least: Callable[[str], int], *, opset: int
) -> tuple[ir.Model, list[str]]:
    """The nodes of a module whose forward takes and gives a dict of named tensors.

    Args:
        module: parameters on the meta device.
        groups: its inputs; those of two groups have no dimension in common, and know nothing of each other.
        least: the least value of a symbolic dimension.
        opset: version of the standard operators; what it lacks is spelled out.
    Returns:
        The model, its inputs in that order, its initializers named as the parameters and without values; the
        names of its outputs in order.
    """
    register_schemas()
    example, dims = _examples(groups), dict[str, Any]()
    shapes = {i.name: _dynamic_shape(i, dims, least) for inputs in groups for i in inputs}
    with torch.no_grad(), torch.device("meta"), quiet():
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
                torch.ops.fastmmoe.vision_attention.default: _translate_vision_attention,
                torch.ops.fastmmoe.linear.default: _translate_linear,
                torch.ops.fastmmoe.rotary.default: _translate_rotary,
            },
        )
    assert traced is not None and traced.exported_program is not None
    output_names = list(traced.exported_program.call_spec.out_spec.context)  # type: ignore[union-attr]
    passes.InlinePass()(traced.model)
    _drop_absent_outputs(traced.model)
    return traced.model, output_names


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


def _translate_vision_attention(qkv: Any, attributes: str) -> Any:
    return _fastmmoe.FmmVisionAttention(qkv, **VISION_ATTENTION.decode(attributes))


def _translate_linear(x: Any, weights: Any, attributes: str) -> Any:
    return _fastmmoe.FmmLinear(x, *weights, **LINEAR.decode(attributes))


def _translate_rotary(x: Any, cos: Any, sin: Any, norm: Any, attributes: str) -> Any:
    return _fastmmoe.FmmRotary(x, cos, sin, *norm, **ROTARY.decode(attributes))


def _drop_absent_outputs(model: ir.Model) -> None:
    """Leave our operators' nodes the outputs that they have with their attributes: onnxscript gives them all."""
    specs = {spec.name: spec for spec in OPS}
    for node in model.graph:
        if node.domain == DOMAIN:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            node.resize_outputs(len(specs[node.op_type].outputs_for(attributes)))


def _examples(groups: list[list[GraphInput]]) -> dict[str, torch.Tensor]:
    found = {}
    for inputs in groups:
        # Distinct example sizes, so that the tracer cannot take two dimensions for one.
        sizes: dict[str, int] = {}
        for i in inputs:
            shape = [d if isinstance(d, int) else sizes.setdefault(d, 64 + 3 * len(sizes)) for d in i.shape]
            found[i.name] = torch.empty(shape, dtype=i.dtype, device="meta")
    return found


def _dynamic_shape(graph_input: GraphInput, dims: dict[str, Any], least: Callable[[str], int]) -> dict[int, Any]:
    return {
        axis: dims.setdefault(d, Dim(d, min=least(d), max=MAX_DIMENSION))
        for axis, d in enumerate(graph_input.shape)
        if isinstance(d, str)
    }


@contextmanager
def quiet() -> Iterator[None]:
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
