# SPDX-License-Identifier: Apache-2.0
"""Graphs of 16 bits as float32: the numbers they compute, weights where they were, constants with all their digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fastmmoe.exporter.check import widened
from fastmmoe.exporter.check.widened import write_widened
from fastmmoe.exporter.models.layers import VisionAttention
from fastmmoe.exporter.ops import DOMAIN, LINEAR, SPARSE_MOE
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, graph_file, weights_file
from fastmmoe.runtime.bundle.storage import ExpertsInfo, ExpertTensor
from tests.support.manifests import toy_manifest
from tests.support.operators import moe_attributes

HALF = TensorProto.FLOAT16
WEIGHT = np.array([[1.5, -2.0], [0.25, 4.0]], np.float16)
MOE = "layers.1.mlp.experts."


def external(name: str, graph: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=HALF, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", weights_file(graph)), ("offset", "0"), ("length", str(WEIGHT.nbytes))):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    return tensor


def half(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, HALF, shape)


def vision() -> onnx.GraphProto:
    """y = (x W) c d, with c = 0.044715 and d = 8^-0.5, both rounded, and a cast."""
    constants = [numpy_helper.from_array(np.array([v], np.float16), n) for n, v in (("c", 0.044715), ("d", 8**-0.5))]
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=HALF),
        helper.make_node("MatMul", ["x16", "W"], ["a"]),
        helper.make_node("Mul", ["a", "c"], ["b"]),
        helper.make_node("Mul", ["b", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    return helper.make_graph(nodes, "vision", [x], [half("y", "n", 2)], [external("W", "vision"), *constants])


def embedding() -> onnx.GraphProto:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["T"])
    node = helper.make_node("Gather", ["W", "ids"], ["y"])
    return helper.make_graph([node], "embedding", [ids], [half("y", "T", 2)], [external("W", "embedding")])


def language_model(packing: Packing | None) -> onnx.GraphProto:
    """One MoE node, whose experts are inputs."""
    attributes = moe_attributes() | ({} if packing is None else packing.attributes())
    kind = HALF if packing is None else TensorProto.INT8
    columns = 64 if packing is None or packing.weight_format != "int4" else 32
    names, values = [], []
    for tensor in SPARSE_MOE.inputs_for(attributes):
        is_expert = tensor.name.startswith(("gate_up", "down"))
        names.append(f"{MOE}{tensor.name}" if is_expert else tensor.name)
        shape: tuple[int | str, ...] = (
            (3, 64, columns) if is_expert else tuple(f"{tensor.name}{d}" for d in tensor.shape)
        )
        types = {
            "F": HALF,
            "W": kind,
            "float": TensorProto.FLOAT,
            "int32": TensorProto.INT32,
            "float16": HALF,
            "int8": 3,
        }
        values.append(helper.make_tensor_value_info(names[-1], types[tensor.types[0]], shape))
    node = helper.make_node(
        SPARSE_MOE.name, names, ["y"], "layers.1.mlp.experts/FmmSparseMoE", domain=DOMAIN, **attributes
    )
    return helper.make_graph([node], "language_model", values, [half("y", "T", 64)])


class Tower(torch.nn.Module):
    """Heads of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = VisionAttention(32, 4, qkv_bias=True)


def write(directory: Path, packing: Packing | None = None) -> tuple[Path, Manifest]:
    """A bundle of 16 bits, widened, and the manifest of that."""
    bundle = directory / "bundle"
    bundle.mkdir()
    for name, graph in zip(GRAPHS, (vision(), embedding(), language_model(packing)), strict=True):
        imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
        onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), str(bundle / graph_file(name)))
        (bundle / weights_file(name)).write_bytes(WEIGHT.tobytes())
    inputs = {
        f"{MOE}{name}": ExpertTensor(dtype="float16" if packing is None else "int8", shape=(3, 64, 64), offset=0)
        for name in ("gate_up", "down")
    }
    weight_format: Any = "float" if packing is None else packing.weight_format
    manifest = msgspec.structs.replace(
        toy_manifest("deepseek_vl2"),
        activation_dtype="float16",
        cache_dtype="float16",
        experts=ExpertsInfo(weight_format=weight_format, group_size=0, zero_points=False, inputs=inputs),
    )
    return directory / "check", write_widened(bundle, directory / "check", manifest, Tower())


