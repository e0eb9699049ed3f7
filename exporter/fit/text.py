# SPDX-License-Identifier: Apache-2.0
"""What fastmmoe plan prints: lines of at most 80 columns, or one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fastmmoe.exporter.fit.plan import EXPORT_BYTES, Fit, Machine, export_disk
from fastmmoe.exporter.fit.sizes import ModelSizes
from fastmmoe.exporter.fit.times import Row, Times
from fastmmoe.runtime.cli.flops import stages
from fastmmoe.runtime.cli.table import align, number
from fastmmoe.runtime.cost.roofline import FLAT

GB = 1e9
LEAST_SHOWN = 1e-3
"""Parts with a smaller share of the weights are left out of the text."""


@dataclass(frozen=True)
class Report:
    """All that a plan says.

    Attributes:
        others: cheaper ways of storing the model, where the wanted one does not fit.
        larger: name of the smallest machine that has room for the wanted one; None = not needed, or there is none.
    """

    sizes: ModelSizes
    machine: Machine
    fit: Fit
    times: Times
    others: tuple[Fit, ...]
    larger: str | None

    @property
    def cheaper(self) -> Fit | None:
        """The mildest of the others that fits."""
        return next((other for other in self.others if other.fits), None)

    @property
    def build_swap(self) -> int:
        """Bytes by which the builder's peak exceeds the memory, where engines are built in it."""
        machine, build = self.machine, (self.fit if self.fit.fits else self.cheaper or self.fit).needs.build
        return max(0, build - (machine.memory - machine.reserve)) if machine.target.shares_memory else 0


def verdict(report: Report) -> str:
    """Whether it fits, and what does where it does not."""
    if report.fit.fits:
        return f"fits, {_gb(report.fit.spare)} GB to spare"
    start = f"does not fit, {_gb(-report.fit.spare)} GB too much"
    if report.cheaper is None:
        return f"{start}; no other way of storing it does"
    return f"{start}; --weights {report.cheaper.weights} does, with {_gb(report.cheaper.spare)} GB to spare"


def describe(report: Report) -> Iterator[str]:
    """The plan in lines."""
    sizes, machine, found, limits = report.sizes, report.machine, report.fit, report.fit.limits
    count = sum(sizes.parameters.values())
    yield f"{sizes.name}, {number(count / 1e9)} G parameters"
    yield f"on {machine.name} ({machine.target.name}), dtype {found.dtype}, {', '.join(_formats(found))}"
    text = limits.max_tokens - limits.max_visual
    yield (
        f"prompt of {limits.max_tiles} tiles, {limits.max_visual:,} visual and {text:,} text tokens; "
        f"answer of {limits.max_cache - limits.max_tokens:,}"
    )
    yield ""
    yield from _memory_lines(report)
    yield ""
    yield from _time_lines(report.times)
    yield ""
    if report.build_swap:
        yield f"the build needs about {_gb(report.build_swap)} GB more than there is: add swap for it"
    yield verdict(report)
    if report.larger is not None:
        yield f"the smallest machine that has room for it as it is: --target {report.larger}"


def _formats(found: Fit) -> Iterator[str]:
    """Those of experts, and of what else is packed."""
    for part in ("experts", "dense", "vision"):
        given = getattr(found.export, part)
        if part == "experts" or given != "float":
            yield f"{part} {given}"


def _memory_lines(report: Report) -> Iterator[str]:
    needs, machine = report.fit.needs, report.machine
    shown = {
        part.replace("_", " "): size
        for part, size in needs.weights.items()
        if size >= LEAST_SHOWN * sum(needs.weights.values())
    }
    others = "the system" if machine.target.tensorrt is None else "system and CUDA"
    rows = {f"  {part}": (size, "") for part, size in shown.items()}
    rows |= {
        "weights": (sum(needs.weights.values()), ""),
        "caches": (needs.caches, "nothing pruned"),
        "vision activations": (needs.vision, "estimate"),
        "workspace": (needs.workspace, "estimate"),
        "together": (needs.total, ""),
        "memory": (machine.memory, f"{_gb(machine.reserve)} of it left to {others}, assumed"),
    }
    if needs.build:
        where = "on the device" if machine.target.shares_memory else "of the host that builds"
        rows["build peak"] = (needs.build, f"{where}, estimate")
    rows["export"] = (
        EXPORT_BYTES,
        f"of its host, beside mapped files; {_gb(export_disk(report.sizes, report.fit))} GB of disk",
    )
    width = max(map(len, rows))
    places = 2 if needs.total >= GB else 4
    digits = max(len(_gb(size, places)) for size, _ in rows.values())
    yield f"{'memory in GB':{width}}".rstrip()
    for name, (size, note) in rows.items():
        yield f"{name:{width}}  {_gb(size, places):>{digits}}  {note}".rstrip()


