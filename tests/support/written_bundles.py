# SPDX-License-Identifier: Apache-2.0
"""Bundles as an export has them before its check, and copies of them to plant mistakes in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch

from fastmmoe.exporter.check.bundle import WrittenBundle, check_bundle
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.export import _write_portable, write_graphs
from fastmmoe.exporter.graph.expert_inputs import make_expert_inputs
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle.manifest import graph_file


class Exported(NamedTuple):
    """A bundle with what it was made of."""

    bundle: WrittenBundle
    model: Model
    options: PolicyOptions

    @property
    def directory(self) -> Path:
        return self.bundle.directory

    def copy(self, directory: Path) -> Exported:
        """The same in a directory of its own."""
        shutil.copytree(self.directory, directory)
        return self._replace(bundle=replace(self.bundle, directory=directory))

    def check(self, scratch: Path) -> list[str]:
        """The lines of the whole check."""
        lines: list[str] = []
        check_bundle(self.bundle, scratch, self.model, self.options, None, lines.append)
        return lines


def write_bundle(checkpoint: Path, directory: Path, *, packing: Packing | None = None, **options: Any) -> Exported:
    """For the CPU in float32 with experts of bfloat16, or with `packing` for engines in float16."""
    is_cpu = packing is None
    dtype = torch.float32 if is_cpu else torch.float16
    precision = Precision(torch.bfloat16 if is_cpu else dtype, dtype, packing=packing, kv_caches=dtype)
    policy = PolicyOptions(**options)
    model = Model(Checkpoint(checkpoint), policy, precision)
    directory.mkdir()
    parameters = write_graphs(
        directory, "model", model, opset=23 if is_cpu else 19, portable=is_cpu, say=lambda line: None
    )
    inputs = {} if is_cpu else make_expert_inputs(directory / graph_file("language_model"))
    processor = read_processor_config(checkpoint, model.config_reader, vocab_size=model.config.vocab_size)
    manifest = build_manifest(
        directory,
        "model",
        model,
        processor,
        target="cpu" if is_cpu else "jetson-agx-orin@jp6.2",
        dtype="bf16" if is_cpu else "fp16",
        portable=is_cpu,
        expert_inputs=inputs,
    )
    return Exported(WrittenBundle(directory, manifest, parameters, 0), model, policy)


def change_graph(directory: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a written graph, and with it the portable one where there is one."""
    path = directory / graph_file(graph)
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    onnx.save(model, str(path))
    if graph == "language_model" and (directory / graph_file(graph, portable=True)).is_file():
        _write_portable(directory)
