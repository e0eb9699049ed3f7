# SPDX-License-Identifier: Apache-2.0
"""A small decode loop on the double: caches in place, tokens that feed themselves, a captured graph; and mistakes.

One layer of attention over caches of CAPACITY rows, whose next token and length are written where the next step reads
them. A second stream copies each token to pinned memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from fastmmoe.runtime.types import Array
from tests.support.double import Modules

CAPACITY, HEADS, WIDTH, WORDS, STEPS = 32, 2, 8, 64, 8
HIDDEN = HEADS * WIDTH
FIRST_TOKEN = 3
CACHE = (1, HEADS, CAPACITY, WIDTH)
ALIASES = {"present.key": "past.key", "present.value": "past.value"}
# The token and the number of rows in use, which a step leaves where the next one reads them.
FED_BACK = {"next_id": "id", "next_at": "at"}


def model(weights_type: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """The graph, weights within, in float16 or another float type."""
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(weights_type)
    shapes = {"embedding": (WORDS, HIDDEN), "wk": (HIDDEN, HIDDEN), "wv": (HIDDEN, HIDDEN), "wo": (HIDDEN, WORDS)}
    arrays: dict[str, Array] = {n: (rng.standard_normal(s) * 0.7).astype(dtype) for n, s in shapes.items()}
    arrays |= {"heads": np.array([1, -1, HEADS, WIDTH]), "rows": np.array([-1, HIDDEN])}
    arrays |= {"columns": np.arange(CAPACITY, dtype=np.int32), "axis": np.array([0]), "one": np.array([1], np.int32)}
    nodes = [
        helper.make_node("Gather", ["embedding", "id"], ["x"]),
        helper.make_node("MatMul", ["x", "wk"], ["k"]),
        helper.make_node("MatMul", ["x", "wv"], ["v"]),
        *(node for name in ("x", "k", "v") for node in _split_heads(name)),
        helper.make_node("Cast", ["at"], ["at64"], to=TensorProto.INT64),
        helper.make_node("TensorScatter", ["past.key", "k.heads", "at64"], ["present.key"], axis=2),
        helper.make_node("TensorScatter", ["past.value", "v.heads", "at64"], ["present.value"], axis=2),
        helper.make_node("LessOrEqual", ["columns", "at"], ["seen"]),
        helper.make_node("Unsqueeze", ["seen", "axis"], ["mask"]),
        helper.make_node("Attention", ["x.heads", "present.key", "present.value", "mask"], ["y"]),
        helper.make_node("Transpose", ["y"], ["y.rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["y.rows", "rows"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "wo"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["next64"], axis=-1, keepdims=0),
        helper.make_node("Cast", ["next64"], ["next_id"], to=TensorProto.INT32),
        helper.make_node("Add", ["at", "one"], ["next_at"]),
    ]
    inputs: list[Any] = [("id", TensorProto.INT32, ["T"]), ("at", TensorProto.INT32, [1])]
    outputs: list[Any] = [("logits", weights_type, ["T", WORDS]), ("next_id", TensorProto.INT32, ["T"])]
    inputs += [(name, weights_type, list(CACHE)) for name in ALIASES.values()]
    outputs += [("next_at", TensorProto.INT32, [1]), *((name, weights_type, list(CACHE)) for name in ALIASES)]
    graph = helper.make_graph(
        nodes,
        "loop",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def _split_heads(name: str) -> list[onnx.NodeProto]:
    reshape = helper.make_node("Reshape", [name, "heads"], [f"{name}.split"])
    return [reshape, helper.make_node("Transpose", [f"{name}.split"], [f"{name}.heads"], perm=[0, 2, 1, 3])]


def reference(directory: Path) -> list[int]:
    """The tokens, by ONNX Runtime on the float32 graph with the loop's float16 weights and caches."""
    file = directory / "loop.onnx"
    onnx.save(model(TensorProto.FLOAT), file)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(file), options)
    caches = {name: np.zeros(CACHE, np.float32) for name in ALIASES.values()}
    token, tokens = np.array([FIRST_TOKEN], np.int32), []
    for step in range(STEPS):
        feeds = {"id": token, "at": np.array([step], np.int32), **caches}
        token, *presents = session.run(["next_id", *ALIASES], feeds)
        caches = dict(zip(ALIASES.values(), presents, strict=True))
        tokens.append(int(token[0]))
    return tokens


def engine_bytes(module: str, version: str) -> bytes:
    """The loop's engine file, which has two profiles: one row or two, and one row."""
    from device_double.engine_file import EngineFile

    profiles = ({"id": ((1,), (1,), (2,))}, {"id": ((1,), (1,), (1,))})
    return EngineFile(module, version, (89,), profiles, ALIASES, (), model().SerializeToString()).encode()


