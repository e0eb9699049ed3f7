# SPDX-License-Identifier: Apache-2.0
"""Integer experts in an exported graph: what the nodes get, and that it stands for the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.graph.pack_experts import PackedTensor, pack_experts
from fastmmoe.exporter.graph.weights import parameter_tensor
from fastmmoe.exporter.model import round_experts
from fastmmoe.exporter.ops import SPARSE_MOE
from fastmmoe.exporter.ops.quantise import Packing, QuantisedWeights, dequantise
from fastmmoe.exporter.ops.sparse_moe.storage import Storage
from fastmmoe.exporter.ops.sparse_moe.tile_order import rows_of_tiles, untile_scales, untile_weights
from fastmmoe.runtime.bundle.manifest import read_manifest
from tests.support.operators import (
    moe_attributes,
)

E, H, I = 4, 96, 160  # noqa: E741
SHAPES = {"gate_up": (E, 2 * I, H), "down": (E, H, I)}
FLOAT = moe_attributes(top_k=2, reduction_weights="none", swiglu_limit=0.0, expert_bias=1)


def weights_of(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(SHAPES[name.rpartition(".")[2]], generator=generator)


def experts_of(name: str) -> Iterator[torch.Tensor]:
    return iter(weights_of(name))


def traced_layers(count: int) -> ir.Model:
    """Nodes one after the other, with weights that cannot be read: packing reads them through its function."""

    def unreadable(name: str) -> torch.Tensor:
        raise AssertionError("the floating-point weights are not written")

    x, nodes, initializers = ir.val("x", ir.DataType.FLOAT16, ("T", H)), [], []
    others = [ir.val(t.name) for t in SPARSE_MOE.inputs[1:5]]
    biases = [ir.val(t.name) for t in SPARSE_MOE.inputs[7:9]]
    value = x
    for layer in range(count):
        weights = []
        for name, shape in SHAPES.items():
            full = f"layers.{layer}.mlp.experts.{name}"
            tensor = parameter_tensor(full, ir.DataType.FLOAT16, shape, unreadable)
            weights.append(ir.val(full, ir.DataType.FLOAT16, shape, const_value=tensor))
        initializers += weights
        node = ir.node(SPARSE_MOE.name, [value, *others, *weights, *biases], FLOAT, domain="fastmmoe", name=f"n{layer}")
        value = node.outputs[0]
        value.name = f"y{layer}"
        nodes.append(node)
    graph = ir.Graph([x, *others, *biases], [value], nodes=nodes, initializers=initializers, name="g")
    return ir.Model(graph, ir_version=11)


HALF_STEP = {"int8": 0.6, "int4": 0.6, "fp8": 16.6}
"""In scales, of the greatest weights, a little more."""


@pytest.mark.parametrize(
    "packing", [Packing("int8", 64, False), Packing("int4", 128, True), Packing("fp8", 32, False)], ids=str
)
def test_nodes_get_integers_that_stand_for_the_weights(packing: Packing) -> None:
    model = traced_layers(2)
    pack_experts(model, experts_of, Storage(packing, is_tiled=False))
    assert [node.outputs[0].name for node in model.graph] == ["y0", "y1"]
    assert model.graph[1].inputs[0] is model.graph[0].outputs[0]
    assert model.graph.outputs[0] is model.graph[1].outputs[0]
    for layer, node in enumerate(model.graph):
        attributes = {name: a.value for name, a in node.attributes.items()}
        assert attributes == FLOAT | packing.attributes() | {"weight_layout": "logical", "expert_size": 0}
        expected = SPARSE_MOE.inputs_for(attributes)
        given: dict[str, Any] = dict(zip((t.name for t in expected), node.inputs, strict=True))
        assert given["gate_up_bias"].name == "gate_up_bias"
        for weight in SHAPES:
            parts: dict[str, Any] = {s: given.get(weight + s) for s in ("", "_scale", "_zero")}
            arrays = {s: part.const_value.numpy() for s, part in parts.items() if part is not None}
            for suffix, array in arrays.items():
                part = parts[suffix]
                assert part.name == f"layers.{layer}.mlp.experts.{weight}{suffix}"
                assert tuple(part.const_value.shape) == array.shape
                assert part.const_value.dtype == ir.DataType.from_numpy(array.dtype)
                assert model.graph.initializers[part.name] is part
            assert ("_zero" in arrays) == packing.zero_points
            scale = arrays["_scale"]
            quantised = QuantisedWeights(arrays[""], scale, arrays.get("_zero"))
            stands_for = dequantise(quantised, packing.weight_format, packing.group_size)
            loaded = weights_of(f"layers.{layer}.mlp.experts.{weight}")
            np.testing.assert_array_equal(stands_for, round_experts(loaded, packing).numpy())
            assert np.abs(stands_for - loaded.numpy()).max() < HALF_STEP[packing.weight_format] * scale.max()
    assert len(model.graph.initializers) == 2 * (6 if packing.zero_points else 4)


STORAGES = (
    Storage(Packing("int8", 64, False), is_tiled=False),
    Storage(Packing("int4", 128, True), is_tiled=True),
    Storage(None, is_tiled=True),
)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_experts_are_packed_once_and_written_one_by_one(storage: Storage, tmp_path: Path) -> None:
    calls: list[str] = []

    def counted(name: str) -> Iterator[torch.Tensor]:
        calls.append(name)
        return experts_of(name)

    model = traced_layers(2)
    pack_experts(model, counted, storage)
    tensors = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, PackedTensor)]
    written: list[bytes] = []
    reported: list[int] = []
    for tensor in tensors:
        with (tmp_path / "file").open("w+b") as file:
            tensor.write(file.fileno(), 3, reported.append)
            written.append(file.read()[3:])
    assert sorted(calls) == sorted(f"layers.{i}.mlp.experts.{name}" for i in range(2) for name in SHAPES)
    assert written == [tensor.tobytes() for tensor in tensors]
    assert sum(reported) == sum(map(len, written)) and max(reported) < max(map(len, written))


@pytest.mark.parametrize("storage", [STORAGES[1], STORAGES[2]], ids=str)
def test_tiles_are_the_packed_weights_in_another_order(storage: Storage) -> None:
    plain, tiled = traced_layers(1), traced_layers(1)
    if storage.packing is not None:
        pack_experts(plain, experts_of, Storage(storage.packing, is_tiled=False))
    pack_experts(tiled, experts_of, storage)
    (node,) = tiled.graph
    attributes = {name: a.value for name, a in node.attributes.items()}
    rows = {"gate_up": SHAPES["gate_up"][1] // 2, "down": SHAPES["down"][1]}
    assert (attributes["weight_layout"], attributes["expert_size"]) == ("tiles", rows["gate_up"])
    for weight in SHAPES:
        own = f"layers.0.mlp.experts.{weight}"
        is_gate_up = weight == "gate_up"
        for part in storage.parts:
            found = tiled.graph.initializers[own + part].const_value
            assert found is not None
            if storage.packing is None:
                expected = weights_of(own).bfloat16().view(torch.int16).numpy()
            else:
                of_plain = plain.graph.initializers[own + part].const_value
                assert of_plain is not None
                expected = of_plain.numpy()
            array = found.numpy().view(expected.dtype)
            assert tuple(found.shape) == array.shape
            if part:
                again = untile_scales(array, rows[weight], is_gate_up=is_gate_up)
            else:
                again = untile_weights(array, rows[weight], expected.shape[-1], is_gate_up=is_gate_up)
            np.testing.assert_array_equal(again, expected)
            every = np.arange(expected.shape[0] * expected.shape[1])
            some = rows_of_tiles(array, every, expected.shape[1], is_gate_up=is_gate_up)[:, : expected.shape[-1]]
            np.testing.assert_array_equal(some, expected.reshape(len(every), -1))


def test_scales_alone_are_those_of_the_whole(tmp_path: Path) -> None:
    """As when an export goes on after the integers."""
    model = traced_layers(1)
    pack_experts(model, experts_of, Storage(Packing("int8", 64, False), is_tiled=False))
    scale = model.graph.initializers["layers.0.mlp.experts.down_scale"].const_value
    assert isinstance(scale, PackedTensor)
    with (tmp_path / "file").open("w+b") as file:
        scale.write(file.fileno(), 0, lambda _: None)
        assert file.read() == scale.tobytes()


def test_exported_bundle_says_how_its_experts_are_stored(
    wide_checkpoint: Callable[[str], Path], fake_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    from fastmmoe.exporter.export import export

    fake_plugin(architecture="aarch64")
    config = ExportConfig(
        str(wide_checkpoint("dsvl2-mha")),
        tmp_path / "out",
        "jetson-orin",
        experts="int8",
        group_size=32,
        zero_points=True,
    )
    lines: list[str] = []
    export(config, say=lines.append)
    experts = read_manifest(tmp_path / "out").experts
    assert (experts.weight_format, experts.group_size, experts.zero_points) == ("int8", 32, True)
    assert {name.rpartition(".")[2] for name in experts.inputs} == {
        f"{weights}{suffix}" for weights in ("gate_up", "down") for suffix in ("", "_scale", "_zero")
    }
    nodes = [n for n in ir.load(tmp_path / "out" / "language_model.onnx").graph if n.op_type == SPARSE_MOE.name]
    assert nodes and all(n.attributes["weight_format"].value == "int8" for n in nodes)
