# SPDX-License-Identifier: Apache-2.0
"""The function body of an operator in a model of one node, and ONNX Runtime on it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from fastmmoe.exporter.ops import DOMAIN, OPS, OpSpec, Tensor
from fastmmoe.exporter.ops.functions import OPSET, function_for
from fastmmoe.runtime.types import Array

_HALF = ("float16", "bfloat16")


ONNX_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "int8": "int8"}


def body_model(
    spec: OpSpec,
    attributes: dict[str, Any],
    types: dict[str, str],
    *,
    with_function: bool = True,
    float_edges: bool = False,
) -> onnx.ModelProto:
    """A model of one node whose dimensions are the contract's letters.

    Args:
        types: element type of each type variable.
        float_edges: inputs and outputs of 16-bit types are float32, converted inside: NumPy has no bfloat16 to feed.
    """
    names = {tensor: types.get(tensor.types[0], tensor.types[0]) for tensor in (*spec.inputs, *spec.outputs)}

    def declare(tensor: Tensor, suffix: str = "", element_type: str = "") -> ir.Value:
        dtype = ir.DataType[(element_type or names[tensor]).upper()]
        return ir.val(tensor.name + suffix, dtype=dtype, shape=tensor.shape_with(attributes))

    given, returned = spec.inputs_for(attributes), spec.outputs_for(attributes)
    inner = {tensor: declare(tensor) for tensor in (*given, *returned)}
    outer = dict(inner)
    before: list[ir.Node] = []
    after: list[ir.Node] = []
    for tensor in inner if float_edges else ():
        if names[tensor] not in _HALF:
            continue
        outer[tensor] = declare(tensor, "_float", "float")
        ends = [outer[tensor], inner[tensor]] if tensor in given else [inner[tensor], outer[tensor]]
        cast = ir.node("Cast", ends[:1], attributes={"to": ends[1].dtype}, outputs=ends[1:])
        (before if tensor in given else after).append(cast)
    node = ir.node(
        spec.name,
        [inner[tensor] for tensor in given],
        attributes=attributes,
        outputs=[inner[tensor] for tensor in returned],
        domain=DOMAIN,
    )
    graph = ir.Graph(
        [outer[tensor] for tensor in given],
        [outer[tensor] for tensor in returned],
        nodes=[*before, node, *after],
        opset_imports={"": OPSET, DOMAIN: spec.version},
        name="one_node",
    )
    functions = [function_for(spec, attributes)] if with_function else []
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=functions))


@functools.lru_cache(maxsize=64)
def _open_session(
    name: str, attributes: tuple[tuple[str, Any], ...], types: tuple[tuple[str, str], ...]
) -> onnxruntime.InferenceSession:
    """A session on the function body of the operator `name`; kept, because opening takes longer than running."""
    (spec,) = (spec for spec in OPS if spec.name == name)
    model = body_model(spec, dict(attributes), dict(types), float_edges=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a refusal that a test expects is no news
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_body(spec: OpSpec, attributes: dict[str, Any], inputs: Sequence[Array]) -> list[Array]:
    """The outputs of the operator's function body on onnxruntime's CPU provider, in the types of `inputs`."""
    given = spec.inputs_for(attributes)
    types = {t.types[0]: ONNX_NAMES[x.dtype.name] for t, x in zip(given, inputs, strict=True) if len(t.types[0]) == 1}
    session = _open_session(spec.name, tuple(attributes.items()), tuple(types.items()))
    feeds = {
        declared.name: x.astype(np.float32) if ONNX_NAMES.get(x.dtype.name) in _HALF else x
        for declared, x in zip(session.get_inputs(), inputs, strict=True)
    }
    outputs = session.run(None, feeds)
    dtypes = {t.types[0]: x.dtype for t, x in zip(given, inputs, strict=True)}
    return [
        y.astype(dtypes.get(t.types[0], y.dtype)) for t, y in zip(spec.outputs_for(attributes), outputs, strict=True)
    ]
