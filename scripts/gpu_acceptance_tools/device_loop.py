# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend's device code with the driver: decode steps as one captured graph, pinned memory, two streams.

What stands in for TensorRT is a step that copies the next tokens from a list on the device, and turns the list; a
second loop launches FmmSparseMoE in each step as well. In a rehearsal the driver is the tests' double.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.tensorrt.caches import CachePool, DeviceCaches, Storage
from fastmmoe.runtime.backends.tensorrt.decoding import DecodeSteps, found_for_next
from fastmmoe.runtime.backends.tensorrt.device import Address, Device, Stream
from fastmmoe.runtime.backends.tensorrt.experts import experts_layout, load_experts
from fastmmoe.runtime.backends.tensorrt.memory import Layout, Results, Staging, aligned
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.report import Recorder, Unavailable
from gpu_acceptance_tools.work import Work

SEQUENCES = 4


@dataclass
class Loop:
    """What `DecodeSteps` takes for the resources of a loaded bundle, and its step.

    Attributes:
        script: address of the tokens to come, int32 [steps, SEQUENCES]; `spare` has room for as many.
        extra: queues more work into a step.
    """

    device: Device
    stream: Stream
    staging: Staging
    script: Address
    spare: Address
    script_bytes: int
    extra: Callable[[Stream], None] | None = None
    decode: None = None
    outputs: Mapping[str, Address] = field(default_factory=dict)

    def queue(self, _: Any, shapes: Any, inputs: Mapping[str, Address], found: Mapping[str, Address], __: Any) -> None:
        """A step: the tokens at the head of the list are next, and go to its end; positions and lengths stay."""
        row, rest = 4 * SEQUENCES, self.script_bytes - 4 * SEQUENCES
        copy, stream = self.device.copy, self.stream
        copy(found[graph_io.NEXT_IDS], self.script, row, stream)
        copy(self.spare, self.script + row, rest, stream)
        copy(self.spare + rest, self.script, row, stream)
        copy(self.script, self.spare, self.script_bytes, stream)
        for name, output in found_for_next(1).items():
            if name != graph_io.INPUT_IDS:
                copy(found[output], inputs[name], row, stream)
        if self.extra is not None:
            self.extra(stream)


def run(work: Work, record: Recorder) -> None:
    """The loop, with and without a kernel; uploads and results; two streams; experts' weights from a file."""
    with _driver(work) as cudart:
        device = Device(cudart)
        found = device.properties()
        record.fact(gpu=found.name, sm=found.sm, is_integrated=found.is_integrated)
        with contextlib.ExitStack() as stack:
            high, low = device.make_streams()
            for stream in (high, low):
                stack.callback(device.destroy_stream, stream)
            stack.callback(device.synchronize, high)
            check_loop(work, record, device, high)
            check_loop_with_kernel(work, record, device, high)
            check_passing(work, record, device, high)
            check_streams(work, record, device, high, low)
            check_experts(work, record, device, high)


@contextlib.contextmanager
def _driver(work: Work) -> Iterator[Any]:
    """The module cuda.bindings.runtime, with a GPU, or the double."""
    if work.is_rehearsal:
        from tests.support.double import installed

        with installed() as double:
            yield double.modules().cudart
        return
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise Unavailable(f"cuda-bindings: {error}") from error
    answer, count = cudart.cudaGetDeviceCount()
    if answer != cudart.cudaError_t.cudaSuccess or count == 0:
        raise Unavailable(f"cuda-bindings: {answer.name}")
    yield cudart


def _block(stack: contextlib.ExitStack, device: Device, size: int) -> Address:
    address = device.allocate(aligned(size))
    stack.callback(device.free, address)
    return address


