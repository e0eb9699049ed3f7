# SPDX-License-Identifier: Apache-2.0
"""Small helpers for writing graphs of standard ONNX operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import onnx_ir as ir
from onnxscript import OpBuilder


@contextlib.contextmanager
def stage(op: OpBuilder, name: str) -> Iterator[None]:
    """Prefix the names of what is built inside with `name`: readable, and distinct between graph and subgraphs."""
    op.builder.push_module(name)
    try:
        yield
    finally:
        op.builder.pop_module()


def value(name: str, dtype: ir.DataType | None = None, rank: int | None = None) -> ir.Value:
    """A value to declare an input or output with; what is not given is left open."""
    return ir.val(name, dtype=dtype, shape=None if rank is None else [None] * rank)


def loop_body(
    op: OpBuilder,
    body: Callable[..., list[ir.Value]],
    name: str,
    *,
    rank: int,
    inputs: tuple[str, str, str],
    outputs: tuple[str, str],
) -> ir.Graph:
    """The graph that a Loop runs, which carries one float32 value of this rank.

    Args:
        body: (builder, number of the round, condition, value) -> [condition, value].
        inputs: names of number, condition and value.
        outputs: names of condition and value.
    """
    # onnxruntime wants the rank of a loop's inputs.
    kinds = ((ir.DataType.INT64, 0), (ir.DataType.BOOL, 0), (ir.DataType.FLOAT, rank))
    state = [value(each, *kind) for each, kind in zip(inputs, kinds, strict=True)]
    results = [value(each, *kind) for each, kind in zip(outputs, kinds[1:], strict=True)]
    return op.builder.subgraph(body, state, results, name=name)


def as_float(op: OpBuilder, x: ir.Value) -> ir.Value:
    """x in float32."""
    result = op.Cast(x, to=ir.DataType.FLOAT)
    # The builder infers nothing where x is of an open type; a known type spares a CastLike at every literal.
    result.type = ir.TensorType(ir.DataType.FLOAT)
    return result


def as_int(op: OpBuilder, x: ir.Value) -> ir.Value:
    """x in int64."""
    return op.Cast(x, to=ir.DataType.INT64)


def column(op: OpBuilder, x: ir.Value) -> ir.Value:
    """[..., n] -> [..., n, 1]"""
    return op.Unsqueeze(x, [-1])


def rows(op: OpBuilder, x: ir.Value) -> ir.Value:
    """Length of the first dimension, int64 [1]."""
    return op.Shape(x, start=0, end=1)


def filled(op: OpBuilder, shape: ir.Value, element: bool | float) -> ir.Value:
    """A bool or float32 tensor of this shape with `element` everywhere."""
    return op.ConstantOfShape(shape, value=ir.tensor([element]))
