# SPDX-License-Identifier: Apache-2.0
"""Whole models of both families become engines: every family, element type and weight format at least once.

TensorRT-RTX parses, plans and builds them with the real plugin for SM 80, 86, 89 and 120; nothing here runs an engine.
The check against torch that an export makes is left to test_engines.py.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from fastmmoe.exporter.checkpoint import Checkpoint
from fastmmoe.exporter.config import DEMO
from fastmmoe.exporter.demo import write_demo_checkpoint
from fastmmoe.exporter.export import write_graphs
from fastmmoe.exporter.families import Model, Precision
from fastmmoe.exporter.fastmmoe.policy import PolicyOptions
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.processor_config import read_processor_config
from fastmmoe.runtime.bundle import PLUGIN, write_manifest
from fastmmoe.runtime.engines import build_engines
from fastmmoe.runtime.plugin_library import find_plugin
from fastmmoe.runtime.targets import RTX, TARGETS

# The demo is DeepSeek-VL2 with latent attention; gpt-oss has biases, sinks and sliding layers.
MODELS = [
    (DEMO, torch.float16, None),
    (DEMO, torch.bfloat16, None),
    ("dsvl2-mha", torch.float16, Packing("int4", 64, False)),
    ("internvl-gptoss", torch.float16, None),
    ("internvl-gptoss", torch.bfloat16, Packing("int8", 64, False)),
    ("internvl-qwen3moe", torch.float16, Packing("int8", 32, True)),
    ("internvl-qwen3moe", torch.bfloat16, None),
    ("internvl-qwen3moe", torch.bfloat16, Packing("int4", 32, True)),
]
PRUNE_LAYERS = {DEMO: (2, 5, 8), "internvl-gptoss": (1, 3, 5)}
GRAPHS = ("vision", "embedding", "language_model")


def write_bundle(source: Path, out: Path, precision: Precision, prune_layers: tuple[int, ...]) -> Model:
    """What an export for TensorRT-RTX writes, without its check."""
    library, plugin = find_plugin(TARGETS["rtx"], RTX)
    model = Model(Checkpoint(source), PolicyOptions(prune_layers=prune_layers), precision)
    processor = read_processor_config(source, model.config_reader, vocab_size=model.config.vocab_size)
    out.mkdir()
    write_graphs(out, model, portable=False, report=print)
    shutil.copyfile(library, out / PLUGIN)
    dtype = {torch.float16: "fp16", torch.bfloat16: "bf16"}[precision.experts]
    manifest = build_manifest(
        out, source.name, model, processor, target="rtx", dtype=dtype, portable=False, plugin=plugin
    )
    write_manifest(out, manifest)
    return model


@pytest.mark.parametrize(("name", "dtype", "packing"), MODELS, ids=str)
def test_engines_are_built(
    name: str, dtype: torch.dtype, packing: Packing | None, wide_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs the Python package tensorrt-rtx")
    source = tmp_path / DEMO if name == DEMO else wide_checkpoint(name)
    if name == DEMO:
        write_demo_checkpoint(source)
    precision, out = Precision(dtype, dtype, packing=packing), tmp_path / "out"
    model = write_bundle(source, out, precision, PRUNE_LAYERS.get(name, (1, 2, 3)))
    lines: list[str] = []
    engines = build_engines(out, report=lines.append)
    assert engines.compute_capabilities == (80, 86, 89, 120)
    assert list(engines.files) == [f"{graph}.engine" for graph in GRAPHS]
    for graph in GRAPHS:
        assert any(line.startswith(f"built {graph}:") for line in lines)
        # An engine holds its graph's weights.
        assert engines.files[f"{graph}.engine"].bytes > 0.9 * (out / f"{graph}.data").stat().st_size
    nodes = onnx.load(out / "language_model.onnx", load_external_data=False).graph.node
    experts = [node for node in nodes if node.op_type == "FmmSparseMoE"]
    assert len(experts) == len(model.config.moe_layers)
    formats = {onnx.helper.get_node_attr_value(node, "weight_format").decode() for node in experts}
    assert formats == {"float" if packing is None else packing.weight_format}
    assert sum(node.op_type == "FmmTokenPrune" for node in nodes) == 3
