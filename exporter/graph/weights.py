# SPDX-License-Identifier: Apache-2.0
"""Initializers that stand for parameters: their values are read when they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
import torch

IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int32: ir.DataType.INT32,
    torch.int8: ir.DataType.INT8,
}
"""Types of graphs' tensors."""


class ParameterTensor(ir.LazyTensor):
    """A parameter, or a parameter with its axes in another order, read each time its values are asked for.

    Attributes:
        parameter: name of the parameter in the traced module; an initializer's own name may differ.
        order: the parameter's axes in the order in which they are stored; None = as they are.
    """

    def __init__(
        self,
        parameter: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        load: Callable[[str], torch.Tensor],
        order: tuple[int, ...] | None,
    ) -> None:
        stored = shape if order is None else [shape[axis] for axis in order]
        super().__init__(self._read, dtype=dtype, shape=ir.Shape(stored), name=parameter)
        self.parameter, self.order = parameter, order
        self._own_shape, self._load = tuple(shape), load

    def permuted(self, order: Iterable[int], name: str) -> ParameterTensor:
        """The same parameter under another name, its stored axes in this order."""
        own = range(len(self._own_shape)) if self.order is None else self.order
        axes = tuple(own[axis] for axis in order)
        tensor = ParameterTensor(self.parameter, self.dtype, self._own_shape, self._load, axes)
        tensor.name = name
        return tensor

    def _read(self) -> ir.Tensor:
        values = as_array(self._load(self.parameter))
        if self.order is not None:
            values = np.ascontiguousarray(values.transpose(self.order))
        return ir.Tensor(values, name=self.name)


class JoinedTensor(ir.LazyTensor):
    """Parameters one after the other along their first axis.

    Attributes:
        parameters: each in its own order of axes.
    """

    def __init__(self, parameters: Sequence[ParameterTensor], name: str) -> None:
        shapes = [tensor.shape.numpy() for tensor in parameters]
        whole = ir.Shape((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        super().__init__(self._read, dtype=parameters[0].dtype, shape=whole, name=name)
        self.parameters = tuple(parameters)

    def _read(self) -> ir.Tensor:
        return ir.Tensor(np.concatenate([tensor.numpy() for tensor in self.parameters]), name=self.name)


def parameter_tensor(
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    load: Callable[[str], torch.Tensor],
    order: tuple[int, ...] | None = None,
) -> ParameterTensor:
    """The tensor of an initializer that stands for a parameter.

    Args:
        name: the parameter's in the traced module.
        dtype, shape: the parameter's own; the initializer has the axes of `shape` in `order`.
        load: gives the values by name, in this dtype and shape; called when they are written, once each time.
        order: the parameter's axes in the order in which they are stored; None = as they are.
    """
    return ParameterTensor(name, dtype, shape, load, order)


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """The inverse of `as_array`, of an array that is contiguous."""
    if values.dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A CPU tensor as an array that shares its memory; bfloat16 included, which NumPy itself lacks."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
