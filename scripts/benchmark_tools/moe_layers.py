# SPDX-License-Identifier: Apache-2.0
"""One MoE layer of random weights in ONNX Runtime, by our operator and by ONNX Runtime's own, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from fastmmoe.exporter.ops import DOMAIN, SPARSE_MOE
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.ops.sparse_moe.storage import Storage
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.types import Array

Run = Callable[[int, int], None]
"""Tokens, and the number of the call: each has other inputs."""
POOL = 8
SEED = 7


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer's routed experts; k experts a token, whose weights are divided by their sum."""

    name: str
    H: int
    I: int  # noqa: E741
    E: int
    k: int

    @property
    def weights(self) -> int:
        """Of an expert."""
        return 3 * self.H * self.I

    def flops(self, T: int) -> float:
        """Of T tokens."""
        return 2.0 * T * self.k * self.weights


LAYERS = (Layer("Qwen3-30B-A3B", 2048, 768, 128, 8), Layer("DeepSeek-VL2-small", 2048, 1408, 64, 6))
WEIGHT_BYTES = {
    "ours bf16": 2.0,
    "ours int8 g128": 1 + 2 / 128,
    "ours int4 g32": 0.5 + 2 / 32,
    "ORT MoE fp32": 4.0,
    "ORT QMoE int8 b128": 1 + 4 / 128,
    "ORT QMoE int4 b32": 0.5 + 4 / 32,
    "vLLM bf16": 2.0,
    "vLLM int8": 1.0,
    "torch.mm bf16": 0.0,
    "reading bf16": 2.0,
}
"""By what is timed: bytes of a weight, with its share of scales; 0 = it reads no experts."""


def make(name: str, layer: Layer, threads: int, vllm: Path | None) -> Run:
    """What is timed, ready to run. Raises KeyError for a name that is not in WEIGHT_BYTES."""
    if name.startswith("vLLM"):
        from benchmark_tools.vllm_layer import make_vllm

        assert vllm is not None
        return make_vllm(name.removeprefix("vLLM "), layer, threads, vllm)
    makers: dict[str, Callable[[], Run]] = {
        "ours bf16": lambda: _ours(layer, threads, Storage(None, is_tiled=True)),
        "ours int8 g128": lambda: _ours(layer, threads, Storage(Packing("int8", 128, False), is_tiled=True)),
        "ours int4 g32": lambda: _ours(layer, threads, Storage(Packing("int4", 32, False), is_tiled=True)),
        "ORT MoE fp32": lambda: _theirs(layer, threads, 32, 0),
        "ORT QMoE int8 b128": lambda: _theirs(layer, threads, 8, 128),
        "ORT QMoE int4 b32": lambda: _theirs(layer, threads, 4, 32),
        "torch.mm bf16": lambda: _products(layer, threads),
        "reading bf16": lambda: _reading(layer, threads),
    }
    return makers[name]()


def _ours(layer: Layer, threads: int, storage: Storage) -> Run:
    attributes: dict[str, Any] = {
        "top_k": layer.k,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": 1,
        "routed_scaling_factor": 1.0,
        "reduction_weights": "none",
        "activation": "swiglu",
        "swiglu_limit": 0.0,
        "expert_bias": 0,
        "weight_format": "float",
        "group_size": 0,
        "zero_points": 0,
    } | storage.attributes(layer.I)
    sizes = {"gate_up": (2 * layer.I, layer.H), "down": (layer.H, layer.I)}
    types = {"": TensorProto.INT8 if storage.packing else TensorProto.BFLOAT16, "_scale": TensorProto.FLOAT16}
    weights: dict[str, tuple[Array, int]] = {}
    for part in storage.parts:
        for name, (rows, columns) in sizes.items():
            shape = storage.shape(part, layer.E, rows, columns, is_gate_up=name == "gate_up")
            weights[name + part] = (_random(shape, types[part]), types[part])
    small = {
        "visual_index": (np.zeros(0, np.int32), TensorProto.INT32),
        "visual_top_k": (np.ones(1, np.int32), TensorProto.INT32),
        "correction_bias": (np.zeros(layer.E, np.float32), TensorProto.FLOAT),
    }
    names = [tensor.name for tensor in SPARSE_MOE.inputs_for(attributes)]
    node = helper.make_node(SPARSE_MOE.name, names, ["output"], domain=DOMAIN, **attributes)
    return _session(node, ("hidden_states", "router_logits"), small | weights, layer, threads)