@contextlib.contextmanager
def _opened(work: Work, device: Device, stream: Stream, tokens: Array) -> Iterator[tuple[Loop, DecodeSteps, Storage]]:
    """A loop with these tokens to come, int32 [steps, SEQUENCES]."""
    following = found_for_next(1)
    sizes = dict.fromkeys(following, 4 * SEQUENCES)
    with contextlib.ExitStack() as stack:
        staging = Staging(device, max(Layout.of(sizes).size, tokens.nbytes))
        stack.callback(staging.close)
        script, spare = (_block(stack, device, tokens.nbytes) for _ in range(2))
        loop = Loop(device, stream, staging, script, spare, tokens.nbytes)
        steps = DecodeSteps(loop, sizes, following, threading.Lock())  # type: ignore[arg-type]
        pool = CachePool(device, stream, steps.state, steps.first_bytes)
        stack.callback(pool.close)
        stack.callback(device.synchronize, stream)
        staging.upload({"tokens": tokens}, Layout.of({"tokens": tokens.nbytes}), script, stream)
        yield loop, steps, pool.take(SEQUENCES, {"past": ((SEQUENCES, 1, 16, 8), "float16")})


class Caches(DeviceCaches):
    """Caches whose memory goes with the pool."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage


def _feeds(tokens: Array) -> dict[str, Array]:
    names = found_for_next(1)
    return {name: tokens if name == graph_io.INPUT_IDS else np.zeros(SEQUENCES, np.int32) for name in names}


def check_loop(work: Work, record: Recorder, device: Device, stream: Stream) -> None:
    """Tokens come one after the other, none lost or twice, over two requests on the same caches."""
    count = work.pick(2000, 24)
    tokens = np.random.default_rng(0).integers(0, 1 << 30, (count, SEQUENCES)).astype(np.int32)
    with _opened(work, device, stream, tokens) as (loop, steps, storage):
        start = time.perf_counter()
        first = list(steps.run(loop.queue, _feeds(tokens[0]), Caches(storage), count // 2))
        ms = 1e3 * (time.perf_counter() - start) / len(first)
        second = list(steps.run(loop.queue, _feeds(tokens[0]), Caches(storage), 10))
        record.check("graphs captured", len(storage.graphs) == 1, len(storage.graphs), 1)
    # Before it is captured a step runs once, and takes the first of the list.
    expected = np.roll(tokens, -1, axis=0)[: count // 2 + 10]
    wrong = int((np.array(first + second) != expected).any(axis=1).sum())
    record.check("tokens of captured steps", wrong == 0, f"{wrong} wrong of {len(expected)}", "0 wrong")
    record.measure("captured step of copies", 1e3 * ms, "us", steps=len(first))


def check_loop_with_kernel(work: Work, record: Recorder, device: Device, stream: Stream) -> None:
    """FmmSparseMoE in each captured step gives the bits that it gives alone."""
    import torch
    from sass_tools.roofline import WEIGHTS, Weights

    from gpu_acceptance_tools.kernels import Kernels
    from gpu_acceptance_tools.layer import RandomLayer, layers

    kernels = Kernels(work.library, work.device)
    weights = Weights("int4", "int4", 4, 32) if work.is_rehearsal else WEIGHTS[-1]
    made = RandomLayer(layers(is_rehearsal=work.is_rehearsal)[-1], weights, work.device)
    rows = made.tokens(SEQUENCES, seed=0)
    alone, ours = (torch.full_like(rows.hidden, torch.nan) for _ in range(2))
    made.call(kernels, rows, alone)()
    if not work.is_rehearsal:
        torch.cuda.synchronize()
    # The emulator looks at no stream: there the kernel runs when it is queued.
    handle = None if work.is_rehearsal else int(stream)
    launch = made.call(kernels, rows, ours, handle)
    count = work.pick(500, 12)
    tokens = np.arange(count * SEQUENCES, dtype=np.int32).reshape(count, SEQUENCES)
    with _opened(work, device, stream, tokens) as (loop, steps, storage):
        loop.extra = lambda _: launch()
        start = time.perf_counter()
        found = list(steps.run(loop.queue, _feeds(tokens[0]), Caches(storage), count - 1))
        ms = 1e3 * (time.perf_counter() - start) / len(found)
    same = torch.equal(alone, ours)
    record.check("FmmSparseMoE in captured steps", same, "the same bits" if same else "others", "the same bits")
    in_order = np.array_equal(np.array(found), tokens[1:])
    record.check("tokens beside FmmSparseMoE", in_order, "in order" if in_order else "not in order", "in order")
    record.measure("captured step with FmmSparseMoE", 1e3 * ms, "us", model=made.layer.model, weights="int4")


def check_passing(work: Work, record: Recorder, device: Device, stream: Stream) -> None:
    """Arrays up through pinned memory and back, many times in a row."""
    size, wrong = work.pick(4 << 20, 4096), 0
    layout = Layout.of({"x": size})
    with contextlib.ExitStack() as stack:
        staging, results = Staging(device, size), Results(device, size)
        for one in (staging, results):
            stack.callback(one.close)
        address = _block(stack, device, size)
        rounds = work.pick(100, 5)
        start = time.perf_counter()
        for seed in range(rounds):
            sent = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
            staging.upload({"x": sent}, layout, address, stream)
            wrong += not np.array_equal(results.fetch([("x", address, (size,), "uint8")], stream)["x"], sent)
        record.measure("round trip", 1e6 * (time.perf_counter() - start) / rounds, "us", bytes=size)
    record.check("arrays through pinned memory", wrong == 0, f"{wrong} wrong of {rounds}", "0 wrong")


def check_streams(work: Work, record: Recorder, device: Device, high: Stream, low: Stream) -> None:
    """The stream of high priority waits for the other's event before it copies on what that has written."""
    size, wrong = work.pick(64 << 20, 8192), 0
    with contextlib.ExitStack() as stack:
        staging, results, event = Staging(device, size), Results(device, size), device.make_event()
        stack.callback(device.destroy_event, event)
        for one in (staging, results):
            stack.callback(one.close)
        first, second, third = (_block(stack, device, size) for _ in range(3))
        rounds = work.pick(20, 3)
        for seed in range(rounds):
            sent = np.full(size, seed + 1, np.uint8)
            staging.upload({"x": sent}, Layout.of({"x": size}), first, low)
            device.copy(second, first, size, low)
            device.record(event, low)
            device.wait(high, event)
            device.copy(third, second, size, high)
            wrong += not np.array_equal(results.fetch([("x", third, (size,), "uint8")], high)["x"], sent)
        device.synchronize(low)
    record.check("streams in the order of an event", wrong == 0, f"{wrong} wrong of {rounds}", "0 wrong")


def check_experts(work: Work, record: Recorder, device: Device, stream: Stream) -> None:
    """Weights from a file through two windows of pinned memory."""
    shape = work.pick((128, 1536, 1024), (4, 6, 16))
    random, file = np.random.default_rng(1), Path(work.scratch) / "experts.data"
    values = random.integers(-128, 128, (2, *shape)).astype(np.int8)
    values.tofile(file)
    inputs = {name: ExpertTensor(dtype="int8", shape=shape, offset=n * values[0].nbytes) for n, name in enumerate("ab")}
    with contextlib.ExitStack() as stack:
        address = _block(stack, device, experts_layout(inputs).size)
        start = time.perf_counter()
        places = load_experts(device, file, inputs, address, stream)
        record.measure("experts from a file", values.nbytes / (time.perf_counter() - start) / 1e9, "GB/s")
        results = Results(device, values[0].nbytes)
        stack.callback(results.close)
        found = [results.fetch([("x", places[n], shape, "int8")], stream)["x"] for n in "ab"]
    same = all(np.array_equal(ours, theirs) for ours, theirs in zip(found, values, strict=True))
    record.check("experts from a file", same, "the same bytes" if same else "others", "the same bytes")
