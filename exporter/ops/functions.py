# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the custom operators in standard ONNX operators: any ONNX runtime can run a model with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript import build_function

from fastmmoe.exporter.ops.attention.contract import ATTENTION
from fastmmoe.exporter.ops.attention.function import build_attention
from fastmmoe.exporter.ops.building import value
from fastmmoe.exporter.ops.contract import DOMAIN, OpSpec
from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.exporter.ops.linear.function import build_linear
from fastmmoe.exporter.ops.rotary.contract import ROTARY
from fastmmoe.exporter.ops.rotary.function import build_rotary
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.function import build_sparse_moe
from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune.function import build_token_prune
from fastmmoe.exporter.ops.vision_attention.contract import VISION_ATTENTION
from fastmmoe.exporter.ops.vision_attention.function import build_vision_attention

OPSET = 23
"""Version of the standard operators in the bodies; onnxruntime has it since 1.23."""

_BODIES: dict[str, Callable[..., Any]] = {
    SPARSE_MOE.name: build_sparse_moe,
    TOKEN_PRUNE.name: build_token_prune,
    ATTENTION.name: build_attention,
    VISION_ATTENTION.name: build_vision_attention,
    LINEAR.name: build_linear,
    ROTARY.name: build_rotary,
}
_ELEMENT_TYPES = {
    "float": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
}


def function_for(spec: OpSpec, attributes: dict[str, Any]) -> ir.Function:
    """Build the body of one variant of an operator.

    The attribute values are part of the body, so all nodes of the operator in one model must carry the same. The
    function declares the attributes all the same, because the nodes have them.

    Args:
        spec: one of `fastmmoe.exporter.ops.OPS`.
        attributes: all attributes of the contract.
    Returns:
        A function of the contract's name in the domain fastmmoe with the inputs `spec.inputs_for(attributes)`, element
        types of type variables left open. Add it to the `functions` of an `onnx_ir.Model`.
    Raises:
        ValueError: the attributes are not the contract's or have values it does not allow.
    Source: the NumPy references beside the contracts; same results, tie rules included.
    """
    spec.check_attributes(attributes)
    # A type variable is not in the table: its type is known only where the function is called.
    inputs = [value(t.name, _ELEMENT_TYPES.get(t.types[0])) for t in spec.inputs_for(attributes)]
    function = build_function(
        functools.partial(_BODIES[spec.name], attributes=attributes),
        inputs,
        domain=DOMAIN,
        name=spec.name,
        attributes=[ir.Attr(a.name, ir.AttributeType[a.kind.upper()], None) for a in spec.attributes],
        opset_imports={"": OPSET},
    )
    for output, tensor in zip(function.outputs, spec.outputs_for(attributes), strict=True):
        output.name = tensor.name
    return function
