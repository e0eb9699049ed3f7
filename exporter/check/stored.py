# SPDX-License-Identifier: Apache-2.0
"""The parameters of a written graph: where each is in the file of weights, mapped and read when it is used."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import torch

from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.graph.weights import JoinedTensor, ParameterTensor
from fastmmoe.runtime.bundle.manifest import graph_file, weights_file
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.files import size_text
from fastmmoe.runtime.types import Array

DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
}
_OF_INPUTS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
LARGEST_ABSENT = 1 << 16
"""Bytes up to which a parameter may have no tensor of its own: one of equal values, or what was computed from it,
stands in its place."""


class Initializer(NamedTuple):
    """The tensor of a graph that stands for a parameter.

    Attributes:
        order: the parameter's axes as they are stored; None = as they are.
        rows: which of the tensor's are the parameter's, (first, end); None = all.
    """

    name: str
    order: tuple[int, ...] | None
    rows: tuple[int, int] | None = None


def initializers_of(traced: ir.Model) -> dict[str, Initializer]:
    """Parameter of the traced module -> its tensor. Call it before weights are packed."""
    found: dict[str, Initializer] = {}
    for name, value in traced.graph.initializers.items():
        if isinstance(value.const_value, ParameterTensor):
            found.setdefault(value.const_value.parameter, Initializer(name, value.const_value.order))
        elif isinstance(value.const_value, JoinedTensor):
            first = 0
            for tensor in value.const_value.parameters:
                end = first + tensor.shape.numpy()[0]
                found[tensor.parameter] = Initializer(name, None, (first, end))
                first = end
    return found


@dataclass(frozen=True)
class _Place:
    """A tensor in the file of weights; offset in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class StoredWeights:
    """The tensors of a graph that has been written.

    Args:
        directory: of the bundle.
        graph: its name.
        parameters: see `initializers_of`.
        inputs: tensors that are the graph's inputs, though their values stand in its file of weights.
    """

    def __init__(
        self,
        directory: Path,
        graph: str,
        parameters: Mapping[str, Initializer],
        inputs: Mapping[str, ExpertTensor] | None = None,
    ) -> None:
        self.graph, self.parameters = graph, parameters
        self.path = directory / weights_file(graph)
        model = onnx.load(str(directory / graph_file(graph)), load_external_data=False)
        self._inline: dict[str, torch.Tensor] = {}
        self._places: dict[str, _Place] = {}
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in tensor.external_data}
                self._places[tensor.name] = _Place(
                    DTYPES[tensor.data_type], tuple(tensor.dims), int(where.get("offset", 0))
                )
            elif tensor.data_type in DTYPES:
                self._inline[tensor.name] = _inline(tensor)
        for name, place in (inputs or {}).items():
            self._places[name] = _Place(_OF_INPUTS[place.dtype], place.shape, place.offset)
        self._mapping: mmap.mmap | None = None

    def has(self, parameter: str) -> bool:
        """Whether the parameter has a tensor of its own."""
        return parameter in self.parameters

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter in its own order of axes, in the type that is stored; not to be written to."""
        initializer = self.parameters[name]
        tensor = self.tensor(initializer.name)
        if initializer.rows is not None:
            return tensor[slice(*initializer.rows)]
        if initializer.order is None:
            return tensor
        return tensor.permute(*np.argsort(initializer.order).tolist())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the graph by its own name; not to be written to.

        Raises:
            CheckFailed: the graph has no such tensor, or the file ends before it does.
        """
        if name in self._inline:
            return self._inline[name]
        place = self._places.get(name)
        if place is None:
            raise CheckFailed(f"{self.graph}: has no tensor {name}, which stands for a parameter")
        count = int(np.prod(place.shape, dtype=np.int64))
        if count == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        end, size = place.offset + count * place.dtype.itemsize, self.path.stat().st_size
        if end > size:
            raise CheckFailed(f"{self.path.name}: {name} ends at byte {end}, the file has {size_text(size)}")
        with warnings.catch_warnings():
            # That it is not writable is meant: a private, writable mapping counts as memory.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self._mapped(), dtype=place.dtype, count=count, offset=place.offset)
        return flat.view(place.shape)

    def _mapped(self) -> mmap.mmap:
        if self._mapping is None:
            with self.path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._mapping


def bits_of(tensor: torch.Tensor) -> Array:
    """A tensor's values as an array; of bfloat16, which NumPy lacks, the bits."""
    tensor = tensor.contiguous()
    array: Array = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


def _inline(tensor: onnx.TensorProto) -> torch.Tensor:
    values = onnx.numpy_helper.to_array(tensor)
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())