def run(path: Path, **inputs: Any) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]
    return found


def test_numbers_are_those_of_float32(tmp_path: Path) -> None:
    """Neither an input nor a constant is rounded, weights are what is stored."""
    directory, _ = write(tmp_path)
    x = np.array([[1.0001, -3.00007]], np.float32)
    expected = x @ WEIGHT.astype(np.float32) * np.float32(0.044715) * np.float32(8**-0.5)
    found = run(directory / graph_file("vision"), x=x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    rows = run(directory / graph_file("embedding"), ids=np.array([1, 0], np.int32))
    np.testing.assert_array_equal(rows, WEIGHT[[1, 0]].astype(np.float32))


@pytest.mark.parametrize(("held", "meant"), [(0.484375, 18**-0.25), (0.486328125, 18**-0.25), (0.48828125, 0.48828125)])
def test_a_scale_that_was_rounded_twice(held: float, meant: float) -> None:
    """Of heads of 18 in bfloat16: the root of 18^-0.5 as it is rounded, or the scale; the next is neither."""
    tensor = helper.make_tensor("scale", TensorProto.BFLOAT16, [1], [held])
    widened._widen_tensor(tensor, [0.044715, 18**-0.25])
    assert numpy_helper.to_array(tensor) == np.float32(meant)


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    """In the bundle's own file, in 16 bits; of a table only the rows that are taken become float32."""
    directory, _ = write(tmp_path)
    file = directory / weights_file("vision")
    assert file.samefile(tmp_path / "bundle" / weights_file("vision"))
    for graph, taken in (("vision", "W.stored"), ("embedding", "y.stored")):
        nodes = onnx.load(str(directory / graph_file(graph)), load_external_data=False).graph.node
        assert next(node.input[0] for node in nodes if node.op_type == "Cast") == taken


@pytest.mark.parametrize(
    "packing", [None, Packing("int4", 32, True), Packing("int8", 64, False), Packing("fp8", 32, False)]
)
def test_experts_are_inputs_of_floats(packing: Packing | None, tmp_path: Path) -> None:
    directory, manifest = write(tmp_path, packing)
    (node,) = onnx.load(str(directory / graph_file("language_model"))).graph.node
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (attributes["weight_format"], attributes["group_size"]) == (b"float", 0)
    dtype = "float16" if packing is None else "bfloat16"
    assert {(t.dtype, t.shape) for t in manifest.experts.inputs.values()} == {(dtype, (3, 64, 64))}
    assert list(node.input)[5:7] == [f"{MOE}gate_up", f"{MOE}down"]
    assert (manifest.activation_dtype, manifest.cache_dtype, manifest.experts.weight_format) == (
        "float32",
        "float32",
        "float",
    )
    graph = onnx.load(str(directory / graph_file("language_model"))).graph
    kept = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    assert kept["hidden_states"] == TensorProto.FLOAT
    assert kept[f"{MOE}down"] == (HALF if packing is None else TensorProto.BFLOAT16)
    assert not [name for name in kept if name.endswith(("_scale", "_zero"))]


def test_a_directory_of_an_interrupted_export_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "old").write_text("")
    directory, _ = write(tmp_path)
    assert not (directory / "old").exists()


def test_files_that_cannot_be_linked_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("os.link", link)
    directory, _ = write(tmp_path)
    assert (directory / weights_file("vision")).read_bytes() == WEIGHT.tobytes()


def test_scales_of_linear_layers_keep_their_16_bits() -> None:
    """The contract has them so beside any activations; what stands beside them becomes float32."""
    packing = LinearPacking("int8", 32, is_tiled=False)
    parts = packing.pack(np.ones((4, 32), np.float32)) | {"bias": np.ones(4, np.float16)}
    attributes = packing.attributes(4, has_bias=True)
    names = [tensor.name for tensor in LINEAR.inputs_for(attributes)]
    node = helper.make_node(LINEAR.name, names, ["y"], domain=DOMAIN, **attributes)
    stored = [numpy_helper.from_array(values, name) for name, values in parts.items()]
    graph = helper.make_graph([node], "language_model", [half("x", "T", 32)], [half("y", "T", 4)], stored)
    widened._widen(graph, set(widened._scales(graph)), [])
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert found == {"weight": TensorProto.INT8, "scale": HALF, "bias": TensorProto.FLOAT}
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