@dataclass
class Cuda:
    """cuda.bindings.runtime whose errors are raised."""

    cudart: Any

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            error, *values = getattr(self.cudart, f"cuda{name}")(*arguments)
            assert error == 0, f"cuda{name}: {error!r}"
            return values[0] if len(values) == 1 else values

        return call


class Loop:
    """The loop over a fresh device. A method or two of it, overridden or left out, is a mistake."""

    def __init__(self, modules: Modules, *, uses_graph: bool = True) -> None:
        self.trt, self.cuda, self.uses_graph = modules.trt, Cuda(modules.cudart), uses_graph
        data = engine_bytes(self.trt.__name__, self.trt.__version__)
        self.engine = self.trt.Runtime(self.trt.Logger()).deserialize_cuda_engine(data)
        self.stream, self.copies = (self.cuda.StreamCreateWithPriority(1, p) for p in (-1, 0))
        self.stepped, self.copied = (self.cuda.EventCreateWithFlags(2) for _ in range(2))
        self.staging, self.answer = self.cuda.HostAlloc(512, 0), self.cuda.HostAlloc(4 * STEPS, 0)
        self.memory = {name: self.cuda.Malloc(self.bytes_of(name)) for name in (*ALIASES.values(), *FED_BACK.values())}
        self.memory["logits"] = self.cuda.Malloc(2 * 2 * WORDS)
        self.addresses = dict(self.memory)
        self.addresses |= {output: self.memory[name] for output, name in (ALIASES | FED_BACK).items()}
        # Not aliases of the engine: their own addresses, copied back.
        for output in FED_BACK:
            self.addresses[output] = self.memory[output] = self.cuda.Malloc(self.bytes_of(output))
        self.scratch = self.cuda.Malloc(self.engine.device_memory_size_v2)
        self.context = self.new_context()

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor of one row."""
        sizes = tuple(abs(size) for size in self.engine.get_tensor_shape(name))
        return int(np.prod(sizes)) * int(self.engine.get_tensor_dtype(name).itemsize)

    def new_context(self) -> Any:
        """A context on the loop's scratch memory, with shape and addresses."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(strategy)
        context.set_optimization_profile_async(0, self.stream)
        context.set_device_memory(self.scratch, self.engine.device_memory_size_v2)
        context.set_input_shape("id", (1,))
        for name, address in self.addresses.items():
            context.set_tensor_address(name, address)
        return context

    def clear(self) -> None:
        """Empty the caches."""
        for name in ALIASES.values():
            self.cuda.MemsetAsync(self.memory[name], 0, self.bytes_of(name), self.stream)

    def send(self, place: int, value: int, name: str) -> None:
        """Write a number to pinned memory and copy it to the device."""
        ctypes.c_int32.from_address(self.staging + place).value = value
        kind = 1
        self.cuda.MemcpyAsync(self.memory[name], self.staging + place, 4, kind, self.stream)

    def begin(self) -> None:
        """The first token, at row 0."""
        self.clear()
        self.send(0, FIRST_TOKEN, "id")
        self.send(256, 0, "at")

    def work(self) -> None:
        """Enqueue what a step computes."""
        assert self.context.execute_async_v3(self.stream)
        for output, name in FED_BACK.items():
            self.cuda.MemcpyAsync(self.memory[name], self.memory[output], 4, 3, self.stream)

    def settle(self) -> None:
        """Run once with the shapes, which TensorRT wants before a capture; the first step writes the same row."""
        assert self.context.execute_async_v3(self.stream)
        self.cuda.StreamSynchronize(self.stream)

    def capture(self) -> Any:
        """The work as a graph."""
        self.settle()
        self.cuda.StreamBeginCapture(self.stream, 1)
        self.work()
        return self.cuda.GraphInstantiate(self.cuda.StreamEndCapture(self.stream), 0)

    def reader_waits(self) -> None:
        """Have the copy wait for the step."""
        self.cuda.StreamWaitEvent(self.copies, self.stepped, 0)

    def writer_waits(self) -> None:
        """Have the next step wait for the copy."""
        self.cuda.StreamWaitEvent(self.stream, self.copied, 0)

    def finish(self) -> None:
        """Wait for all tokens."""
        self.cuda.StreamSynchronize(self.copies)

    def steps(self) -> None:
        """Queue every step and the copy of its token."""
        graph = self.capture() if self.uses_graph else None
        for step in range(STEPS):
            if graph is None:
                self.work()
            else:
                self.cuda.GraphLaunch(graph, self.stream)
            self.cuda.EventRecord(self.stepped, self.stream)
            self.reader_waits()
            self.cuda.MemcpyAsync(self.answer + 4 * step, self.memory["id"], 4, 2, self.copies)
            self.cuda.EventRecord(self.copied, self.copies)
            self.writer_waits()

    def run(self) -> list[int]:
        """The tokens."""
        self.begin()
        self.steps()
        self.finish()
        return list((ctypes.c_int32 * STEPS).from_address(self.answer))
