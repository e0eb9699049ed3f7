# SPDX-License-Identifier: Apache-2.0
"""The least time that one layer's FmmAttention can take on a device, by its data sheet.

Every launch takes at least max(bytes / bandwidth, operations / rate), and at least what its longest block takes with
one multiprocessor's share of both. Launches follow each other. Nothing here is measured.

Bytes are those of the rows in use of the caches, of the call's rows and of what splits leave, each once for the launch
that writes it and once for the launch that reads it: what several blocks read again is taken to come from the L2 cache.
Operations are those of whole tiles of lines and keys, padding and masked keys included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from markers import table

from fastmmoe.runtime.machines.devices import Device
from sass_tools.launches import AttentionCase, Launch
from sass_tools.roofline import ADD_SPLITS, Estimate, phase_of
from sass_tools.tables import three_digits
from sass_tools.toolchain import ReportError

ELEMENT_BYTES, SUM_BYTES, SEEN_BYTES = 2, 4, 8
CAPACITY_UNIT = 256
SPLIT_KEYS = (128, 64)  # of kernel.cu, the second with latent heads
APART_TILE = (64, 64)  # lines and keys of attend_apart


@dataclass(frozen=True)
class AttentionLayer:
    """The attention layers of a model without a window; sizes as in docs/operators.md."""

    model: str
    N: int
    K: int
    D: int
    value_width: int = 0

    def case(self, rows: int, past: int, arch: int) -> AttentionCase:
        """The call for so many rows after so many in the cache; its capacity is what the runtime would choose."""
        capacity = -(-(past + rows) // CAPACITY_UNIT) * CAPACITY_UNIT
        return AttentionCase(rows, past, capacity, self.N, self.K, self.D, self.value_width, arch=arch)


LAYERS = (
    AttentionLayer("DeepSeek-VL2-small", N=16, K=1, D=576, value_width=512),
    AttentionLayer("InternVL3.5-30B-A3B", N=32, K=4, D=128),
    AttentionLayer("InternVL3.5-GPT-OSS-20B", N=64, K=8, D=64),
)
CALLS = ((1, 511), (1, 2047), (1, 8191), (512, 0), (2048, 0))
"""(rows, rows in the cache before them)."""


@dataclass(frozen=True)
class AttentionWork:
    """What one launch has to do; longest: the share of all work that its longest block has."""

    phase: str
    bytes: float
    operations: float
    longest: float


def tile_of(kernel: str) -> tuple[int, int]:
    """Lines and keys of a tile by the kernel's name."""
    if kernel.startswith("attend_apart"):
        return APART_TILE
    match = re.search(r">, (\d+),\d+,\d+,(\d+)>>$", kernel)
    if match is None:
        raise ReportError(f"{kernel} is no kernel of FmmAttention that the estimate knows")
    return 16 * int(match[1]), int(match[2])


def work_of(launch: Launch, case: AttentionCase, splits: int) -> AttentionWork:
    """What a launch has to do. splits: of the launch of attend_*, of the same call."""
    T, N, used = case.T, case.N, case.past + case.T
    split_keys = used if splits == 1 else max(SPLIT_KEYS[case.D > 128], -(-case.C // splits // 64) * 64)
    left = -(-used // split_keys) * T * N * (case.W * SUM_BYTES + SEEN_BYTES) if splits > 1 else 0
    output = T * N * case.W * ELEMENT_BYTES
    phase = phase_of(launch.kernel)
    if phase == ADD_SPLITS:
        return AttentionWork(phase, left + output, 0, 1 / launch.grid[0])
    lines, keys = tile_of(launch.kernel)
    group = N // case.K
    ends = [case.past + (min(first + lines, T * group) - 1) // group + 1 for first in range(0, T * group, lines)]
    tiles = [-(-end // keys) for end in ends]
    row = case.K * (case.D + (0 if case.value_width else case.W)) * ELEMENT_BYTES
    moved = (case.past + 2 * T) * row + T * N * case.D * ELEMENT_BYTES + (left or output)
    operations = sum(tiles) * case.K * lines * keys * 2 * (case.D + case.W)
    longest = min(max(tiles), split_keys // keys if splits > 1 else max(tiles)) / (sum(tiles) * case.K)
    return AttentionWork(phase, moved, operations, longest)


def estimate(work: AttentionWork, device: Device) -> Estimate:
    """The least time of one launch."""
    stretch = max(1.0, work.longest * device.multiprocessors)
    memory_us = work.bytes / (device.gb_per_s * 1e3)
    return Estimate(work.phase, memory_us * stretch, work.operations / (device.fp16_tflops * 1e6) * stretch)


def attention_table(launches: dict[AttentionCase, list[Launch]], devices: list[Device]) -> str:
    """Microseconds of a layer: a line for model and call, a column for every device; c where computing takes longer."""
    lines = []
    for layer in LAYERS:
        for rows, past in CALLS:
            cells = []
            for device in devices:
                case = layer.case(rows, past, device.sm)
                of_case = launches[case]
                splits = of_case[0].grid[2]
                times = [estimate(work_of(launch, case, splits), device) for launch in of_case]
                computes = sum(time.compute_us for time in times) > sum(time.memory_us for time in times)
                cells.append(three_digits(sum(time.us for time in times)) + (" c" if computes else ""))
            lines.append([layer.model, str(rows), str(past), str(len(of_case)), *cells])
    head = ["model", "rows", "in the cache", "launches", *(device.name for device in devices)]
    return table(head, lines, numbers_from=1)
