# SPDX-License-Identifier: Apache-2.0
"""Writes a traced graph and the file of its weights, which are never in memory as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from fastmmoe.exporter.checkpoint.open_file import write_all
from fastmmoe.exporter.checkpoint.regions import one_thread
from fastmmoe.exporter.graph.pack_experts import PackedTensor
from fastmmoe.exporter.graph.pack_linears import PackedLinearTensor
from fastmmoe.exporter.graph.weights import ParameterTensor
from fastmmoe.exporter.journal import Journal, Piece
from fastmmoe.exporter.progress import Progress
from fastmmoe.exporter.weight_stream import WeightStream

ALIGNMENT = 4096
"""Of tensors in the file of the weights: they can be mapped one by one."""
SMALLEST = 256
"""Tensors of so many bytes and less stay in the graph's own file."""


def save_graph(
    model: ir.Model, path: Path, weights: Path, stream: WeightStream, *, journal: Journal | None, progress: Progress
) -> None:
    """Write a graph beside the file of its weights; the model stays what it is.

    Args:
        model: its initializers that stand for parameters have tensors of `parameter_tensor`, `PackedTensor` or
            `PackedLinearTensor`.
        path, weights: in one directory.
        stream: writes the parameters.
        journal: what an earlier export wrote of the weights, which is not written again; None = nothing.
    Raises:
        UnsupportedModel: the checkpoint changed meanwhile. OSError: the disk is full, or the like.
    """
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    large = [(value, t) for value, t in zip(values, tensors, strict=True) if t is not None and t.nbytes > SMALLEST]
    places = _places([tensor for _, tensor in large])
    progress.start(sum(tensor.nbytes for _, tensor in large))
    if large:
        with one_thread():
            _write_weights([tensor for _, tensor in large], places, weights, stream, journal, progress.add)
    try:
        for (value, tensor), at in zip(large, places, strict=True):
            value.const_value = _external(tensor, weights, at)
        ir.save(model, path)
    finally:
        for value, own in zip(values, tensors, strict=True):
            value.const_value = own


def _external(tensor: ir.TensorProtocol, weights: Path, at: int) -> ir.ExternalTensor:
    assert tensor.name is not None
    return ir.ExternalTensor(
        weights.name,
        at,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        base_dir=weights.parent,
    )


def _places(tensors: list[ir.TensorProtocol]) -> list[int]:
    """Offsets of the tensors in the file."""
    places, end = [], 0
    for tensor in tensors:
        places.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = places[-1] + tensor.nbytes
    return places


def _write_weights(
    tensors: list[ir.TensorProtocol],
    places: list[int],
    path: Path,
    stream: WeightStream,
    journal: Journal | None,
    report: Callable[[int], None],
) -> None:
    kept = 0 if journal is not None else os.O_TRUNC
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | kept, 0o666)
    try:
        end = 0
        for tensor, at in zip(tensors, places, strict=True):
            write_all(file, memoryview(bytes(at - end)), end)
            end = at + tensor.nbytes
            piece = Piece(path, str(tensor.name), at, tensor.nbytes)
            if journal is not None and journal.has(piece, file):
                report(tensor.nbytes)
                continue
            _write_tensor(tensor, file, at, stream, report)
            if journal is not None:
                journal.add(piece, file)
        os.truncate(file, end)
    finally:
        os.close(file)


def _write_tensor(
    tensor: ir.TensorProtocol, file: int, at: int, stream: WeightStream, report: Callable[[int], None]
) -> None:
    if isinstance(tensor, ParameterTensor):
        stream.write(tensor.parameter, tensor.order, file, at, report)
    elif isinstance(tensor, (PackedTensor, PackedLinearTensor)):
        tensor.write(file, at, report)
    else:
        write_all(file, memoryview(tensor.tobytes()), at)
        report(tensor.nbytes)
