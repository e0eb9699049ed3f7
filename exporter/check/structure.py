# SPDX-License-Identifier: Apache-2.0
"""Checks that the written graphs are valid and hold what the model is made of."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx_ir as ir

from fastmmoe.exporter.model import Model
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.runtime.bundle.manifest import GRAPHS, graph_file

_LAYER = re.compile(r"layers\.\d+\b")


class CheckFailed(Exception):
    """The written graphs do not do what the checkpoint says: a mistake of this package, not of the user."""


def check_structure(directory: Path, model: Model, *, portable: bool) -> str:
    """onnx.checker with strict shape inference on every graph, and the experts counted.

    Returns:
        One line on what was counted.
    Raises:
        CheckFailed: the expert weights in the graph are not all experts of all MoE layers.
    """
    for name in GRAPHS:
        variants = [directory / graph_file(name, portable=is_portable) for is_portable in {False, portable}]
        for path in variants:
            # Of graphs without operators of our own there is one; the language model has some.
            if path == variants[0] or name == GRAPHS[-1] or path.is_file():
                onnx.checker.check_model(str(path), full_check=True)
    config = model.config
    expected = [config.moe.num_experts] * len(config.moe_layers)
    graph = ir.load(directory / graph_file("language_model")).graph
    nodes = [node for node in graph if node.op_type == SPARSE_MOE.name]
    names = [t.name for t in SPARSE_MOE.inputs]
    found = []
    for node in nodes:
        gate_up, down = (node.inputs[names.index(name)] for name in ("gate_up", "down"))
        assert gate_up is not None and down is not None and gate_up.shape is not None and down.shape is not None
        if gate_up.shape[0] != down.shape[0]:
            raise CheckFailed(f"{node.name}: gate_up of {gate_up.shape[0]} experts, down of {down.shape[0]}")
        _check_layer(node, gate_up, down)
        found.append(gate_up.shape[0])
    if found != expected:
        raise CheckFailed(f"experts by MoE layer in the graph: {found}, in the checkpoint: {expected}")
    return f"{sum(expected)} experts in {len(expected)} MoE layers, all in the graph"


def _check_layer(node: ir.Node, *weights: ir.Value) -> None:
    """All layers have experts of one size, which the check of numbers may not tell apart (experts.py)."""
    layer = _LAYER.match(str(node.name))
    for value in weights:
        if layer is not None and not str(value.name).startswith(f"{layer[0]}."):
            raise CheckFailed(f"{node.name} takes the weights {value.name}, expected some of {layer[0]}")
