# SPDX-License-Identifier: Apache-2.0
"""What the tests of the operators share: models of one node, running them, the golden pruning cases."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from fastmmoe.exporter.ops import DOMAIN, OPS, OpSpec, Tensor
from fastmmoe.exporter.ops.functions import OPSET, function_for
from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.types import Array

HALF = ("float16", "bfloat16")
ONNX_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


def make_model(
    spec: OpSpec,
    attributes: dict[str, Any],
    types: dict[str, str],
    *,
    with_function: bool = True,
    float_edges: bool = False,
) -> onnx.ModelProto:
    """A model of one node whose dimensions are the contract's letters.

    Args:
        types: element type of each type variable.
        float_edges: inputs and outputs of 16-bit types are float32, converted inside: NumPy has no bfloat16 to feed.
    """
    names = {tensor: types.get(tensor.types[0], tensor.types[0]) for tensor in (*spec.inputs, *spec.outputs)}

    def declare(tensor: Tensor, suffix: str = "", element_type: str = "") -> ir.Value:
        dtype = ir.DataType[(element_type or names[tensor]).upper()]
        return ir.val(tensor.name + suffix, dtype=dtype, shape=tensor.shape)

    given = spec.inputs_for(attributes)
    inner = {tensor: declare(tensor) for tensor in (*given, *spec.outputs)}
    outer = dict(inner)
    before: list[ir.Node] = []
    after: list[ir.Node] = []
    for tensor in inner if float_edges else ():
        if names[tensor] not in HALF:
            continue
        outer[tensor] = declare(tensor, "_float", "float")
        ends = [outer[tensor], inner[tensor]] if tensor in given else [inner[tensor], outer[tensor]]
        cast = ir.node("Cast", ends[:1], attributes={"to": ends[1].dtype}, outputs=ends[1:])
        (before if tensor in given else after).append(cast)
    node = ir.node(
        spec.name,
        [inner[tensor] for tensor in given],
        attributes=attributes,
        outputs=[inner[tensor] for tensor in spec.outputs],
        domain=DOMAIN,
    )
    graph = ir.Graph(
        [outer[tensor] for tensor in given],
        [outer[tensor] for tensor in spec.outputs],
        nodes=[*before, node, *after],
        opset_imports={"": OPSET, DOMAIN: spec.version},
        name="one_node",
    )
    functions = [function_for(spec, attributes)] if with_function else []
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=functions))


@pytest.fixture(scope="session")
def one_node_model() -> Callable[..., onnx.ModelProto]:
    """The function make_model."""
    return make_model


@functools.lru_cache(maxsize=64)
def open_session(
    name: str, attributes: tuple[tuple[str, Any], ...], types: tuple[tuple[str, str], ...]
) -> onnxruntime.InferenceSession:
    """A session on the function body of the operator `name`; kept, because opening takes longer than running."""
    (spec,) = (spec for spec in OPS if spec.name == name)
    model = make_model(spec, dict(attributes), dict(types), float_edges=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a refusal that a test expects is no news
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_on_onnxruntime(spec: OpSpec, attributes: dict[str, Any], inputs: Sequence[Array]) -> list[Array]:
    """The outputs of the operator's function body on onnxruntime's CPU provider, in the types of `inputs`."""
    given = spec.inputs_for(attributes)
    types = {t.types[0]: ONNX_NAMES[x.dtype.name] for t, x in zip(given, inputs, strict=True) if len(t.types[0]) == 1}
    session = open_session(spec.name, tuple(attributes.items()), tuple(types.items()))
    feeds = {
        declared.name: x.astype(np.float32) if ONNX_NAMES.get(x.dtype.name) in HALF else x
        for declared, x in zip(session.get_inputs(), inputs, strict=True)
    }
    outputs = session.run(None, feeds)
    return [
        y.astype(inputs[0].dtype) if t.types == given[0].types else y
        for t, y in zip(spec.outputs, outputs, strict=True)
    ]


@pytest.fixture(scope="session")
def run_function() -> Callable[..., list[Array]]:
    """The function run_on_onnxruntime."""
    return run_on_onnxruntime


def read_prune_cases(golden: Path) -> Iterator[tuple[dict[str, Any], tuple[Array, ...], dict[str, Array]]]:
    """Golden pruning cases: parameters, inputs of FmmTokenPrune, expected arrays (rows of the visual tokens only).

    Rows that are not visual tokens hold random text.
    """
    random = np.random.default_rng(0)
    with np.load(golden / "fastmmoe" / "prune_cases.npz") as arrays:
        for case in json.loads(str(arrays["index"])):
            prefix = f"{case['case']}_"
            data = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
            V, K, window = case["visual"], case["keep"], case["window"]
            M = min(math.floor(K * case["merge_ratio"] + 1e-9), merge_capacity(V, K, window))
            index = data["visual_index"].astype(np.int32)
            hidden, residual = random.standard_normal((2, index[-1] + 3, case["hidden"])).astype(np.float32)
            hidden[index], residual[index] = data["hidden"], data["residual"]
            inputs = (
                hidden,
                residual,
                data["routing"].astype(np.float32),
                data["attention"].astype(np.float32),
                index,
                np.array([0, V], np.int32),
                np.zeros(K, np.int8),
                np.array([0, K], np.int32),
                np.zeros(M, np.int8),
                np.array([0, M], np.int32),
                np.array([case["alpha"]], np.float32),
            )
            yield case, inputs, data


@pytest.fixture(scope="session")
def prune_cases(golden: Path) -> list[tuple[dict[str, Any], tuple[Array, ...], dict[str, Array]]]:
    """All that read_prune_cases yields."""
    return list(read_prune_cases(golden))
