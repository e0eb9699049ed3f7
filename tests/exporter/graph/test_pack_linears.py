# SPDX-License-Identifier: Apache-2.0
"""Packed linear layers in an exported bundle: which layers are, what the files hold, and what plans say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.export import export
from fastmmoe.exporter.fit.sizes import read_sizes
from fastmmoe.exporter.graph.pack_linears import PackedLinearTensor, pack_linears
from fastmmoe.exporter.graph.weights import parameter_tensor
from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.runtime.backends.fit import check_operators
from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.cost.weights import decoder_linear_layers, weights_bytes
from tests.support.linear_cases import logical_attributes

N, K = 40, 100
WEIGHT = torch.randn((N, K), generator=torch.Generator().manual_seed(0))
INT4 = LinearPacking("int4", 32, zero_points=True)


def one_layer(calls: list[int]) -> ir.Model:
    """A traced layer, packed; its rows are read in two pieces that calls counts."""

    def unreadable(name: str) -> torch.Tensor:
        raise AssertionError("the floating-point weights are not written")

    def rows(name: str, count: int) -> Iterator[torch.Tensor]:
        assert name == "layer.weight" and count % 16 == 0
        calls.append(count)
        yield from (WEIGHT[:32], WEIGHT[32:])

    x, bias = ir.val("x", ir.DataType.FLOAT, ("T", K)), ir.val("layer.bias", ir.DataType.FLOAT, (N,))
    tensor = parameter_tensor("layer.weight", ir.DataType.FLOAT, (N, K), unreadable)
    weight = ir.val("layer.weight", ir.DataType.FLOAT, (N, K), const_value=tensor)
    attributes = logical_attributes(N, has_bias=True)
    node = ir.node(LINEAR.name, [x, weight, bias], attributes, domain="fastmmoe", name="layer/FmmLinear")
    node.outputs[0].name = "y"
    graph = ir.Graph([x, bias], [node.outputs[0]], nodes=[node], initializers=[weight], name="g")
    model = ir.Model(graph, ir_version=11)
    pack_linears(model, lambda name: INT4, rows)
    return model


def test_a_layer_is_packed_once_and_written_in_pieces(tmp_path: Path) -> None:
    calls: list[int] = []
    model = one_layer(calls)
    (node,) = model.graph
    assert {name: a.value for name, a in node.attributes.items()} == INT4.attributes(N, has_bias=True)
    names = ["x", "layer.weight", "layer.bias", "layer.weight_scale", "layer.weight_zero"]
    assert [value.name for value in node.inputs if value is not None] == names
    expected, reported = INT4.pack(WEIGHT.numpy()), list[int]()
    for value, part in zip((node.inputs[1], *node.inputs[3:]), ("weight", "scale", "zero"), strict=True):
        assert value is not None and isinstance(value.const_value, PackedLinearTensor)
        with (tmp_path / "file").open("w+b") as file:
            value.const_value.write(file.fileno(), 3, reported.append)
            assert file.read()[3:] == expected[part].tobytes()
    assert len(calls) == 1 and sum(reported) == sum(values.nbytes for values in expected.values())


@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla", "internvl-gptoss"])
def test_an_export_packs_all_but_routers_and_embeddings(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = checkpoint(name), tmp_path / "out"
    lines: list[str] = []
    formats = {"experts": "int4", "dense": "int4", "vision": "bf16", "group_size": 32, "zero_points": True}
    config = ExportConfig(str(source), out, **formats)  # type: ignore[arg-type]
    export(config, say=lines.append)
    assert any("portable: FmmLinear" in line for line in lines)
    assert sum("[✓] exact = onnxruntime as it runs: " in line for line in lines) == 2  # vision, logits
    manifest = read_manifest(out)
    stored = [getattr(manifest.linears, part).weight_format for part in ("dense", "head", "vision")]
    assert stored == ["int4", "int8", "bf16"]
    for graph in manifest.operator_graphs:
        nodes = list(ir.load(out / f"{graph}.onnx").graph)
        products = [n for n in nodes if n.op_type in ("MatMul", "Gemm") and n.inputs[1] and n.inputs[1].const_value]
        # What is left are routers, and matrices of latent attention and of patches that are no linear layers.
        assert all("router" in str(n.name) or "self_attn" in str(n.name) for n in products)
        assert len([n for n in nodes if n.op_type == LINEAR.name]) > 0
        assert (out / f"{graph}.portable.onnx").is_file()
    check_sizes(out, source, is_tiled=True)


def check_sizes(out: Path, source: Path, *, is_tiled: bool) -> None:
    """Files are as large as a plan says; is_tiled: of experts."""
    manifest = read_manifest(out)
    planned = weights_bytes(manifest, read_sizes(str(source)).parameters, is_tiled=is_tiled)
    for graph in ("vision", "language_model"):
        sizes = [size for part, size in planned.items() if (part == "vision") == (graph == "vision")]
        total = sum(sizes) - (planned["embedding"] if graph == "language_model" else 0)
        # What is aligned to pages is much of a small file.
        model = ir.load(out / f"{graph}.onnx").graph
        count = len(list(model.initializers)) + len(manifest.experts.inputs)
        assert 0 <= manifest.files[f"{graph}.data"].bytes - total + 4096 < 4096 * (count + 1)


def test_an_export_for_engines_packs_the_decoder_in_rows(
    wide_checkpoint: Callable[[str], Path], fake_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    fake_plugin(architecture="aarch64")
    source, out = wide_checkpoint("dsvl2-mha"), tmp_path / "out"
    lines: list[str] = []
    export(ExportConfig(str(source), out, target="jetson-orin", weights="int4"), say=lines.append)
    compared = [line for line in lines if line.startswith("[✓] torch = onnxruntime, read as float32: ")]
    assert len(compared) == 6 and not [line for line in lines if "as it runs" in line or "portable" in line]
    manifest = read_manifest(out)
    stored = [getattr(manifest.linears, part).weight_format for part in ("dense", "head", "vision")]
    assert stored == ["int4", "int8", "float"]
    assert "FmmLinear" in manifest.ops and "FmmRotary" not in manifest.ops
    graph = ir.load(out / "language_model.onnx").graph
    linears = [node for node in graph if node.op_type == LINEAR.name]
    outputs = sum(rows * count for _, rows, _, count in decoder_linear_layers(manifest.language_model))
    assert sum(node.attributes["out_features"].as_int() for node in linears) == outputs
    assert {node.attributes["weight_layout"].as_string() for node in linears} == {"logical"}
    assert {str(node.inputs[1].dtype) for node in linears if node.inputs[1]} == {"INT8"}
    check_operators(out / "language_model.onnx", manifest)
    check_sizes(out, source, is_tiled=False)


def test_an_export_is_the_same_again(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a model that is traced for the test above."""
    for out in ("a", "b"):
        config = ExportConfig(str(checkpoint("internvl-gptoss")), tmp_path / out, dense="bf16", vision="int8")
        export(config, say=lambda line: None)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
