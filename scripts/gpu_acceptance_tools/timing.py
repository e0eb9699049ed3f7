# SPDX-License-Identifier: Apache-2.0
"""Times of calls on the device, and what the machine does at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

REPLAYS = 15
WARM_UPS = 2
Call = Callable[[], object]


def median_us(calls: Sequence[Call], device: torch.device, *, captures: bool = True) -> float:
    """Microseconds of a call: the median over replays of one CUDA graph of all calls, divided by how many they are.

    Calls that differ in their data keep one's out of the cache of the other. On a CPU they are called.

    Args:
        captures: False for what no graph takes: then the calls are queued, and the time is that between two events.
    """
    if device.type == "cpu":
        return _on_cpu(calls)
    torch.cuda.synchronize()  # the calls' tensors were filled in another stream
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            for call in calls:
                call()
        torch.cuda.synchronize()
        if not captures:
            return _replay(lambda: [call() for call in calls]) / len(calls)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
        return _replay(graph.replay) / len(calls)


def _replay(launch: Call) -> float:
    launch()
    marks = []
    for _ in range(REPLAYS):
        first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        launch()
        second.record()
        marks.append((first, second))
    torch.cuda.synchronize()
    return 1e3 * statistics.median(first.elapsed_time(second) for first, second in marks)


def _on_cpu(calls: Sequence[Call]) -> float:
    times = []
    for call in calls[:2]:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


@dataclass(frozen=True)
class Ceilings:
    """GB/s of copies, bytes read and written counted; TFLOP/s of a product by type."""

    gb_per_s: float
    tflops: dict[str, float]


def measure_ceilings(device: torch.device, *, copy_bytes: int, side: int) -> Ceilings:
    """Of a copy within the device, and of square products of random matrices in both 16-bit types."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    gb_per_s = 2 * copy_bytes / median_us([lambda: target.copy_(source)], device) / 1e3
    tflops = {}
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        us = median_us([lambda a=a, b=b, product=product: torch.mm(a, b, out=product)], device)  # type: ignore[misc]
        tflops[str(dtype).removeprefix("torch.")] = 2 * side**3 / us / 1e6
    return Ceilings(gb_per_s, tflops)
