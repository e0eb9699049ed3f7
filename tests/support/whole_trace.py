# SPDX-License-Identifier: Apache-2.0
"""A module traced in one piece, as torch runs it: what the graph that is stitched of kinds of steps must equal."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import nn

from fastmmoe.exporter.graph.tracing import GraphInput, export_module, quiet
from fastmmoe.exporter.graph.weights import as_array
from fastmmoe.runtime.bundle.graph_io import least_size


def whole_trace(
    module: nn.Module, inputs: list[GraphInput], load: Callable[[str], torch.Tensor], *, opset: int
) -> ir.Model:
    """The graph with all values in it. Optimised as a whole: equal weights may become one, small ones be folded."""
    model, outputs = export_module(module, [inputs], least_size, opset=opset)
    for name, value in model.graph.initializers.items():
        if name in dict(module.named_parameters()):
            value.const_value = ir.Tensor(as_array(load(name)), name=name)
    with quiet():
        onnxscript.optimizer.optimize_ir(model)
    for value, given in zip(model.graph.inputs, inputs, strict=True):
        value.name = given.name
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    return model
