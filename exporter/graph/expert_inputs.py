# SPDX-License-Identifier: Apache-2.0
"""Makes the routed experts' weights inputs of a written language model, for engines.

As constants they would stand in the engine file too, beside language_model.data, and go through the builder's memory:
for 30B parameters in int4 that is 15 GB more of each. As inputs they are read once, from the file that is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx_ir as ir

from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.runtime.bundle.storage import ExpertDtype, ExpertTensor

PARTS = ("gate_up", "down", "gate_up_scale", "down_scale", "gate_up_zero", "down_zero")
"""The inputs of FmmSparseMoE that are large: a matrix, or its scales and zeros, for each expert."""


def make_expert_inputs(path: Path) -> dict[str, ExpertTensor]:
    """Turn the experts' initializers of a graph into inputs; their values stay in the file of its weights.

    Args:
        path: the graph, with its weights in one external file; written again.
    Returns:
        Where each of the inputs is in that file, in the graph's order.
    """
    model = ir.load(path)
    graph = model.graph
    found: dict[str, ExpertTensor] = {}
    for node in graph:
        if node.op_type != SPARSE_MOE.name:
            continue
        # Which inputs a node has depends on its attributes, and with that their places.
        expected = SPARSE_MOE.inputs_for({name: attribute.value for name, attribute in node.attributes.items()})
        given = dict(zip((tensor.name for tensor in expected), node.inputs, strict=True))
        for value in (given.get(part) for part in PARTS):
            if value is None:
                continue
            assert value.name is not None
            found[value.name] = _place(value)
            del graph.initializers[value.name]
            value.const_value = None
            graph.inputs.append(value)
    ir.save(model, path)
    return found


def _place(value: ir.Value) -> ExpertTensor:
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor) and value.dtype is not None
    return ExpertTensor(
        dtype=cast(ExpertDtype, value.dtype.numpy().name), shape=tuple(tensor.shape.numpy()), offset=tensor.offset or 0
    )
