# SPDX-License-Identifier: Apache-2.0
"""Engines of one node, built by the real TensorRT-RTX with the built plugin. Nothing here runs an engine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest

from fastmmoe.exporter.ops import DOMAIN, OPS
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.quantise import quantise
from fastmmoe.plugins import tensorrt_library_path
from fastmmoe.runtime.backends.tensorrt.api import EngineReply, EngineRequest
from fastmmoe.runtime.machines.targets import RTX
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import SMALL, make_inputs
from tests.support.linear_cases import IN_ROWS, linear_case, packing_id
from tests.support.operators import moe_attributes, moe_inputs, prune_inputs

Build = Callable[[str, dict[str, Array], dict[str, Any]], EngineReply]

SPECS = {spec.name: spec for spec in OPS}
FLOATS = ("hidden_states", "residual", "gate_up", "down", "gate_up_bias", "down_bias")
# Dimensions that change from request to request: least, typical and greatest size of prefill and of decoding.
Sizes = dict[str, tuple[int, int, int]]
PREFILL: Sizes = {"T": (1, 60, 4096), "V": (0, 44, 2048), "K": (0, 20, 2048), "M": (0, 3, 200), "B+1": (2, 2, 9)}
DECODE: Sizes = {"T": (1, 1, 1), "V": (0, 0, 0), "K": (0, 0, 0), "M": (0, 0, 0), "B+1": (2, 2, 2)}
CACHES: Sizes = {"B": (1, 1, 8), "C": (256, 2048, 8192)}
PROFILES: dict[str, tuple[Sizes, Sizes]] = {
    "FmmSparseMoE": (PREFILL, DECODE),
    "FmmTokenPrune": (PREFILL, DECODE),
    "FmmAttention": (
        {"T": (1, 60, 4096), "A+1": (2, 2, 9), **CACHES},
        {"T": (1, 1, 8), "A+1": (2, 2, 9), **CACHES},
    ),
    "FmmLinear": ({"T": (1, 60, 4096)}, {"T": (1, 1, 8)}),
}


def one_node_model(op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> bytes:
    """What has no dimension of the profiles is an initializer, except visual_top_k and alpha."""
    spec, sizes = SPECS[op], PROFILES[op][0]
    tensors, outputs = spec.inputs_for(attributes), spec.outputs_for(attributes)
    varying = [t for t in tensors if set(t.shape) & set(sizes) or t.name in ("visual_top_k", "alpha")]
    element_type = onnx.helper.np_dtype_to_tensor_dtype
    value_infos = [
        onnx.helper.make_tensor_value_info(
            t.name,
            element_type(inputs[t.name].dtype),
            [d if d in sizes else n for d, n in zip(t.shape, inputs[t.name].shape, strict=True)],
        )
        for t in varying
    ]
    types = {t.types[0]: element_type(inputs[t.name].dtype) for t in tensors} | {"float": onnx.TensorProto.FLOAT}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, [t.name for t in tensors], [t.name for t in outputs], domain=DOMAIN, **attributes)],
        "one_node",
        value_infos,
        [onnx.helper.make_tensor_value_info(t.name, types[t.types[0]], None) for t in outputs],
        [onnx.numpy_helper.from_array(inputs[t.name], t.name) for t in tensors if t not in varying],
    )
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, spec.version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def profile(op: str, inputs: dict[str, Array], sizes: Sizes) -> dict[str, Any]:
    """Shapes of the inputs with a dimension of `sizes`."""
    return {
        t.name: tuple(
            tuple(sizes[d][i] if d in sizes else n for d, n in zip(t.shape, inputs[t.name].shape, strict=True))
            for i in range(3)
        )
        for t in SPECS[op].inputs
        if t.name in inputs and set(t.shape) & set(sizes)
    }


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Function (op, inputs, attributes) -> what TensorRT-RTX says of an engine with two profiles."""
    libraries = importlib.util.find_spec(f"{RTX.module}_libs")
    if libraries is None or not libraries.submodule_search_locations:
        pytest.skip(f"needs {RTX.module}: {RTX.install}")
    # The parser looks for a name that the package does not have.
    (tmp_path / f"lib{RTX.module}.so").symlink_to(
        Path(libraries.submodule_search_locations[0]) / f"lib{RTX.module}.so.1"
    )
    library = tensorrt_library_path("x86_64")
    if not library.is_file():
        pytest.skip(f"needs {library}: make plugins")

    def run(op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> EngineReply:
        graph, request, reply = (tmp_path / name for name in ("node.onnx", "request.json", "reply.json"))
        graph.write_bytes(one_node_model(op, inputs, attributes))
        asked = EngineRequest(
            module=RTX.module,
            graph=str(graph),
            plugin=str(library),
            output=str(tmp_path / "node.engine"),
            profiles=tuple(profile(op, inputs, sizes) for sizes in PROFILES[op]),
            compute_capabilities=(86,),
            workspace_mib=None,
            timing_cache=None,
        )
        request.write_bytes(msgspec.json.encode(asked))
        command = [sys.executable, "-m", "fastmmoe.runtime.backends.tensorrt.api", str(request), str(reply)]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(reply.read_bytes(), type=EngineReply)

    return run


def with_dtype(inputs: dict[str, Array], dtype: Any) -> dict[str, Array]:
    return {
        name: value.astype(dtype) if name in FLOATS and value.dtype == np.float32 else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("weight_format", ["float", "int8", "int4", "fp8"])
def test_sparse_moe(build: Build, weight_format: str, dtype: Any) -> None:
    inputs = moe_inputs(H=64, I=96, expert_bias=True)
    attributes = moe_attributes(expert_bias=1)
    if weight_format != "float":
        attributes |= {"weight_format": weight_format, "group_size": 32, "zero_points": int(weight_format == "int4")}
        for name in ("gate_up", "down"):
            weights = quantise(inputs[name], weight_format, 32, zero_points=weight_format == "int4")
            inputs |= {name: weights.values, f"{name}_scale": weights.scale}
            if weights.zero is not None:
                inputs[f"{name}_zero"] = weights.zero
    reply = build("FmmSparseMoE", with_dtype(inputs, dtype), attributes)
    assert reply.error == ""
    assert reply.engine is not None
    weight_bytes = sum(inputs[name].size for name in ("gate_up", "down")) * (2 if weight_format == "float" else 1)
    # Weights are inputs of the node, which the engine stores once and as they are.
    assert weight_bytes < reply.engine.bytes < 1.5 * weight_bytes


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_token_prune(build: Build, dtype: Any) -> None:
    reply = build("FmmTokenPrune", with_dtype(prune_inputs(H=64), dtype), {"window": 3, "merge": "mlerp"})
    assert reply.error == ""
    assert reply.engine is not None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["ragged, groups, lse", "window", "latent, decode"])
def test_attention(build: Build, name: str, dtype: Any) -> None:
    """With the number of sequences, of caches and their capacity left open."""
    case = next(case for case in SMALL if case.name == name)
    reply = build("FmmAttention", make_inputs(case, dtype=dtype), case.attributes)
    assert reply.error == ""
    assert reply.engine is not None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("packing", [IN_ROWS[1], IN_ROWS[-1]], ids=packing_id)
def test_linear(build: Build, packing: LinearPacking, dtype: Any) -> None:
    """The integers are constants of the network, which the engine stores once and as they are."""
    inputs, attributes = linear_case(packing, (60, 512, 512), dtype=dtype)
    reply = build("FmmLinear", inputs, attributes)
    assert reply.error == ""
    assert reply.engine is not None
    weight_bytes = packing.bytes(512, 512)
    assert weight_bytes < reply.engine.bytes < 1.5 * weight_bytes


def test_refusals_reach_the_user(build: Build) -> None:
    """The plugin's message goes to the logger of the builder, though TensorRT's finder knows none."""
    reply = build("FmmSparseMoE", moe_inputs(H=64, I=96), moe_attributes())
    assert reply.engine is None
    assert "FmmSparseMoE: hidden_states is float, expected float16 or bfloat16 on CUDA" in reply.error
