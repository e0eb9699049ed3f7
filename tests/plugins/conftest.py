# SPDX-License-Identifier: Apache-2.0
"""One-node models of the native operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from fastmmoe.exporter.ops import DOMAIN, OPS
from fastmmoe.runtime.native import register_native_ops

Array = npt.NDArray[Any]

SPECS = {spec.name: spec for spec in OPS}
WEIGHTS = ("gate_up", "down")


def one_node_model(op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> bytes:
    """A model whose inputs are `inputs` with any shape, except the weights, which are initializers."""
    spec = SPECS[op]
    weights = [onnx.numpy_helper.from_array(inputs[name], name) for name in WEIGHTS if name in inputs]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, list(inputs), [t.name for t in spec.outputs], domain=DOMAIN, **attributes)],
        "one_node",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in inputs.items()
            if name not in WEIGHTS
        ],
        [onnx.helper.make_empty_tensor_value_info(t.name) for t in spec.outputs],
        weights,
    )
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, spec.version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


class NativeNode:
    """One node in a session of its own."""

    def __init__(self, op: str, inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # a refused input is logged as well as raised
        register_native_ops(options)
        model = one_node_model(op, inputs, attributes)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, Array]) -> list[Array]:
        return self.session.run(None, {name: array for name, array in inputs.items() if name not in WEIGHTS})


@pytest.fixture
def native_node() -> type[NativeNode]:
    """Class NativeNode: a session of one native node."""
    return NativeNode


@pytest.fixture
def run_native() -> Callable[..., list[Array]]:
    """Function (op, inputs, attributes, threads=1) -> outputs."""

    def run(op: str, inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> list[Array]:
        return NativeNode(op, inputs, attributes, threads)(inputs)

    return run


def make_moe_inputs(
    T: int = 17,
    E: int = 16,
    H: int = 24,
    I: int = 20,  # noqa: E741
    *,
    visual: Array | None = None,
    visual_top_k: int = 2,
    weight_dtype: Any = np.float32,
    expert_bias: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs of FmmSparseMoE; by default every third token is visual."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {
        "hidden_states": normal(T, H),
        "router_logits": 2 * normal(T, E),
        "visual_index": (np.arange(0, T, 3) if visual is None else visual).astype(np.int32),
        "visual_top_k": np.array([visual_top_k], np.int32),
        "correction_bias": 0.2 * normal(E),
        "gate_up": (normal(E, 2 * I, H) / np.sqrt(H)).astype(weight_dtype),
        "down": (normal(E, H, I) / np.sqrt(I)).astype(weight_dtype),
    }
    if expert_bias:
        inputs |= {"gate_up_bias": normal(E, 2 * I), "down_bias": normal(E, H)}
    return inputs


MOE_ATTRIBUTES: dict[str, Any] = {
    "top_k": 6,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": 0,
    "routed_scaling_factor": 1.0,
    "reduction_weights": "preserve_sum",
    "activation": "swiglu",
    "swiglu_limit": 7.0,
    "expert_bias": 0,
}


@pytest.fixture
def moe_inputs() -> Callable[..., dict[str, Array]]:
    """Function make_moe_inputs."""
    return make_moe_inputs


@pytest.fixture
def moe_attributes() -> Callable[..., dict[str, Any]]:
    """Function (changes) -> all attributes of FmmSparseMoE."""

    def attributes(**changes: Any) -> dict[str, Any]:
        return MOE_ATTRIBUTES | changes

    return attributes


def make_prune_inputs(
    T: int = 60,
    K: int = 20,
    M: int = 3,
    *,
    visual: Array | None = None,
    alpha: float = 0.5,
    H: int = 12,
    E: int = 8,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs of FmmTokenPrune; by default 44 visual tokens in runs of 30 and 14."""
    rng = np.random.default_rng(seed)
    visual = np.r_[3:33, 40:54] if visual is None else visual
    V = len(visual)
    logits = rng.standard_normal((V, E))
    return {
        "hidden_states": rng.standard_normal((T, H)).astype(np.float32),
        "residual": rng.standard_normal((T, H)).astype(np.float32),
        "routing_probs": (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32),
        "attention": rng.random(V).astype(np.float32),
        "visual_index": visual.astype(np.int32),
        "keep_slots": np.zeros(K, np.int8),
        "merge_slots": np.zeros(M, np.int8),
        "alpha": np.array([alpha], np.float32),
    }


@pytest.fixture
def prune_inputs() -> Callable[..., dict[str, Array]]:
    """Function make_prune_inputs."""
    return make_prune_inputs
