# SPDX-License-Identifier: Apache-2.0
"""Tensors of parameters: name, shape and bytes as they are stored, and which parameter they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastmmoe.exporter.graph.weights import parameter_tensor

DTYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [None, (2, 0, 1)])
def test_bytes_are_those_of_the_parameter_in_that_order(dtype: torch.dtype, order: tuple[int, ...] | None) -> None:
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tensor = parameter_tensor("w", DTYPES[dtype], values.shape, {"w": values}.__getitem__, order)
    stored = values if order is None else values.permute(order).contiguous()
    assert (tensor.name, tensor.parameter, tensor.order, tensor.dtype) == ("w", "w", order, DTYPES[dtype])
    assert tensor.shape.numpy() == tuple(stored.shape)
    assert tensor.tobytes() == bytes(stored.view(torch.uint8).numpy())


def test_permuted_twice_is_one_order_of_the_same_parameter() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    once = parameter_tensor("w", ir.DataType.FLOAT, values.shape, {"w": values}.__getitem__).permuted((1, 2, 0), "a")
    twice = once.permuted((0, 2, 1), "b")
    assert (twice.name, twice.parameter, twice.order) == ("b", "w", (1, 0, 2))
    assert twice.shape.numpy() == (3, 2, 4)
    np.testing.assert_array_equal(twice.numpy(), values.numpy().transpose(1, 2, 0).transpose(0, 2, 1))
