# SPDX-License-Identifier: Apache-2.0
"""Whole models of both families become engines: every family, element type and weight format at least once.

TensorRT-RTX parses, plans and builds them with the real plugin for SM 80, 86, 89 and 120. The double of TensorRT builds
them again and runs them, beside the model in torch.
The check against torch that an export makes is left to test_engines.py.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.config import DEMO, checkpoint_directory
from fastmmoe.exporter.export import write_graphs
from fastmmoe.exporter.graph.expert_inputs import make_expert_inputs
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import MethodOption, PolicyOptions
from fastmmoe.exporter.targets import opset
from fastmmoe.plugins import tensorrt_library_path
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions, build_engines
from fastmmoe.runtime.bundle.manifest import PLUGIN, TOKENIZER, Engines, read_manifest, write_manifest
from fastmmoe.runtime.bundle.plugin_library import find_plugin
from fastmmoe.runtime.machines.targets import RTX, TARGETS
from tests.support.double import installed
from tests.support.engine_runs import check_runs
from tests.support.tensorrt_operators import READ_BY_TENSORRT_10_1

# What --dense int8 and int4 make of linear layers.
INT8 = LinearPacking("int8", 128, is_tiled=False)
DENSE_INT8 = LinearPackings(INT8, INT8)
DENSE_INT4 = LinearPackings(LinearPacking("int4", 32, zero_points=True, is_tiled=False), INT8)
FLOATS = LinearPackings()


def _of_one_worker(name: str, dtype: torch.dtype, packing: Packing | None, linears: LinearPackings = FLOATS) -> Any:
    return pytest.param(name, dtype, packing, linears, marks=pytest.mark.xdist_group(f"engines of {name}"))


# dsvl2-mla has latent attention; gpt-oss has biases, sinks and sliding layers. One family in one element type is traced
# once for all its weight formats, on one worker; the comparison bundle has Qwen3-MoE in float16.
MODELS = [
    _of_one_worker("dsvl2-mla", torch.bfloat16, None),
    _of_one_worker("dsvl2-mha", torch.float16, Packing("int4", 64, False)),
    _of_one_worker("internvl-gptoss", torch.float16, None),
    _of_one_worker("internvl-qwen3moe", torch.bfloat16, Packing("int8", 32, True)),
    _of_one_worker("internvl-qwen3moe", torch.bfloat16, Packing("fp8", 32, False)),
    _of_one_worker("internvl-qwen3moe", torch.bfloat16, Packing("int4", 32, True), DENSE_INT4),
    _of_one_worker("internvl-gptoss", torch.float16, None, DENSE_INT8),
    pytest.param(DEMO, torch.float16, None, FLOATS, marks=pytest.mark.slow),
    pytest.param("internvl-gptoss", torch.float16, Packing("int8", 64, False), FLOATS, marks=pytest.mark.slow),
    pytest.param("internvl-qwen3moe", torch.bfloat16, None, FLOATS, marks=pytest.mark.slow),
    pytest.param("internvl-gptoss", torch.bfloat16, Packing("int8", 64, False), FLOATS, marks=pytest.mark.slow),
    pytest.param("internvl-qwen3moe", torch.float16, Packing("int8", 32, True), FLOATS, marks=pytest.mark.slow),
    pytest.param("dsvl2-mla", torch.float16, Packing("int4", 32, True), DENSE_INT8, marks=pytest.mark.slow),
]
PRUNE_LAYERS = {"internvl-gptoss": (1, 3, 5)}
GRAPHS = ("vision", "embedding", "language_model")


# Attention of the published DeepSeek-VL2 models with latent attention: 576 columns, for which no kernel is fused.
TRUE_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}


DEEP = 48
"""Layers of InternVL3.5-30B-A3B."""


def skip_without_tools() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs the Python package tensorrt-rtx")
    library = tensorrt_library_path(RTX.architecture)
    if not library.is_file():
        pytest.skip(f"needs {library}: make plugins")


def write_latent_checkpoint(source: Path, directory: Path) -> Path:
    """Copy a checkpoint with latent attention, widened to TRUE_LATENT by random weights."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    language = config["language_config"]
    language |= TRUE_LATENT
    (directory / "config.json").write_text(json.dumps(config))
    H, heads, rank = (language[key] for key in ("hidden_size", "num_attention_heads", "kv_lora_rank"))
    nope, rope, v = (language[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    shapes = {
        "q_proj": (heads * (nope + rope), H),
        "kv_a_proj_with_mqa": (rank + rope, H),
        "kv_a_layernorm": (rank,),
        "kv_b_proj": (heads * (nope + v), rank),
        "o_proj": (H, heads * v),
    }
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(0)
    for name in tensors:
        if ".self_attn." in name:
            shape = shapes[name.split(".")[-2]]
            tensors[name] = rng.normal(0, 0.1, shape).astype(tensors[name].dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_deep_checkpoint(source: Path, directory: Path) -> Path:
    """Copy a checkpoint of Qwen3-MoE with DEEP layers of random weights, in the shapes of layer 1."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = DEEP
    (directory / "config.json").write_text(json.dumps(config))
    tensors, rng, start = load_file(directory / "model.safetensors"), np.random.default_rng(0), ".layers.1."
    for name in [name for name in tensors if start in name and name.startswith("language_model.")]:
        shape, dtype = tensors[name].shape, tensors[name].dtype
        for layer in range(DEEP):
            tensors[name.replace(start, f".layers.{layer}.")] = rng.normal(0, 0.1, shape).astype(dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_bundle(
    source: Path, out: Path, precision: Precision, prune_layers: tuple[int, ...], method: MethodOption = "fastmmoe"
) -> Model:
    """What an export for TensorRT-RTX writes, without its check."""
    library, plugin = find_plugin(TARGETS["rtx"], RTX)
    model = Model(Checkpoint(source), PolicyOptions(prune_layers=prune_layers, method=method), precision)
    processor = read_processor_config(source, model.config_reader, vocab_size=model.config.vocab_size)
    out.mkdir()
    dtype = {torch.float16: "fp16", torch.bfloat16: "bf16"}[precision.experts]
    write_graphs(out, source.name, model, opset=opset(TARGETS["rtx"], dtype), portable=False, say=print)
    inputs = make_expert_inputs(out / "language_model.onnx")
    shutil.copyfile(library, out / PLUGIN)
    shutil.copyfile(source / TOKENIZER, out / TOKENIZER)
    manifest = build_manifest(
        out,
        source.name,
        model,
        processor,
        target="rtx",
        dtype=dtype,
        portable=False,
        plugin=plugin,
        expert_inputs=inputs,
    )
    write_manifest(out, manifest)
    return model


def check_sizes(out: Path, engines: Engines) -> None:
    """An engine holds its graph's weights as they are stored, but for the experts', which it takes as inputs."""
    experts = sum(tensor.bytes for tensor in read_manifest(out).experts.inputs.values())
    for graph in GRAPHS:
        weights = (out / f"{graph}.data").stat().st_size - (experts if graph == "language_model" else 0)
        assert engines.files[f"{graph}.engine"].bytes > 0.9 * weights
    assert experts > 0


def check_operators(out: Path, version: int) -> None:
    """The parser of JetPack 6.2's TensorRT knows every operator but ours; it reads up to opset 20."""
    for graph in GRAPHS:
        model = onnx.load(out / f"{graph}.onnx", load_external_data=False)
        assert [used.version for used in model.opset_import if not used.domain] == [version]
        assert {node.op_type for node in model.graph.node if not node.domain} <= READ_BY_TENSORRT_10_1


def check_linears(model: Model, nodes: Sequence[onnx.NodeProto]) -> None:
    """Every packed linear layer is in a node of its format, and nothing else is: outputs by format."""
    found, expected = Counter[str](), Counter[str]()
    for node in nodes:
        if node.op_type == "FmmLinear":
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found[attributes["weight_format"].decode()] += attributes["out_features"]
    for name, parameter in model.graphs.language_model.named_parameters():
        packing = model.linear_packing(f"language_model.{name}")
        if packing is not None:
            expected[packing.weight_format] += parameter.shape[0]
    assert found == expected


@pytest.mark.parametrize(("name", "dtype", "packing", "linears"), MODELS, ids=str)
def test_engines_are_built_and_run(
    name: str,
    dtype: torch.dtype,
    packing: Packing | None,
    linears: LinearPackings,
    wide_checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    skip_without_tools()
    source = checkpoint_directory(DEMO) if name == DEMO else wide_checkpoint(name)
    precision, out = Precision(dtype, dtype, packing=packing, linears=linears), tmp_path / "out"
    model = write_bundle(source, out, precision, PRUNE_LAYERS.get(name, (1, 2, 3)))
    lines: list[str] = []
    engines = build_engines(out, say=lines.append)
    assert engines.compute_capabilities == (80, 86, 89, 120)
    assert list(engines.files) == [f"{graph}.engine" for graph in GRAPHS]
    assert [line.split(":")[0] for line in lines if line.startswith("built ")] == [f"built {graph}" for graph in GRAPHS]
    check_sizes(out, engines)
    check_operators(out, 20 if dtype == torch.float16 else 22)
    nodes = onnx.load(out / "language_model.onnx", load_external_data=False).graph.node
    experts = [node for node in nodes if node.op_type == "FmmSparseMoE"]
    assert len(experts) == len(model.config.moe_layers)
    formats = {onnx.helper.get_node_attr_value(node, "weight_format").decode() for node in experts}
    assert formats == {"float" if packing is None else packing.weight_format}
    assert sum(node.op_type == "FmmTokenPrune" for node in nodes) == 3
    check_linears(model, nodes)
    with installed() as double:
        check_runs(out, float32_twin(source, model), double, {"method": "none"}, {"retention": 0.5}, {"retention": 0.2})


def float32_twin(source: Path, model: Model, method: MethodOption = "fastmmoe") -> Model:
    """The model in float32 with exactly the values of its exported weights."""
    options = PolicyOptions(prune_layers=next(iter(model.policy.prune_layers.values())), method=method)
    return Model(Checkpoint(source), options, model.precision.float32_twin())


def test_engines_of_a_comparison_bundle(wide_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The sites of every method in one engine, sparsevlm's of standard operators among them."""
    skip_without_tools()
    out, precision = tmp_path / "out", Precision(torch.float16, torch.float16)
    source = wide_checkpoint("internvl-qwen3moe")
    model = write_bundle(source, out, precision, (1, 2, 3), "all")
    assert len(model.policy.sites) == 7
    engines = build_engines(out, say=print)
    check_sizes(out, engines)
    check_operators(out, 20)
    nodes = onnx.load(out / "language_model.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "FmmTokenPrune" for node in nodes) == 4
    requests = [{"method": method, "retention": 0.5} for method in model.policy.prune_layers]
    with installed() as double:
        check_runs(out, float32_twin(source, model, "all"), double, *requests)


def test_latent_attention_of_true_width(wide_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    skip_without_tools()
    source = write_latent_checkpoint(wide_checkpoint("dsvl2-mla"), tmp_path / "latent")
    model = write_bundle(source, tmp_path / "out", Precision(torch.float16, torch.float16), (1, 2, 3))
    assert model.config.kv_lora_rank + model.config.rope_dim == 576
    check_sizes(tmp_path / "out", build_engines(tmp_path / "out", say=print))


@pytest.mark.slow
def test_as_many_layers_as_a_published_model(wide_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """48 layers whose 96 caches alias, of up to four sequences, in four groups of capacities of their own."""
    skip_without_tools()
    source, out = write_deep_checkpoint(wide_checkpoint("internvl-qwen3moe"), tmp_path / "deep"), tmp_path / "out"
    model = write_bundle(source, out, Precision(torch.float16, torch.float16), (5, 8, 12))
    engines = build_engines(out, BuildOptions(max_batch=4), say=print)
    assert engines.compute_capabilities == (80, 86, 89, 120) and engines.limits.max_batch == 4
    check_sizes(out, engines)
    graph = onnx.load(out / "language_model.onnx", load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "FmmAttention"]
    assert len(attention) == len(model.config.moe_layers) == DEEP
    caches = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in graph.input if "values." in i.name}
    assert len(caches) == 2 * DEEP and {shape[0] for shape in caches.values()} == {"B"}
    assert {shape[2] for shape in caches.values()} == {"C0", "C1", "C2", "C3"}
