# SPDX-License-Identifier: Apache-2.0
"""Time FmmAttention against ONNX Runtime's GroupQueryAttention with shared buffers, and against torch.mm's rate.

    python scripts/benchmark_attention.py [--rounds N] [--threads N] [--key-heads N] [--only TEXT] [--write FILE]

All run in this process by turns, without spinning threads; ratios are medians of those of one round. Two ratios are
given, of the time that passed and of the processor time of all threads: the second stands still on a busy machine.
Caches have room for 8,192 rows and are bound as input and output, 16 heads are 128 wide, values are random. The
instruction set that is named is that of FmmAttention; FASTMMOE_CPU_ISA sets a lesser one.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import torch
from benchmark_tools.machine import processor
from markers import write_part
from onnx import TensorProto, helper

from fastmmoe.exporter.ops import ATTENTION, DOMAIN
from fastmmoe.plugins import native_library_path
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.types import Array

HEADS, WIDTH, CAPACITY = 16, 128, 8192
LINE = 64
PRODUCT_SIZE = 2048  # of the square matrices whose product gives torch's rate
PRODUCT_FLOPS = 2.0 * PRODUCT_SIZE**3
MARKER = "benchmark_attention"
GQA = "GroupQueryAttention float32"
OURS = {"FmmAttention float32": np.float32, "FmmAttention bfloat16": ml_dtypes.bfloat16}
TORCH = "torch.mm bfloat16"

Subject = Callable[[], None]


@dataclass(frozen=True)
class Workload:
    """Rows of one sequence after `past` cached ones."""

    name: str
    past: int
    rows: int
    runs: int  # in each round

    @property
    def flops(self) -> float:
        """Of the products that causal attention needs."""
        keys = self.past * self.rows + self.rows * (self.rows + 1) / 2
        return 4 * HEADS * WIDTH * keys


WORKLOADS = (
    Workload("prefill 1,024", 0, 1024, 3),
    Workload("decode at 1,024", 1023, 1, 40),
    Workload("decode at 4,096", 4095, 1, 15),
)


@dataclass(frozen=True)
class Sample:
    """Medians of the runs of one round, in seconds."""

    passed: float
    used: float


def main() -> int:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--key-heads", type=int, default=HEADS)
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads that hold TEXT")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        f"{processor()} ({instruction_set()}), {arguments.threads} threads, {arguments.key_heads} key heads, "
        f"ONNX Runtime {ort.__version__}, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}. "
        f"Medians of {arguments.rounds} rounds.",
        "",
        f"| workload | what | ms | processor ms | times {GQA} | by processor time | share of {TORCH}'s rate |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for workload in WORKLOADS:
        if arguments.only in workload.name:
            lines += measure(workload, arguments.key_heads, arguments.threads, arguments.rounds)
    print("\n".join(lines))
    if arguments.write:
        write_part(arguments.write, MARKER, "\n".join(lines))
    return 0


def instruction_set() -> str:
    """Of the native library's kernels, by the library itself."""
    function = ctypes.CDLL(str(native_library_path())).FmmCpuIsa
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def measure(workload: Workload, key_heads: int, threads: int, rounds: int) -> list[str]:
    """The rows of one workload."""
    subjects = {GQA: group_query_attention(workload, key_heads, threads)}
    subjects |= {name: ours(workload, key_heads, threads, dtype) for name, dtype in OURS.items()}
    if workload.rows > 1:
        subjects[TORCH] = torch_product()
    samples = take_samples(subjects, workload.runs, rounds)
    lines = []
    for name, own in samples.items():
        times = [statistics.median(getattr(sample, kind) for sample in own) for kind in ("passed", "used")]
        cells = [workload.name, name, *(f"{1e3 * seconds:.3f}" for seconds in times)]
        cells += [ratio(samples[GQA], own, kind) if name in OURS else "" for kind in ("passed", "used")]
        has_share = name in OURS and TORCH in samples
        cells.append(ratio(samples[TORCH], own, "used", workload.flops / PRODUCT_FLOPS) if has_share else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def take_samples(subjects: dict[str, Subject], runs: int, rounds: int) -> dict[str, list[Sample]]:
    """Every subject once a round, each time another first."""
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for subject in subjects.values():
        subject()
    names = list(subjects)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            subjects[name]()  # brings what it needs back into the processor's caches
            times = [time_once(subjects[name]) for _ in range(runs)]
            passed, used = (statistics.median(values) for values in zip(*times, strict=True))
            samples[name].append(Sample(passed, used))
    return samples


def time_once(subject: Subject) -> tuple[float, float]:
    """Time passed and processor time of all threads."""
    used, passed = time.process_time(), time.perf_counter()
    subject()
    return time.perf_counter() - passed, time.process_time() - used


def ratio(others: list[Sample], own: list[Sample], kind: str, factor: float = 1.0) -> str:
    """How many times as fast; factor: own work as a share of the other's."""
    values = [factor * getattr(a, kind) / getattr(b, kind) for a, b in zip(others, own, strict=True)]
    return f"{statistics.median(values):.2f}"


def ours(workload: Workload, key_heads: int, threads: int, dtype: Any) -> Subject:
    """A call of FmmAttention in place."""
    attributes = {"scale": WIDTH**-0.5, "window": 0, "value_width": 0}
    attributes |= {"has_sinks": 0, "writes_position_ids": 0, "has_lse": 0}
    random = np.random.default_rng(0)
    rows = {n: random.standard_normal((workload.rows, heads, WIDTH), np.float32) for n, heads in _heads(key_heads)}
    T, past = workload.rows, workload.past
    feeds: dict[str, Array] = {
        **rows,
        "past_lengths": np.array([past], np.int32),
        "sequence_ids": np.zeros(T, np.int32),
        "sequence_offsets": np.array([0, T], np.int32),
    }
    caches = {name: make_cache(random, key_heads, past, dtype) for name in ("key", "value")}
    inputs, outputs = ATTENTION.inputs_for(attributes), ATTENTION.outputs_for(attributes)
    node = helper.make_node(
        ATTENTION.name, [t.name for t in inputs], [t.name for t in outputs], domain=DOMAIN, **attributes
    )
    types = {t.name: helper.np_dtype_to_tensor_dtype(feeds[t.name].dtype) for t in inputs if t.name in feeds}
    cache_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    session = make_session(
        node,
        [helper.make_tensor_value_info(t.name, types.get(t.name, cache_type), [None] * len(t.shape)) for t in inputs],
        [t.name for t in outputs],
        threads,
    )
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    bound = {name: to_value(array) for name, array in caches.items()}
    values |= {f"past_{name}": value for name, value in bound.items()}
    results = {f"present_{name}": value for name, value in bound.items()}
    results["output"] = ort.OrtValue.ortvalue_from_numpy(np.zeros((T, HEADS, WIDTH), np.float32))
    return bind(session, values, results)


def group_query_attention(workload: Workload, key_heads: int, threads: int) -> Subject:
    """A call of ONNX Runtime's operator in place."""
    random = np.random.default_rng(0)
    T, used = workload.rows, workload.past + workload.rows
    feeds = {n: random.standard_normal((1, T, heads * WIDTH), np.float32) for n, heads in _heads(key_heads)}
    feeds |= {"seqlens_k": np.array([used - 1], np.int32), "total": np.array([used], np.int32)}
    node = helper.make_node(
        "GroupQueryAttention",
        ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"],
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=key_heads,
    )
    bound = {
        name: ort.OrtValue.ortvalue_from_numpy(make_cache(random, key_heads, workload.past, np.float32))
        for name in ("key", "value")
    }
    ranks = dict.fromkeys(("query", "key", "value"), 3) | {"past_key": 4, "past_value": 4}
    ranks |= {"seqlens_k": 1, "total": 1}
    infos = [
        helper.make_tensor_value_info(
            name, TensorProto.INT32 if name in ("seqlens_k", "total") else TensorProto.FLOAT, [None] * rank
        )
        for name, rank in ranks.items()
    ]
    session = make_session(node, infos, list(node.output), threads)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    values |= {f"past_{name}": value for name, value in bound.items()}
    results = {f"present_{name}": value for name, value in bound.items()}
    results["output"] = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, T, HEADS * WIDTH), np.float32))
    return bind(session, values, results)


