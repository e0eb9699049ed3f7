# SPDX-License-Identifier: Apache-2.0
"""Ask TensorRT-RTX which parts of a decoder graph it takes: small graphs, each parsed and built without a GPU.

    python scripts/probe_tensorrt.py [--write FILE]

Prints a line for each question. Exit code 1 where an answer is not the one the exporter was designed by. --write puts
the table into FILE between `<!-- probe -->` and `<!-- end of probe -->`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from markers import MissingMarkers, write_part
from onnx import TensorProto, helper

OPSET = 24
HALF, BOOL, INT64 = TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT64
CAPABILITY = "SM86"
LONGEST_ANSWER = 120
# The telling part of messages that hold much else.
CAUSES = (
    "Query, Key, Value tensors must have the same head dimension",
    "Attention operation was not supported by a dedicated kernel",
    "TensorRT only supports Attention nodes with one output",
)
LENGTHS: dict[str, tuple[int, int, int]] = {"T": (1, 64, 512), "S": (0, 64, 512), "K": (0, 16, 512)}
"""Smallest, typical and greatest value of each symbolic dimension."""


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs as (element type, shape), nodes, constants."""

    inputs: dict[str, tuple[int, tuple[int | str, ...]]]
    nodes: list[onnx.NodeProto]
    outputs: dict[str, int]
    constants: dict[str, np.ndarray]

    def model(self) -> bytes:
        """The ONNX model."""
        graph = helper.make_graph(
            self.nodes,
            "probe",
            [helper.make_tensor_value_info(name, *value) for name, value in self.inputs.items()],
            [helper.make_tensor_value_info(name, element_type, None) for name, element_type in self.outputs.items()],
            [onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=11).SerializeToString()


def allow_decomposition(trt: Any, network: Any) -> None:
    """Let TensorRT run each attention by several kernels where it has no fused one."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


@dataclass(frozen=True)
class Question:
    """One thing a decoder graph may hold.

    Attributes:
        text: what is asked.
        expected: whether TensorRT-RTX takes it.
        consequence: what this project does about it.
        graph: makes the graph.
        is_decomposable: whether attention may be run by several kernels.
    """

    text: str
    expected: bool
    consequence: str
    graph: Callable[[], Graph]
    is_decomposable: bool = False


def attention(q: int, kv: int, v: int, heads: int = 8, kv_heads: int = 2, mask: int = BOOL) -> Graph:
    """Attention over a cache of any length, also none: keys of width q, values of width v."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {
        "q": (HALF, (1, heads, "T", q)),
        "past": (HALF, (1, kv_heads, "S", kv)),
        "new": (HALF, (1, kv_heads, "T", kv)),
        "past_v": (HALF, (1, kv_heads, "S", v)),
        "new_v": (HALF, (1, kv_heads, "T", v)),
        "mask": (mask, ("T", "L")),
    }
    nodes = [
        helper.make_node("Concat", ["past", "new"], ["k"], axis=2),
        helper.make_node("Concat", ["past_v", "new_v"], ["v"], axis=2),
        helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], scale=0.1),
    ]
    return Graph(inputs, nodes, {"y": HALF}, {})


def vision_attention(width: int) -> Graph:
    """Attention of all patches of some tiles on each other."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = dict.fromkeys("qkv", (HALF, ("T", 16, 729, width)))
    return Graph(inputs, [helper.make_node("Attention", [*"qkv"], ["y"])], {"y": HALF}, {})


def attention_with_cache_outputs() -> Graph:
    """Attention that appends to the cache itself."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {
        "q": (HALF, (1, 8, "T", 64)),
        "k": (HALF, (1, 2, "T", 64)),
        "v": (HALF, (1, 2, "T", 64)),
        "past_k": (HALF, (1, 2, "S", 64)),
        "past_v": (HALF, (1, 2, "S", 64)),
    }
    names = ["q", "k", "v", "", "past_k", "past_v"]
    node = helper.make_node("Attention", names, ["y", "present_k", "present_v"], is_causal=1)
    return Graph(inputs, [node], {"y": HALF, "present_k": HALF, "present_v": HALF}, {})


