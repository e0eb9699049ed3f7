# SPDX-License-Identifier: Apache-2.0
"""The tables of the report, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from markers import table

from fastmmoe.runtime.machines.devices import Device
from sass_tools.banks import Conflicts
from sass_tools.binaries import KernelCode
from sass_tools.occupancy import blocks_per_multiprocessor, occupancy
from sass_tools.roofline import MOE_PHASES, Estimate, Layer, Weights, expert_bytes

COUNTED = ("HMMA", "IMMA", "LDGSTS", "LDSM", "LDS", "STS", "LDL", "STL")
OTHER_TENSOR_OPERATIONS = ("QMMA", "OMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA", "UTCOMMA")


@dataclass(frozen=True)
class KernelRow:
    """All that is known of one kernel on one architecture; conflicts: None where it accesses no shared memory."""

    code: KernelCode
    threads: int
    dynamic_shared_bytes: int
    conflicts: Conflicts | None

    @property
    def occupancy(self) -> tuple[int, float]:
        """Blocks of a multiprocessor and the share of its warps."""
        shared = self.code.shared_bytes + self.dynamic_shared_bytes
        resources = self.code.arch, self.code.registers, self.threads, shared
        return blocks_per_multiprocessor(*resources), occupancy(*resources)


@dataclass(frozen=True)
class LayerTime:
    """The estimate of one layer, launch by launch."""

    layer: Layer
    weights: Weights
    tokens: int
    device: Device
    launches: tuple[Estimate, ...]

    @property
    def us(self) -> float:
        """The whole layer."""
        return sum(launch.us for launch in self.launches)

    def phase_us(self, phase: str) -> float:
        """One phase; 0 if no launch belongs to it."""
        return sum(launch.us for launch in self.launches if launch.phase == phase)

    @property
    def is_compute_bound(self) -> bool:
        """Whether launches that computing holds up take the greater part."""
        return sum(launch.us for launch in self.launches if launch.compute_us > launch.memory_us) > self.us / 2

    @property
    def fits(self) -> bool:
        """Whether the routed experts of the model fit into the device's memory."""
        return expert_bytes(self.layer, self.weights) <= self.device.memory_gb * 1e9


def conflict_cell(row: KernelRow) -> str:
    """Steps over the least number of steps; a dash without shared memory."""
    return "-" if row.conflicts is None else f"{row.conflicts.factor:.2f}"


def full_kernel_table(rows: list[KernelRow]) -> str:
    """A line for every kernel and architecture."""
    others = [name for name in OTHER_TENSOR_OPERATIONS if any(row.code.count(name) for row in rows)]
    counted = [*COUNTED, *others]
    head = ["kernel", "sm", "registers", "spilled", "static", "dynamic", "threads", "blocks/SM", "warps"]
    lines = []
    for row in rows:
        blocks, share = row.occupancy
        code = row.code
        resources = (code.arch, code.registers, code.spilled_bytes, code.shared_bytes, row.dynamic_shared_bytes)
        counts = [str(code.count(name)) for name in counted]
        shape = [*map(str, (*resources, row.threads, blocks)), f"{share:.1%}"]
        lines.append([code.name, *shape, *counts, conflict_cell(row)])
    return table([*head, *counted, "bank conflicts"], lines, numbers_from=1)


def _span(values: Iterable[int]) -> str:
    """One number, or the least and the greatest."""
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _compact_cells(rows: list[KernelRow]) -> list[str]:
    """What the compact table says of rows that share a line: of each architecture the one with most registers."""
    cells = [_span(row.threads for row in rows), _span(r.code.shared_bytes + r.dynamic_shared_bytes for r in rows)]
    for arch in sorted({row.code.arch for row in rows}):
        greatest = max((row for row in rows if row.code.arch == arch), key=lambda row: row.code.registers)
        blocks, share = greatest.occupancy
        cells.append(f"{greatest.code.registers}, {blocks} ({share:.0%})")
    counts = [_span(row.code.count(name) for row in rows) for name in ("HMMA", "LDGSTS", "LDSM", "LDS", "STS")]
    return [*cells, *counts, " to ".join(sorted({conflict_cell(row) for row in rows}))]


def compact_kernel_table(rows: list[KernelRow]) -> str:
    """A line for every kernel; F stands for both 16-bit types."""
    lines: dict[str, list[KernelRow]] = {}
    for row in rows:
        lines.setdefault(re.sub(r"\b(bfloat16|half)\b", "F", row.code.name), []).append(row)
    archs = [f"sm_{arch}" for arch in sorted({row.code.arch for row in rows})]
    head = ["kernel", "threads", "shared", *archs, "HMMA", "LDGSTS", "LDSM", "LDS", "STS", "conflicts"]
    return table(head, [[f"`{name}`", *_compact_cells(found)] for name, found in lines.items()], numbers_from=1)


def three_digits(us: float) -> str:
    """At most three digits: more would say that the estimate is better than it is."""
    return f"{us:.2f}" if us < 1 else f"{float(f'{us:.3g}'):g}"


def _cell(time: LayerTime) -> str:
    text = three_digits(time.us) + (" c" if time.is_compute_bound else "")
    return text if time.fits else f"({text})"


def _by_row(times: list[LayerTime]) -> dict[tuple[str, str, str], list[LayerTime]]:
    found: dict[tuple[str, str, str], list[LayerTime]] = {}
    for time in times:
        found.setdefault((time.layer.model, time.weights.name, str(time.tokens)), []).append(time)
    return found


def device_table(devices: Iterable[Device]) -> str:
    """What the estimates take from data sheets."""
    head = ["device", "power mode", "sm", "multiprocessors", "GHz", "FP16 TFLOPS", "GB/s", "memory GB"]
    lines = []
    for device in devices:
        numbers = (device.sm, device.multiprocessors, device.clock_ghz, device.fp16_tflops, device.gb_per_s)
        lines.append([device.name, device.power_mode or "-", *map(str, numbers), str(device.memory_gb)])
    return table(head, lines, numbers_from=2)


def roofline_table(times: list[LayerTime]) -> str:
    """Microseconds of a layer: a line for model, weights and tokens, a column for every device."""
    rows = _by_row(times)
    devices = [time.device.name for time in next(iter(rows.values()))]
    return table(
        ["model", "weights", "tokens", *devices],
        [[*key, *map(_cell, row)] for key, row in rows.items()],
        numbers_from=2,
    )


def bound_line(times: list[LayerTime]) -> str:
    """Which bound holds how often, in a sentence."""
    computing = sum(time.is_compute_bound for time in times)
    return f"Memory decides {len(times) - computing} of the {len(times)} estimates, computing {computing}."


def phase_table(times: list[LayerTime]) -> str:
    """Microseconds of each phase of a layer, for the times of one device."""
    lines = []
    for key, (time, *_) in _by_row(times).items():
        cells = [three_digits(time.phase_us(phase)) if time.phase_us(phase) else "-" for phase in MOE_PHASES]
        lines.append([*key, *cells, three_digits(time.us), str(len(time.launches))])
    return table(["model", "weights", "tokens", *MOE_PHASES, "sum", "launches"], lines, numbers_from=2)
