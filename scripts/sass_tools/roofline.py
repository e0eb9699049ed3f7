# SPDX-License-Identifier: Apache-2.0
"""The least time that one layer's FmmSparseMoE can take on a device, by its data sheet.

Every launch takes at least max(bytes / bandwidth, operations / rate), stretched by how unevenly its blocks divide
among the multiprocessors: the busiest has ceil(blocks / multiprocessors) of them, and a multiprocessor gets its share
of bandwidth and rate. Launches follow each other. Nothing here is measured.

Routing is taken to be uniform and independent: a token uses each expert with probability k / E, so an expert has
Binomial(T, k / E) rows, and E (1 - (1 - k / E)^T) experts are used. Bytes are those of the used experts' weights, of
the states and of the workspace, each counted once for the launch that writes it and once for the launch that reads it:
what several blocks read again is taken to come from the L2 cache.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fastmmoe.runtime.machines.devices import Device
from sass_tools.launches import Launch, MoeCase
from sass_tools.occupancy import LIMITS
from sass_tools.toolchain import ReportError

ROUTE, GATE_UP, DOWN, COMBINE = "route, sort", "gate_up", "down", "combine"
PRUNE, ATTEND, ADD_SPLITS, LINEAR = "token prune", "attention", "add splits", "linear"
MOE_PHASES = (ROUTE, GATE_UP, DOWN, COMBINE)
ATTENTION_PHASES = (ATTEND, ADD_SPLITS)
PHASE_OF_PREFIX = {
    "route_": ROUTE,
    "sort_": ROUTE,
    "gate_up_": GATE_UP,
    "down_": DOWN,
    "combine_slots": COMBINE,
    "score_tokens": PRUNE,
    "choose_survivors": PRUNE,
    "gather_rows": PRUNE,
    "attend_": ATTEND,
    "combine_splits": ADD_SPLITS,
    "linear_": LINEAR,
}

ACTIVATION_BYTES = 2  # float16 or bfloat16
SCALE_BYTES = 2
INTEGER_BYTES = 4  # of a logit, an index, a weight of a slot


@dataclass(frozen=True)
class Layer:
    """The MoE layers of a model, which are all alike; sizes as in docs/operators.md."""

    model: str
    H: int
    I: int  # noqa: E741
    E: int
    top_k: int
    layers: int


LAYERS = (
    Layer("DeepSeek-VL2-small", H=2048, I=1408, E=64, top_k=6, layers=26),
    Layer("InternVL3.5-30B-A3B", H=2048, I=768, E=128, top_k=8, layers=48),
)


@dataclass(frozen=True)
class Weights:
    """A form of weights: `bits` each, and a scale for each `group_size` of them, or none."""

    name: str
    weight_format: str
    bits: int
    group_size: int = 0

    @property
    def bytes_each(self) -> float:
        """Bytes of a weight and its share of the scale."""
        return self.bits / 8 + (SCALE_BYTES / self.group_size if self.group_size else 0)


WEIGHTS = (
    Weights("fp16", "float", 16),
    Weights("int8", "int8", 8, 128),
    Weights("int4", "int4", 4, 128),
)


@dataclass(frozen=True)
class Work:
    """What one launch has to do. blocks: those that have work; uses_tensor_cores: its code has operations of them."""

    phase: str
    bytes: float
    operations: float
    uses_tensor_cores: bool
    blocks: int


@dataclass(frozen=True)
class Estimate:
    """Time of one launch or the sum of some: what memory takes, what computing takes, and the greater, in us."""

    phase: str
    memory_us: float
    compute_us: float

    @property
    def us(self) -> float:
        """The lower bound."""
        return max(self.memory_us, self.compute_us)


def phase_of(kernel: str) -> str:
    """The phase of a kernel by its name; ReportError for a name that no phase has."""
    for prefix, phase in PHASE_OF_PREFIX.items():
        if kernel.startswith(prefix):
            return phase
    raise ReportError(
        f"kernel {kernel} belongs to no phase: add its prefix to PHASE_OF_PREFIX in scripts/sass_tools/roofline.py"
    )


def used_experts(case: MoeCase) -> float:
    """Expected number of experts that at least one token uses."""
    return case.E * (1 - (1 - case.top_k / case.E) ** case.T)


def expected_tiles(case: MoeCase, rows: int) -> float:
    """Expected number of tiles of so many rows that hold every expert's tokens."""
    p = case.top_k / case.E
    if p == 1:
        return case.E * float(-(-case.T // rows))

    def probability(n: int) -> float:
        choices = math.lgamma(case.T + 1) - math.lgamma(n + 1) - math.lgamma(case.T - n + 1)
        return math.exp(choices + n * math.log(p) + (case.T - n) * math.log1p(-p))

    return case.E * sum(probability(n) * -(-n // rows) for n in range(1, case.T + 1))


def tile_rows(launch: Launch, case: MoeCase) -> int | None:
    """Rows of a tile by the kernel's name, checked against its grid; None for kernels that work without tiles."""
    match = re.search(r"Tile<(\d+)", launch.kernel)
    if match is None:
        return None
    rows, slots = int(match[1]), case.T * case.top_k
    most = (slots + min(case.E, slots) * (rows - 1)) // rows
    if launch.grid[0] != most:
        raise ReportError(
            f"{launch.kernel} has {launch.grid[0]} blocks in x for {case}, expected {most} tiles of {rows} rows: the "
            "estimate does not know this kernel"
        )
    return rows


def work_of(launch: Launch, case: MoeCase, weights: Weights, *, uses_tensor_cores: bool) -> Work:
    """What a launch of FmmSparseMoE has to do, expected over all routings."""
    phase = phase_of(launch.kernel)
    T, H, I, slots = case.T, case.H, case.I, case.T * case.top_k  # noqa: E741
    rows = tile_rows(launch, case)
    blocks: float = math.prod(launch.grid)
    products = float(slots)  # rows that are multiplied
    if rows is not None:
        tiles = expected_tiles(case, rows)
        products, blocks = tiles * rows, tiles * launch.grid[1]
    used = used_experts(case)
    bytes_moved, operations = 0.0, 0.0
    if phase == ROUTE:
        is_router, is_sort = "route_" in launch.kernel, "sort" in launch.kernel
        bytes_moved = INTEGER_BYTES * (is_router * (T * case.E + 2 * slots) + is_sort * 3 * slots)
    elif phase == GATE_UP:
        bytes_moved = used * 2 * I * H * weights.bytes_each + ACTIVATION_BYTES * (T * H + slots * I)
        operations = 2 * products * 2 * I * H
        blocks = blocks if rows is not None else used * launch.grid[1]
    elif phase == DOWN:
        out = slots if rows is not None else T
        bytes_moved = used * I * H * weights.bytes_each + ACTIVATION_BYTES * (slots * I + out * H)
        operations = 2 * products * I * H
    elif phase == COMBINE:
        bytes_moved = ACTIVATION_BYTES * (slots + T) * H + INTEGER_BYTES * slots
    else:
        raise ReportError(f"{launch.kernel} is no kernel of FmmSparseMoE")
    return Work(phase, bytes_moved, operations, uses_tensor_cores, max(1, math.ceil(blocks)))


def estimate(work: Work, device: Device) -> Estimate:
    """The least time of one launch."""
    lanes = LIMITS[device.sm].float32_lanes * device.multiprocessors
    tera = device.fp16_tflops if work.uses_tensor_cores else 2 * lanes * device.clock_ghz / 1e3
    unevenness = math.ceil(work.blocks / device.multiprocessors) * device.multiprocessors / work.blocks
    memory_us = work.bytes / (device.gb_per_s * 1e3)
    compute_us = work.operations / (tera * 1e6)
    return Estimate(work.phase, memory_us * unevenness, compute_us * unevenness)


def case_of(layer: Layer, tokens: int, weights: Weights) -> MoeCase:
    """The call of FmmSparseMoE for so many tokens of a layer."""
    return MoeCase(tokens, layer.H, layer.I, layer.E, layer.top_k, weights.weight_format, group_size=weights.group_size)


def expert_bytes(layer: Layer, weights: Weights) -> float:
    """Bytes of the routed experts of the whole model."""
    return layer.layers * layer.E * 3 * layer.I * layer.H * weights.bytes_each
