# SPDX-License-Identifier: Apache-2.0
"""Compares what a bundle's files hold for each parameter with the checkpoint, in samples, bit by bit.

Torch and ONNX Runtime both take the written weights, so neither would notice that they are not the checkpoint's.
Samples are of every tensor, and of every expert of every stack, its first and last row among them: two that changed
places, or all of a layer moved on by one, differ in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from fastmmoe.exporter.check.linears import StoredLinear, stored_linear
from fastmmoe.exporter.check.stored import LARGEST_ABSENT, StoredWeights
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.graph.pack_linears import block_rows
from fastmmoe.exporter.model import EXPERT_WEIGHTS, Model
from fastmmoe.exporter.ops.quantise import Packing, QuantisedWeights, dequantise
from fastmmoe.exporter.ops.sparse_moe.storage import Storage
from fastmmoe.exporter.ops.sparse_moe.tile_order import rows_of_tiles
from fastmmoe.exporter.ops.tiles import from_panels
from fastmmoe.exporter.progress import Steps
from fastmmoe.runtime.types import Say

WHOLE = 1 << 12
"""Values up to which a piece is compared as a whole."""
ROWS, ROWS_OF_EXPERT = 16, 4
"""Samples along an axis, at least."""
_APART = 2 << 20
"""Bytes between samples, at most: of every block that is written in one go some value is looked at."""
_STEP = 0.51
"""Distance from the checkpoint, in steps between neighbouring integers, that rounding leaves at most."""
_LAST_BIT = 2.0**-24
"""Of float16 scales below 2^-14: groups of the least weights lose more than half a step, or stand for zeros."""
_MOST_STEPS = {"int8": 254, "int4": 15, "fp8": 448}
"""Scales between the extremes of a group."""
_TINY = 1e-30
"""Divides in place of zero."""


def check_samples(model: Model, weights: Mapping[str, StoredWeights], say: Say) -> str:
    """Compare samples of all parameters with the checkpoint.

    Args:
        weights: by graph.
    Returns:
        One line on what was compared.
    Raises:
        CheckFailed: a parameter is another one than the checkpoint's, or has no tensor.
        UnsupportedModel: the checkpoint's files changed meanwhile.
    """
    names = [f"{graph}.{name}" for graph, module in model.graphs.items() for name, _ in module.named_parameters()]
    experts, progress = 0, Steps("compared {} of {} parameters with the checkpoint", len(names), say)
    for name in names:
        graph, _, parameter = name.partition(".")
        if not weights[graph].has(parameter):
            _check_absent(model, name)
        elif (linear := stored_linear(model, graph, parameter, weights[graph])) is not None:
            _check_linear(model, name, linear)
        elif model.precision.storage is not None and name.endswith(EXPERT_WEIGHTS):
            _check_stored(model, name, weights[graph], model.precision.storage)
        else:
            _check_parameter(model, name, weights[graph].parameter(parameter))
        experts += model.config.moe.num_experts if name.endswith(EXPERT_WEIGHTS) else 0
        progress.add()
    return f"samples of {len(names)} parameters, with {experts} expert matrices, equal the checkpoint"


def _check_absent(model: Model, name: str) -> None:
    graph, _, parameter = name.partition(".")
    size = dict(model.graphs.items())[graph].get_parameter(parameter)
    if size.numel() * size.element_size() > LARGEST_ABSENT:
        raise CheckFailed(f"{name} {list(size.shape)} has no tensor in the graph")


def _check_parameter(model: Model, name: str, stored: torch.Tensor) -> None:
    if stored.dtype != model.parameter_dtype(name):
        raise CheckFailed(f"{name} is stored as {stored.dtype}, expected {model.parameter_dtype(name)}")
    if model.is_computed(name):
        _compare(name, stored, model.load(name), 0)
        return
    for row, part, piece in _pieces(model, name, stored):
        is_dense = part.is_contiguous() and piece.is_contiguous()
        where = _sample(piece.shape, stored.dtype.itemsize, is_dense=is_dense)
        found, expected = part[where], piece[where]
        for dtype in model.conversions(name):
            expected = expected.to(dtype)
        _compare(name, found, expected, row)


def _pieces(model: Model, name: str, stored: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """First row, part of the stored parameter, and the piece of the checkpoint that it is made of, one by one."""
    rule = model.rules[name]
    pieces = list(rule.pieces(model.checkpoint.load(source) for source, _ in rule.sources))
    if tuple(stored.shape) != rule.parameter_shape:
        raise CheckFailed(f"{name} is stored as {list(stored.shape)}, expected {list(rule.parameter_shape)}")
    shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
    whole = stored if tuple(stored.shape) == shape else stored.reshape(shape)
    row = 0
    for piece in pieces:
        yield row, whole[row : row + len(piece)], piece
        row += len(piece)


def _sample(shape: Sequence[int], itemsize: int, *, is_dense: bool) -> tuple[torch.Tensor | slice, ...]:
    """Where samples are: everywhere in a small piece, in whole rows where both sides have them in one run.

    Of a stack [E, ..., rows, columns] all of E and so on count. itemsize: bytes of a value that is stored.
    """
    if math.prod(shape) <= WHOLE or len(shape) < 2:
        return (slice(None),)
    *stacked, rows, columns = shape
    apart = math.ceil(rows * columns * itemsize / _APART) + 1
    of_rows = _spread(rows, max(apart, ROWS_OF_EXPERT if stacked else ROWS))
    if is_dense:
        return (*(slice(None) for _ in stacked), of_rows)
    of_columns = _spread(columns, max(apart, ROWS))
    return (*(slice(None) for _ in stacked), of_rows[:, None], of_columns[None, :])


def _spread(count: int, samples: int) -> torch.Tensor:
    """Evenly spread places below count, the first and the last among them."""
    return torch.linspace(0, count - 1, min(samples, count), dtype=torch.float64).round().long()


def _compare(name: str, found: torch.Tensor, expected: torch.Tensor, row: int) -> None:
    if found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected):
        return
    differing = (found != expected).nonzero() if found.shape == expected.shape else None
    if differing is None or not len(differing):
        raise CheckFailed(
            f"{name}: {found.dtype} {list(found.shape)} is stored, expected {expected.dtype} {list(expected.shape)}"
        )
    first = tuple(differing[0].tolist())
    raise CheckFailed(
        f"{name}: other values are stored than the checkpoint has, near row {row}: {found[first].item():g}, expected "
        f"{expected[first].item():g}; {len(differing)} of {found.numel()} samples differ"
    )


def _check_stored(model: Model, name: str, weights: StoredWeights, storage: Storage) -> None:
    """What integers stand for is the checkpoint's to half a step, and exactly what they were rounded to."""
    own = weights.parameters[name.partition(".")[2]].name
    tensors = [weights.tensor(own + part) for part in storage.parts]
    E, R, columns = model.rules[name].parameter_shape
    # Of integers the pieces are those of their rows.
    for row, _, piece in _pieces(model, name, torch.empty(E, R, columns, device="meta")):
        rows = _rows_of_experts(math.prod(piece.shape[:-1]), R)
        expected = _rows(piece, rows)
        start = row * math.prod(piece.shape[1:-1])
        stored = [_stored_rows(tensor, rows + start, R, name, storage) for tensor in tensors]
        if storage.packing is None:
            _compare(name, stored[0][:, :columns], expected.to(model.parameter_dtype(name)), start)
            continue
        x, packing = expected.float().numpy(), storage.packing
        width = columns // 2 if packing.weight_format == "int4" else columns
        arrays = [stored[0][:, :width].numpy(), *(part.numpy() for part in stored[1:])]
        quantised = QuantisedWeights(arrays[0], arrays[1], arrays[2] if packing.zero_points else None)
        found = dequantise(quantised, packing.weight_format, packing.group_size)
        _compare(name, torch.from_numpy(found), torch.from_numpy(packing.round(x)), start)
        _check_steps(name, found, x, quantised, packing)