def tensor_scatter() -> Graph:
    """Writing into a cache of fixed capacity."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {
        "past": (HALF, (1, 2, 512, 64)),
        "new": (HALF, (1, 2, "T", 64)),
        "at": (INT64, (1,)),
    }
    node = helper.make_node("TensorScatter", ["past", "new", "at"], ["present"], axis=2)
    return Graph(inputs, [node], {"present": HALF}, {})


def last_row_attention() -> Graph:
    """Attention of the last query row on every key, mean over heads, of standard operators."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {
        "q": (HALF, (8, "T", 64)),
        "k": (HALF, (8, "L", 64)),
    }
    nodes = [
        helper.make_node("Slice", ["q", "minus_one", "end", "one"], ["row"]),
        helper.make_node("Cast", ["row"], ["row_float"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["k"], ["k_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["k_float"], ["k_t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["row_float", "k_t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probs"], axis=-1),
        helper.make_node("ReduceMean", ["probs", "heads"], ["mean"], keepdims=0),
    ]
    one, big = np.array([1], np.int64), np.array([2**31 - 1], np.int64)
    constants = {"minus_one": -one, "end": big, "one": one, "heads": np.array([0, 1], np.int64)}
    return Graph(inputs, nodes, {"mean": TensorProto.FLOAT}, constants)


def gather_of_nothing() -> Graph:
    """Rows of a tensor by an index that may be empty."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {
        "x": (HALF, ("T", 64)),
        "index": (TensorProto.INT32, ("K",)),
    }
    nodes = [
        helper.make_node("Gather", ["x", "index"], ["rows"]),
        helper.make_node("RMSNormalization", ["rows", "scale"], ["y"]),
    ]
    return Graph(inputs, nodes, {"y": HALF}, {"scale": np.ones(64, np.float16)})


def causal_mask() -> Graph:
    """Rows T, keys S + T, from the shapes alone."""
    inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {"x": (HALF, ("T", 8)), "past": (HALF, ("S", 8))}
    nodes = [
        helper.make_node("Shape", ["x"], ["T"], start=0, end=1),
        helper.make_node("Shape", ["past"], ["S"], start=0, end=1),
        helper.make_node("Add", ["T", "S"], ["L"]),
        *(helper.make_node("Squeeze", [name], [f"{name}_scalar"]) for name in ("T", "L")),
        helper.make_node("Range", ["zero", "T_scalar", "step"], ["rows"]),
        helper.make_node("Range", ["zero", "L_scalar", "step"], ["keys"]),
        helper.make_node("Add", ["rows", "S"], ["last"]),
        helper.make_node("Unsqueeze", ["last", "axis"], ["last_column"]),
        helper.make_node("LessOrEqual", ["keys", "last_column"], ["mask"]),
    ]
    constants = {"zero": np.int64(0), "step": np.int64(1), "axis": np.array([1], np.int64)}
    return Graph(inputs, nodes, {"mask": BOOL}, {name: np.array(value) for name, value in constants.items()})


QUESTIONS = (
    Question(
        "Attention-23, grouped queries, bool mask [T, S + T], cache of any length from 0",
        True,
        "not used: FmmAttention reads the rows in use of its caches and needs no mask",
        lambda: attention(128, 128, 128),
    ),
    Question(
        "the same with a float16 mask to add",
        True,
        "not used",
        lambda: attention(128, 128, 128, mask=HALF),
    ),
    Question(
        "Attention-23, keys 192 wide, values 128 wide (DeepSeek's unabsorbed latent attention)",
        False,
        "latent attention is exported absorbed, which also caches 9 times less",
        lambda: attention(192, 192, 128, kv_heads=8),
    ),
    Question(
        "Attention-23, keys 576 wide, values 512 wide (absorbed latent attention)",
        False,
        "FmmAttention takes the first columns of the latent for the values",
        lambda: attention(576, 576, 512, kv_heads=1),
    ),
    Question(
        "Attention-23, keys and values 576 wide, one head of both",
        False,
        "no fused kernel is that wide, and the parser does not let attention be decomposed",
        lambda: attention(576, 576, 576, kv_heads=1),
    ),
    Question(
        "the same where IAttention.decomposable is set after parsing",
        True,
        "the engine builder sets it on every attention, and where there is a fused kernel TensorRT may still take it",
        lambda: attention(576, 576, 576, kv_heads=1),
        is_decomposable=True,
    ),
    Question(
        "Attention-23 without a mask, 72 wide (SigLIP)",
        True,
        "used in the vision tower of DeepSeek-VL2",
        lambda: vision_attention(72),
    ),
    Question(
        "Attention-23 that appends to the cache (present_key, present_value)",
        False,
        "FmmAttention appends, to the cache itself",
        attention_with_cache_outputs,
    ),
    Question(
        "Concat of a cache of length 0 and new rows",
        True,
        "not used: every step would copy the cache and have new shapes",
        lambda: attention(64, 64, 64),
    ),
    Question(
        "TensorScatter-24 into a cache of fixed capacity",
        True,
        "not used, see below",
        tensor_scatter,
    ),
    Question(
        "attention of the last row on all keys, from Slice, MatMul, Softmax and ReduceMean in float32",
        True,
        "so no operator of ours is needed in front of a prune layer; there the softmax comes from FmmAttention's lse",
        last_row_attention,
    ),
    Question(
        "Gather with an empty index, and RMSNormalization-23 of no rows",
        True,
        "one graph serves prefill and decode: V, K and M are 0 while decoding",
        gather_of_nothing,
    ),
    Question("a causal mask from Shape, Range and LessOrEqual", True, "not used", causal_mask),
)


def one_line(message: str) -> str:
    """What a message of TensorRT's says, without line breaks and places in its source."""
    text = " ".join(message.split())
    known = next((cause for cause in CAUSES if cause in text), None)
    return known or text[:LONGEST_ANSWER]


def ask(trt: Any, question: Question) -> tuple[bool, str]:
    """Whether an engine is built, and if not the first error."""
    errors: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(one_line(message))

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    graph = question.graph()
    if not parser.parse(graph.model()):
        return False, one_line(parser.get_error(0).desc())
    if question.is_decomposable:
        allow_decomposition(trt, network)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITY), 0)
    profile = builder.create_optimization_profile()
    for name, (_, shape) in graph.inputs.items():
        if any(isinstance(size, str) for size in shape):
            profile.set_shape(name, *(tuple(length(size, place) for size in shape) for place in range(3)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    # The first error that has a known cause: others only say that there was one.
    return engine is not None, next((error for error in errors if error in CAUSES), next(iter(errors), ""))


def length(size: int | str, place: int) -> int:
    """A dimension in the smallest, typical or greatest shape; L is S + T."""
    if isinstance(size, int):
        return size
    return LENGTHS["S"][place] + LENGTHS["T"][place] if size == "L" else LENGTHS[size][place]


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask TensorRT-RTX which parts of a decoder graph it takes.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into FILE")
    arguments = parser.parse_args()
    try:
        import tensorrt_rtx as trt
    except ModuleNotFoundError:
        sys.exit("no Python package tensorrt_rtx: pip install 'tensorrt-rtx==1.7.1.*'")
    rows = ["| asked | answer | so |", "| --- | --- | --- |"]
    surprises = []
    for question in QUESTIONS:
        taken, error = ask(trt, question)
        answer = "taken" if taken else f"refused: {error}"
        print(f"{'taken  ' if taken else 'refused'}  {question.text}{'' if taken else f'  [{error}]'}", flush=True)
        rows.append(f"| {question.text} | {answer} | {question.consequence} |")
        if taken != question.expected:
            surprises.append(question.text)
    print(f"TensorRT-RTX {trt.__version__}, {CAPABILITY}, strongly typed, no GPU")
    if arguments.write:
        try:
            write_part(arguments.write, "probe", "\n".join(rows))
        except MissingMarkers as error:
            sys.exit(str(error))
    sys.exit(f"not as designed for: {'; '.join(surprises)}" if surprises else 0)


if __name__ == "__main__":
    main()
