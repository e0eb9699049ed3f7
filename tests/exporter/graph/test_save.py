# SPDX-License-Identifier: Apache-2.0
"""Graphs and their weights are the files that onnx_ir saves of assembled tensors, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.graph.inputs import graph_inputs, graph_program
from fastmmoe.exporter.graph.pack_experts import pack_experts
from fastmmoe.exporter.graph.save import save_graph
from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.journal import Journal
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.progress import Progress
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.weight_stream import WeightStream

PRECISIONS = {
    "bf16": Precision(torch.bfloat16, torch.float32),
    "int8": Precision(torch.float16, torch.float16, packing=Packing("int8", 32, zero_points=True)),
    "bf16 tiles": Precision(torch.bfloat16, torch.float32, is_tiled=True),
    "int4 tiles": Precision(torch.float32, torch.float32, packing=Packing("int4", 32, False), is_tiled=True),
}


def traced(directory: Path, precision: Precision) -> tuple[ir.Model, WeightStream]:
    model = Model(Checkpoint(directory), PolicyOptions(method="none"), precision)
    graph = "language_model"
    stream = WeightStream(model, graph)

    def load(name: str) -> torch.Tensor:
        return model.load(f"{graph}.{name}")

    module, program = model.graphs.language_model, graph_program(model, graph)
    found = trace(module, program, graph_inputs(model, graph), load, name=graph, opset=23)
    if precision.storage is not None:
        pack_experts(found, stream.experts, precision.storage)
    return found, stream


def save(model: ir.Model, directory: Path, stream: WeightStream, journal: Journal | None = None) -> list[Path]:
    directory.mkdir(exist_ok=True)
    files = [directory / "lm.onnx", directory / "lm.data"]
    save_graph(model, files[0], files[1], stream, journal=journal, progress=Progress("writing", print))
    return files


def names(model: ir.Model) -> list[tuple[str, type]]:
    return [(name, type(value.const_value)) for name, value in model.graph.initializers.items()]


@pytest.mark.parametrize(("name", "precision"), [("internvl-gptoss", "bf16"), ("dsvl2-mla", "int8")])
def test_files_are_those_of_the_library(
    name: str, precision: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model, stream = traced(checkpoint(name), PRECISIONS[precision])
    (tmp_path / "theirs").mkdir()
    theirs = [tmp_path / "theirs" / "lm.onnx", tmp_path / "theirs" / "lm.data"]
    ir.save(model, theirs[0], external_data="lm.data", alignment=64, align_threshold=0)
    before = names(model)
    ours = save(model, tmp_path / "ours", stream)
    assert names(model) == before
    assert [file.read_bytes() for file in ours] == [file.read_bytes() for file in theirs]

    # Over what an earlier run left, longer and with other bytes between the tensors.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    save(model, scratch / "bundle", stream, Journal(scratch, "key", print))
    data = bytearray((scratch / "bundle" / "lm.data").read_bytes())
    gaps = [i for i in range(len(data) - 8, 0, -1) if not any(data[i : i + 8])]
    data[gaps[0]] ^= 1
    (scratch / "bundle" / "lm.data").write_bytes(bytes(data) + b"tail")
    again = save(model, scratch / "bundle", stream, Journal(scratch, "key", print))
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in theirs]
