# SPDX-License-Identifier: Apache-2.0
"""From a bundle's directory to its profile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fastmmoe.runtime.bench.machine import describe_bundle, describe_machine
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.cost.rates import rates_here
from fastmmoe.runtime.doctor.host import Host
from fastmmoe.runtime.profiling.measuring import make_phases, measure
from fastmmoe.runtime.profiling.result import SCHEMA, Profile
from fastmmoe.runtime.types import Say
from fastmmoe.runtime.vlm import VLM

NOTES = {
    "cpu": "times of nodes are whole microseconds",
    "tensorrt": "with a profiler every call waits for the device, and steps are not captured: times outside of nodes "
    "are greater than without",
}
"""By provider."""


def profile_bundle(
    directory: Path,
    options: BenchOptions,
    *,
    provider: str,
    portable: bool,
    threads: int,
    spinning: bool,
    verify: bool,
    say: Say,
) -> Profile:
    """Load the bundle twice, without a profiler and with one, and measure requests of one setting.

    Args:
        provider, portable, threads, spinning, verify: as in `VLM`.
        say: is called with a line before each repetition.
    Raises:
        InvalidRequest, BackendMissing, BundleMismatch, RunFailed: see `VLM` and `measure`.
    """

    def open_bundle(profiles: bool) -> VLM:
        own = {"portable": portable, "threads": threads, "spinning": spinning, "verify": verify}
        return VLM(directory, provider=provider, profile=profiles, **own)  # type: ignore[arg-type]

    measured = measure(open_bundle, options, say)
    stats, manifest = measured.profiled[0].stats, measured.manifest
    rates = rates_here(stats.provider, manifest)
    return Profile(
        schema=SCHEMA,
        machine=describe_machine(Host(), stats.provider, threads),
        bundle=describe_bundle(directory, manifest),
        settings={
            "method": stats.method,
            "retention": stats.retention,
            "tiles": stats.tiles,
            "visual_tokens": stats.visual_tokens,
            "kept_visual_tokens": stats.kept_visual_tokens,
            "text_tokens": stats.text_tokens,
            "new_tokens": options.new_tokens,
            "repetitions": options.repetitions,
            "warmup": options.warmup,
            "portable": portable,
        },
        rates=None if rates is None else asdict(rates),
        phases=tuple(make_phases(measured, rates)),
        notes=tuple(filter(None, [NOTES.get(stats.provider)])),
    )