def torch_product() -> Subject:
    """A product of bfloat16 matrices into one that is there."""
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).bfloat16() for _ in range(2))
    out = torch.empty_like(a)

    def run() -> None:
        torch.mm(a, b, out=out)

    return run


def _heads(key_heads: int) -> list[tuple[str, int]]:
    return [("query", HEADS), ("key", key_heads), ("value", key_heads)]


def make_cache(random: np.random.Generator, key_heads: int, used: int, dtype: Any) -> Array:
    """Rows in use are random, others 0. It starts at a cache line, as memory of ONNX Runtime's allocator does."""
    shape = (1, key_heads, CAPACITY, WIDTH)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    cache = memory[start : start + size].view(dtype).reshape(shape)
    cache[:, :, :used] = random.standard_normal((1, key_heads, used, WIDTH), np.float32)
    return cache


def to_value(array: Array) -> ort.OrtValue:
    """The array, which ONNX Runtime takes with bfloat16 by its bits only."""
    if array.dtype != ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)


def make_session(node: onnx.NodeProto, inputs: list[Any], outputs: list[str], threads: int) -> ort.InferenceSession:
    """A session of one node."""
    infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    imports.append(helper.make_opsetid(DOMAIN, ATTENTION.version))
    model = helper.make_model(
        helper.make_graph([node], "one_node", inputs, infos), opset_imports=imports, ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register_native_ops(options, {})
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bind(session: ort.InferenceSession, inputs: dict[str, ort.OrtValue], outputs: dict[str, ort.OrtValue]) -> Subject:
    """A run with these values."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    kept = (*inputs.values(), *outputs.values())

    def run(_kept: object = kept) -> None:
        session.run_with_iobinding(binding)

    return run


if __name__ == "__main__":
    sys.exit(main())
