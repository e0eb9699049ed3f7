# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's own MoE (com.microsoft), on the layer of FmmSparseMoE: float16, and integers of groups as QMoE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from gpu_acceptance_tools.layer import RandomLayer, Tokens, unpack_int4
from gpu_acceptance_tools.ort_cuda import onnxruntime, session
from gpu_acceptance_tools.work import Work

DOMAIN = "com.microsoft"
OPSET, IR_VERSION = 20, 10


def make_peer(work: Work, made: RandomLayer) -> Any:
    """Function (layer, rows) -> output; Unavailable without ONNX Runtime's CUDA provider.

    Weights are inputs that stay on the device. QMoE's have the order of its documentation; its CUDA kernels may want
    them in one of their own, which then shows as an error of the values and changes no time.
    """
    ort = onnxruntime(work)
    tensors = _float_weights(made) if made.weights.weight_format == "float" else _integer_weights(made)
    if work.is_rehearsal and made.weights.weight_format == "float":
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    opened, memory = session(work, ort, _model(made, tensors))
    states = tensors.get("fc1_scales", tensors["fc1"]).dtype

    def call(made: RandomLayer, tokens: Tokens) -> torch.Tensor:
        x, logits = tokens.hidden.to(states), tokens.logits.to(states)
        output = torch.empty_like(x)
        binding = opened.io_binding()
        for name, tensor in (tensors | {"x": x, "logits": logits}).items():
            binding.bind_input(name, memory, 0, TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr())
        binding.bind_output("y", memory, 0, TYPES[output.dtype], list(output.shape), output.data_ptr())
        if made.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the session has a stream of its own
        opened.run_with_iobinding(binding)
        return output

    return call


def _interleaved(rows: torch.Tensor, I: int) -> torch.Tensor:  # noqa: E741
    """Gate and up rows in turn, as the operator's fused swiglu reads them."""
    return torch.stack([rows[:, :I], rows[:, I:]], 2).reshape(rows.shape).contiguous()


def _float_weights(made: RandomLayer) -> dict[str, torch.Tensor]:
    return {"fc1": _interleaved(made.tensors["gate_up"], made.layer.I), "fc2": made.tensors["down"]}


def _integer_weights(made: RandomLayer) -> dict[str, torch.Tensor]:
    found = {}
    for ours, theirs in (("gate_up", "fc1"), ("down", "fc2")):
        packed, scale = made.tensors[ours], made.tensors[f"{ours}_scale"]
        q = torch.stack([unpack_int4(e) for e in packed]) if made.weights.weight_format == "int4" else packed
        q = q.view(torch.uint8) if made.weights.weight_format == "int4" else (q.int() + 128).to(torch.uint8)
        if ours == "gate_up":
            q, scale = (_interleaved(t, made.layer.I) for t in (q, scale))
        found[theirs] = q[..., ::2] | q[..., 1::2] << 4 if made.weights.weight_format == "int4" else q
        found[f"{theirs}_scales"] = scale
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _model(made: RandomLayer, tensors: dict[str, torch.Tensor]) -> bytes:
    layer, is_float = made.layer, made.weights.weight_format == "float"
    attributes: dict[str, Any] = {
        "k": layer.top_k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": int(made.attributes["norm_topk_prob"]),
    }
    names = ["x", "logits", "fc1", "", "fc2"]
    if not is_float:
        attributes |= {"expert_weight_bits": made.weights.bits, "block_size": made.weights.group_size}
        names = ["x", "logits", "fc1", "fc1_scales", "", "fc2", "fc2_scales"]
    states = _type(tensors.get("fc1_scales", tensors["fc1"]).dtype)
    inputs = [helper.make_tensor_value_info(n, states, ["T", w]) for n, w in (("x", layer.H), ("logits", layer.E))]
    inputs += [helper.make_tensor_value_info(n, _type(t.dtype), list(t.shape)) for n, t in tensors.items()]
    graph = helper.make_graph(
        [helper.make_node("MoE" if is_float else "QMoE", names, ["y"], domain=DOMAIN, **attributes)],
        "peer",
        inputs,
        [helper.make_tensor_value_info("y", states, ["T", layer.H])],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION).SerializeToString()


TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.uint8: np.uint8}


def _type(dtype: torch.dtype) -> int:
    types = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.uint8: TensorProto.UINT8}
    return int(types[dtype])