def _time_lines(times: Times) -> Iterator[str]:
    rates = times.rates
    yield f"least times in ms, by {rates.flops / 1e12:.3g} TFLOPS and {rates.bytes / 1e9:.4g} GB/s"
    yield f"({rates.source})"
    yield f"vision {number(times.vision.ms)}: {number(times.vision.flops / 1e9)} GFLOPs"
    head = ["R", "visual tokens", "GFLOPs", "GB read", "prefill", "first token", "a token"]
    yield from align([head, *(_time_row(times, row) for row in times.rows)], left=2)
    yield (f"below R = {times.flat:g} prefill gets at most {FLAT - 1:.0%} faster: weights still have to be read")


def _time_row(times: Times, row: Row) -> list[str]:
    first = times.vision.ms + row.prefill.ms
    numbers = [number(row.prefill.flops / GB), number(row.prefill.bytes / GB)]
    return [
        f"{row.request.schedule.retention:g}",
        stages(row.request),
        *numbers,
        *map(number, (row.prefill.ms, first, row.decode.ms)),
    ]


def _gb(size: float, places: int = 2) -> str:
    return f"{size / GB:,.{places}f}"


def as_json(report: Report) -> dict[str, Any]:
    """The plan as plain numbers: bytes, FLOPs, milliseconds (docs/plan.md has the keys)."""
    sizes, machine, found, times = report.sizes, report.machine, report.fit, report.times
    return {
        "model": sizes.name,
        "target": machine.target.name,
        "machine": machine.name,
        "dtype": found.dtype,
        "cache_dtype": found.manifest.cache_dtype,
        **_formats_of(found),
        "limits": {name: getattr(found.limits, name) for name in found.limits.__struct_fields__},
        "parameters": sizes.parameters,
        "memory": {
            "weights": found.needs.weights,
            "caches": found.needs.caches,
            "vision_activations": found.needs.vision,
            "workspace": found.needs.workspace,
            "total": found.needs.total,
            "machine": machine.memory,
            "reserve": machine.reserve,
            "spare": found.spare,
            "build_peak": found.needs.build,
            "build_swap": report.build_swap,
            "export_memory": EXPORT_BYTES,
            "export_disk": export_disk(sizes, found),
        },
        "rates": asdict(times.rates),
        "vision": asdict(times.vision),
        "requests": [_row_dict(times, row) for row in times.rows],
        "flat_retention": times.flat,
        "fits": found.fits,
        "verdict": verdict(report),
        "others": [
            {"dtype": o.dtype, **_formats_of(o), "total": o.needs.total, "spare": o.spare, "fits": o.fits}
            for o in report.others
        ],
        "larger_machine": report.larger,
    }


def _formats_of(found: Fit) -> dict[str, str | None]:
    export = found.export
    return {"weights": found.weights, "experts": export.experts, "dense": export.dense, "vision": export.vision}


def _row_dict(times: Times, row: Row) -> dict[str, Any]:
    schedule = row.request.schedule
    return {
        "retention": schedule.retention,
        "kept_visual_tokens": schedule.kept_visual_tokens,
        "caches": row.caches,
        "flops": asdict(row.request.prefill),
        "total": row.request.prefill.total,
        "reduction": row.request.reduction,
        "prefill": asdict(row.prefill),
        "decode": asdict(row.decode),
        "first_token_ms": times.vision.ms + row.prefill.ms,
    }
