# SPDX-License-Identifier: Apache-2.0
"""The graph of a model as large as InternVL3.5-30B-A3B, 4 layers of it, without its large weights.

Those are random anyway, and are made on the machine. What travels is the graph, with the small weights in it, and a
list of the others. It is traced from a checkpoint whose file has holes where the large tensors would be.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from benchmark_tools.checkpoint import write_layers
from checkpoint_tools.writer import BYTES

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.graph.inputs import graph_inputs, graph_program
from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle.manifest import graph_file, weights_file, write_manifest
from gpu_acceptance_tools.answers import WEIGHTS

LAYERS, OPSET = 4, 20
SMALL = 64 << 10
"""Bytes up to which a tensor travels."""
TINY: dict[str, Any] = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}


def write_large(directory: Path, *, is_rehearsal: bool) -> None:
    """Write graph, manifest and list; in a rehearsal of layers that are small, yet have large weights."""
    directory.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        write_layers(Path(scratch), LAYERS, text=TINY if is_rehearsal else {}, wanted=_is_small)
        checkpoint = Checkpoint(Path(scratch))
        model = Model(checkpoint, PolicyOptions(), Precision(torch.float16, torch.float16, kv_caches=torch.float16))
        processor = read_processor_config(
            checkpoint.path,
            model.config_reader,
            vocab_size=model.config.vocab_size,
            chat_template="builtin",
            say=lambda line: None,
        )
        name = "language_model"
        traced = trace(
            model.graphs.language_model,
            graph_program(model, name),
            graph_inputs(model, name),
            lambda parameter: model.load(f"{name}.{parameter}"),
            name=name,
            opset=OPSET,
        )
        weights = _take_out(traced)
        ir.save(traced, directory / graph_file(name))
        manifest = build_manifest(directory, "large", model, processor, target="rtx", dtype="fp16", portable=False)
    write_manifest(directory, manifest)
    (directory / WEIGHTS).write_text(json.dumps(weights), encoding="utf-8")


def _is_small(name: str, shape: tuple[int, ...]) -> bool:
    return BYTES * math.prod(shape) <= SMALL


def _take_out(model: ir.Model) -> dict[str, Any]:
    """Make the experts' weights inputs of the graph, and leave the other large weights to a file; lists of both.

    Returns:
        "experts": name -> type and shape; "dense": name -> type, shape and place in the file.
    """
    experts, dense, end = {}, {}, 0
    graph = model.graph
    of_experts = {
        value.name
        for node in graph
        if node.op_type == SPARSE_MOE.name
        for value in node.inputs
        if value is not None and len(value.shape or ()) == 3
    }
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.LazyTensor) or tensor.nbytes <= SMALL:
            continue
        shape, dtype = tuple(tensor.shape.numpy()), tensor.dtype.numpy().name
        if name in of_experts:
            experts[name] = {"dtype": dtype, "shape": shape}
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
            continue
        dense[name] = {"dtype": dtype, "shape": shape, "offset": end}
        value.const_value = ir.ExternalTensor(
            weights_file("language_model"), end, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
        )
        end += -(-tensor.nbytes // 64) * 64
    return {"experts": experts, "dense": dense}