def _check_linear(model: Model, name: str, linear: StoredLinear) -> None:
    """What a packed linear layer stands for is the checkpoint's, rounded."""
    packing = linear.packing
    for row, _, piece in _pieces(model, name, torch.empty(linear.N, linear.K, device="meta")):
        # Of every block that is packed in one go some row is looked at.
        rows = _spread(len(piece), max(ROWS, math.ceil(len(piece) / block_rows(linear.K)) + 1))
        x, parts = piece[rows].float(), linear.rows((rows + row).numpy())
        found = packing.unpack(parts, len(rows), linear.K)
        if packing.weight_format == "bf16":
            _compare(name, torch.from_numpy(found), x.bfloat16().float(), row)
            continue
        _compare(name, torch.from_numpy(found), torch.from_numpy(packing.round(x.numpy())), row)
        scale = from_panels(parts["scale"], len(rows)) if packing.is_tiled else parts["scale"]
        quantised = QuantisedWeights(found, scale, None)
        as_experts = Packing(packing.weight_format, packing.group_size, packing.zero_points)
        _check_steps(name, found, x.numpy(), quantised, as_experts)


def _stored_rows(tensor: torch.Tensor, rows: torch.Tensor, of_expert: int, name: str, storage: Storage) -> torch.Tensor:
    """Rows by their number among those of all experts; as tiles with what fills up words."""
    if not storage.is_tiled:
        return tensor.flatten(0, 1)[rows]
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    found = rows_of_tiles(bits.numpy(), rows.numpy(), of_expert, is_gate_up=name.endswith(EXPERT_WEIGHTS[0]))
    return torch.from_numpy(found).view(tensor.dtype)


def _rows(piece: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows [n, columns] of a piece by their number, without a copy of the piece."""
    index = np.unravel_index(rows.numpy(), piece.shape[:-1])
    return piece[tuple(torch.from_numpy(np.asarray(axis)) for axis in index)]


def _rows_of_experts(count: int, rows: int) -> torch.Tensor:
    """Numbers of sampled rows of as many experts as a piece has rows for, or of a part of one."""
    each = min(rows, count)
    starts = torch.arange(0, count, each)
    return (starts[:, None] + _spread(each, ROWS_OF_EXPERT)[None, :]).flatten()


def _check_steps(name: str, found: np.ndarray, x: np.ndarray, quantised: QuantisedWeights, packing: Packing) -> None:
    step = np.repeat(quantised.scale.astype(np.float32), packing.group_size, axis=-1)[..., : x.shape[-1]]
    if packing.weight_format == "fp8":
        step = step * _fp8_steps(np.abs(found) / np.maximum(step, _TINY))
    # A zero point is rounded, too.
    of_scale = _MOST_STEPS[packing.weight_format] * _LAST_BIT / 2
    most = (_STEP + 0.5 * packing.zero_points) * step + 1e-6 * np.abs(x) + of_scale
    if (np.abs(found - x) > most).any():
        worst = float((np.abs(found - x) / np.maximum(step, _TINY)).max())
        raise CheckFailed(
            f"{name}: integers stand for values up to {worst:.3g} steps from the checkpoint's, expected half"
        )


def _fp8_steps(magnitude: np.ndarray) -> np.ndarray:
    """Distance of a float8 e4m3 from the next one: an eighth of the power of two below it, 2^-9 near zero."""
    below = np.exp2(np.floor(np.log2(np.maximum(magnitude, _TINY))))
    return np.maximum(below / 8, 2.0**-9)