def _theirs(layer: Layer, threads: int, bits: int, block: int) -> Run:
    """com.microsoft.MoE, or QMoE with activations of 8 bits; swiglu takes gate and up rows by turns."""
    node_attributes: dict[str, Any] = {
        "k": layer.k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 1,
    }
    names, weights = ["hidden_states", "router_logits"], {}
    for name, rows, columns in (("fc1", 2 * layer.I, layer.H), ("fc2", layer.H, layer.I)):
        shape = (layer.E, rows, columns * bits // 8 if bits < 32 else columns)
        kind = TensorProto.FLOAT if bits == 32 else TensorProto.UINT8
        weights[name] = (_random(shape, kind), kind)
        names.append(name)
        if bits < 32:
            scale = _random((layer.E, rows, columns // block), TensorProto.FLOAT16).astype(np.float32)
            weights[f"{name}_scale"] = (scale, TensorProto.FLOAT)
            names.append(f"{name}_scale")
        names.append("")
    if bits < 32:
        node_attributes |= {"expert_weight_bits": bits, "block_size": block, "accuracy_level": 4}
    node = helper.make_node(
        "MoE" if bits == 32 else "QMoE", names[:-1], ["output"], domain="com.microsoft", **node_attributes
    )
    return _session(node, ("hidden_states", "router_logits"), weights, layer, threads)


def _random(shape: tuple[int, ...], kind: int) -> Array:
    """Values of a size that activations stay in range with, of every expert the same; bfloat16 by its bits."""
    random = np.random.default_rng(SEED)
    if kind in (TensorProto.INT8, TensorProto.UINT8):
        bits = random.integers(0, 256, shape[1:], np.uint8)
        expert: Array = bits.view(np.int8 if kind == TensorProto.INT8 else np.uint8)
    elif kind == TensorProto.FLOAT16:
        expert = np.full(shape[1:], 0.002, np.float16)
    else:
        floats = 0.02 * random.standard_normal(shape[1:], np.float32)
        expert = floats if kind == TensorProto.FLOAT else (floats.view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(np.broadcast_to(expert, shape))


def _session(
    node: Any, given: tuple[str, str], values: Mapping[str, tuple[Array, int]], layer: Layer, threads: int
) -> Run:
    """Runs of a session of one node, whose weights are initializers that are not copied into the model."""
    tensors = []
    for name, (array, kind) in values.items():
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="in memory")
        tensors.append(tensor)
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in zip(given, (layer.H, layer.E), strict=True)
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, layer.H])
    imports = [("", 21), ("com.microsoft", 1), (DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph([node], "layer", infos, [output], tensors),
        opset_imports=[helper.make_opsetid(*each) for each in imports],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register_native_ops(options, {})
    held = [_value(array, kind) for array, kind in values.values()]
    options.add_external_initializers(list(values), held)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pools: dict[int, list[dict[str, Array]]] = {}

    def run(T: int, call: int, _held: object = held) -> None:
        session.run(None, _inputs(pools, layer, T, given)[call % POOL])

    return run


def _value(array: Array, kind: int) -> ort.OrtValue:
    if kind == TensorProto.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _inputs(
    pools: dict[int, list[dict[str, Array]]], layer: Layer, T: int, names: tuple[str, str]
) -> list[dict[str, Array]]:
    if T not in pools:
        random = np.random.default_rng(T)
        sizes = dict(zip(names, (layer.H, layer.E), strict=True))
        pools[T] = [
            {name: random.standard_normal((T, size), np.float32) for name, size in sizes.items()} for _ in range(POOL)
        ]
    return pools[T]


def _products(layer: Layer, threads: int) -> Run:
    """Two products of torch with as many FLOPs, by one shared expert."""
    import torch

    torch.set_num_threads(threads)
    shapes = (layer.H, 2 * layer.I), (layer.I, layer.H)
    first, second = (torch.randn(rows, columns).bfloat16() for rows, columns in shapes)
    operands: dict[int, list[torch.Tensor]] = {}

    def run(T: int, _call: int) -> None:
        if T not in operands:
            sizes = (layer.H, layer.I, 2 * layer.I, layer.H)
            operands[T] = [torch.randn(T * layer.k, size).bfloat16() for size in sizes]
        x, activated, gate_up, y = operands[T]
        torch.mm(x, first, out=gate_up)
        torch.mm(activated, second, out=y)

    return run


def _reading(layer: Layer, threads: int) -> Run:
    """Reads the bytes of as many experts in bfloat16 as a call takes, others each time; of many tokens all experts."""
    import torch

    torch.set_num_threads(threads)
    experts = torch.ones(layer.E, layer.weights // 2, dtype=torch.float32)

    def run(T: int, call: int) -> None:
        chosen = np.random.default_rng(call).permutation(layer.E)[: layer.k] if T == 1 else range(layer.E)
        for expert in chosen:
            experts[expert].sum()

    return run
