# SPDX-License-Identifier: Apache-2.0
"""Whole models of both families become engines: every family, element type and weight format at least once.

TensorRT-RTX parses, plans and builds them with the real plugin for SM 80, 86, 89 and 120; nothing here runs an engine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from fastmmoe.exporter.cli import main as export_main
from fastmmoe.exporter.config import DEMO
from fastmmoe.plugins import tensorrt_library_path
from fastmmoe.runtime.bundle import read_manifest
from fastmmoe.runtime.engines import Engines

INT8 = ("--experts", "int8", "--group-size", "64")
INT4 = ("--experts", "int4", "--group-size", "32", "--zero-points")
# The demo is DeepSeek-VL2 with latent attention; gpt-oss has biases, sinks and sliding layers.
MODELS = [
    (DEMO, "fp16", ()),
    (DEMO, "bf16", INT4),
    ("dsvl2-mha", "bf16", ()),
    ("internvl-gptoss", "fp16", INT8),
    ("internvl-gptoss", "bf16", ()),
    ("internvl-qwen3moe", "fp16", ()),
    ("internvl-qwen3moe", "fp16", INT4),
    ("internvl-qwen3moe", "bf16", INT8),
]
PRUNE_LAYERS = {DEMO: "2,5,8", "internvl-gptoss": "1,3,5"}
GRAPHS = ("vision", "embedding", "language_model")


@pytest.mark.parametrize(("model", "dtype", "experts"), MODELS, ids=lambda value: str(value))
def test_engines_are_built(
    model: str, dtype: str, experts: tuple[str, ...], wide_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs the Python package tensorrt-rtx")
    if not tensorrt_library_path("x86_64").is_file():
        pytest.skip(f"needs {tensorrt_library_path('x86_64')}: make plugins")
    out = tmp_path / "out"
    source = DEMO if model == DEMO else str(wide_checkpoint(model))
    layers = ["--prune-layers", PRUNE_LAYERS.get(model, "1,2,3")]
    assert export_main([source, str(out), "--target", "rtx", "--dtype", dtype, *layers, *experts]) == 0
    engines = msgspec.json.decode((out / "engines.json").read_bytes(), type=Engines)
    assert engines.compute_capabilities == (80, 86, 89, 120)
    assert list(engines.files) == [f"{graph}.engine" for graph in GRAPHS]
    # An engine holds its graph's weights.
    for graph in GRAPHS:
        weights = out / f"{graph}.weights"
        assert engines.files[f"{graph}.engine"].bytes > 0.9 * (weights.stat().st_size if weights.is_file() else 0)
    manifest = read_manifest(out)
    nodes = onnx.load(out / "language_model.onnx", load_external_data=False).graph.node
    counts = {op: sum(node.op_type == op for node in nodes) for op in ("FmmSparseMoE", "FmmTokenPrune")}
    assert counts == {"FmmSparseMoE": len(manifest.language_model.moe_layers), "FmmTokenPrune": 3}
    assert manifest.experts.weight_format == (experts[1] if experts else "float")
