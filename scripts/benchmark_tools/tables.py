# SPDX-License-Identifier: Apache-2.0
"""The tables of the benchmark, in Markdown, and its rows as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markers import table

from benchmark_tools.machine import Machine
from benchmark_tools.prefill import Setting
from benchmark_tools.probe import Findings
from benchmark_tools.roofline import Bound


@dataclass(frozen=True)
class Row:
    """All that is known of one setting.

    Attributes:
        kept: visual tokens of the prompt, then after each stage of the method.
        flops: of the prefill.
        times_ms: of every repeat.
        baseline_ms: of the unmodified model in the same repeats.
        baseline_flops: its FLOPs.
    """

    setting: Setting
    kept: tuple[int, ...]
    flops: int
    baseline_flops: int
    bound: Bound
    findings: Findings
    times_ms: tuple[float, ...]
    baseline_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Of the repeats."""
        return statistics.median(self.times_ms)

    @property
    def spread_ms(self) -> tuple[float, float]:
        """10th and 90th percentile; of few repeats the least and the greatest."""
        if len(self.times_ms) < 10:
            return min(self.times_ms), max(self.times_ms)
        tenths = statistics.quantiles(self.times_ms, n=10)
        return tenths[0], tenths[-1]

    @property
    def time_ratio(self) -> float:
        """Median over the repeats of the time against the unmodified model's in the same repeat."""
        return statistics.median(a / b for a, b in zip(self.times_ms, self.baseline_ms, strict=True))

    @property
    def flops_ratio(self) -> float:
        """FLOPs against the unmodified model's."""
        return self.flops / self.baseline_flops

    def json(self) -> str:
        """One line."""
        values: dict[str, Any] = asdict(self)
        values |= {"median_ms": self.median_ms, "time_ratio": self.time_ratio, "flops_ratio": self.flops_ratio}
        return json.dumps(values)


def time_table(rows: Sequence[Row]) -> str:
    """FLOPs, the least time and the measured one of every setting."""
    counted = ("method", "R", "visual tokens", "GFLOPs", "FLOPs", "compute ms", "weights ms", "roofline ms")
    measured = ("prefill ms", "spread ms", "time", "roofline / prefill")
    lines = []
    for row in rows:
        low, high = row.spread_ms
        lines.append(
            (
                row.setting.label,
                f"{row.setting.retention:g}",
                " > ".join(map(str, row.kept)),
                f"{row.flops / 1e9:.0f}",
                f"{row.flops_ratio:.1%}",
                f"{row.bound.compute_ms:.0f}",
                f"{row.bound.memory_ms:.0f}",
                f"{row.bound.ms:.0f}",
                f"{row.median_ms:.0f}",
                f"{low:.0f} to {high:.0f}",
                f"{row.time_ratio:.1%}",
                f"{row.bound.ms / row.median_ms:.0%}",
            )
        )
    return table((*counted, *measured), lines)


def share_table(rows: Sequence[Row]) -> str:
    """Experts used and the time of the pruning nodes."""
    header = ("method", "R", "experts used by layer", "pruning", "all sites")
    lines = [
        (
            row.setting.label,
            f"{row.setting.retention:g}",
            ", ".join(map(str, row.findings.experts_used)),
            f"{row.findings.pruning_share:.2%}" if row.setting.method != "none" else "",
            f"{row.findings.sites_share:.2%}",
        )
        for row in rows
    ]
    return table(header, lines)


def machine_table(machine: Machine) -> str:
    """What was measured of the machine."""
    lines = [
        (f"{p.name} [{p.rows}, {p.depth}] x [{p.depth}, {p.columns}]", f"{p.gflops:.0f} GFLOP/s")
        for p in machine.products
    ]
    lines.append(("reading memory", f"{machine.bandwidth:.1f} GB/s"))
    return table(("measured", "rate"), lines)
