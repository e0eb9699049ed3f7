# SPDX-License-Identifier: Apache-2.0
"""What the machine can do: its rate of multiplications in ONNX Runtime and its memory bandwidth, both measured."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.machines.threads import usable_cores

REPEATS = 9
# Several times what the last cache of any processor holds.
STREAM_BYTES = 1 << 30
OPSET = 20
IR_VERSION = 10


@dataclass(frozen=True)
class Product:
    """A product [rows, depth] x [depth, columns] of the layer and the rate it reached, in GFLOP/s."""

    name: str
    rows: int
    depth: int
    columns: int
    gflops: float


@dataclass(frozen=True)
class Machine:
    """Medians of repeated measurements; bandwidth in GB/s (10^9 bytes)."""

    processor: str
    cores: int
    threads: int
    onnxruntime: str
    products: tuple[Product, ...]
    bandwidth: float

    @property
    def gflops(self) -> float:
        """The greatest rate of any product: no part of the layer can be faster."""
        return max(product.gflops for product in self.products)


def measure_machine(info: LanguageModelInfo, tokens: int, threads: int) -> Machine:
    """Measure both rates with this many threads, with the shapes that a prefill of so many tokens has."""
    return Machine(
        processor=processor(),
        cores=usable_cores(),
        threads=threads,
        onnxruntime=ort.__version__,
        products=tuple(_measure_product(*shape, threads) for shape in _layer_products(info, tokens)),
        bandwidth=_measure_bandwidth(threads),
    )


def processor() -> str:
    """Its name, from the kernel."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _layer_products(info: LanguageModelInfo, tokens: int) -> list[tuple[str, int, int, int]]:
    """(name, rows, depth, columns) of a layer's products; an expert has the rows of an evenly spread routing."""
    H, wide = info.hidden_size, info.heads * info.query_key_dim
    expert_rows = tokens * info.top_k // info.num_experts
    return [
        ("queries", tokens, H, wide),
        ("attention output", tokens, wide, H),
        ("one expert's gate and up", expert_rows, H, 2 * info.moe_intermediate_size),
        ("one expert's down", expert_rows, info.moe_intermediate_size, H),
    ]


def _measure_product(name: str, rows: int, depth: int, columns: int, threads: int) -> Product:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((depth, columns), np.float32)
    # An initializer, which ONNX Runtime lays out for its kernel once, as it does with those of a model.
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        [helper.make_tensor("w", TensorProto.FLOAT, [depth, columns], weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = ort.OrtValue.ortvalue_from_numpy(rng.standard_normal((rows, depth), np.float32))
    seconds = _median_seconds(lambda: session.run_with_ort_values(["y"], {"x": x}))
    return Product(name, rows, depth, columns, 2e-9 * rows * depth * columns / seconds)


def _measure_bandwidth(threads: int) -> float:
    """GB/s of reading a large buffer once, each thread its own part."""
    # Written, not zeroed: untouched pages would all be the same one.
    parts = np.array_split(np.arange(STREAM_BYTES // 8, dtype=np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _median_seconds(lambda: list(pool.map(np.max, parts)))
    return STREAM_BYTES / seconds / 1e9


def _median_seconds(function: Callable[[], object]) -> float:
    """Median time of a call, after one that warms up."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
