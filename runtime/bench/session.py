# SPDX-License-Identifier: Apache-2.0
"""A whole measurement of a loaded bundle: energy, rates and the machine beside the requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastmmoe.runtime.backends.base import profilable
from fastmmoe.runtime.backends.mapped_weights import map_weights
from fastmmoe.runtime.backends.settings import CPU
from fastmmoe.runtime.bench.machine import describe_bundle, describe_machine
from fastmmoe.runtime.bench.measuring import Bench, Round
from fastmmoe.runtime.bench.result import SCHEMA, Result
from fastmmoe.runtime.bench.rows import make_rows
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.bench.trtexec import export_profile
from fastmmoe.runtime.cost.rates import rates_here
from fastmmoe.runtime.cost.roofline import Rates
from fastmmoe.runtime.doctor.host import Host
from fastmmoe.runtime.machines.power import Meter, find_meter
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.types import Say
from fastmmoe.runtime.vlm import VLM

THIS = Host()
BUSY = 0.5
"""Share of the cores that others may take before it is said."""


def measure(
    vlm: VLM,
    directory: Path,
    options: BenchOptions,
    *,
    threads: int = 0,
    portable: bool = False,
    spinning: bool = False,
    host: Host = THIS,
    say: Say = lambda _: None,
) -> tuple[Result, list[Round]]:
    """Measure a bundle.

    Args:
        threads, portable, spinning: what it was loaded with.
        say: is called with a line of progress.
    Returns:
        The result, and the requests that it stands for.
    Raises:
        InvalidRequest: see `Bench`.
    """
    provider, manifest = vlm.backend.provider, vlm.manifest
    machine = describe_machine(host, provider, threads)
    # Other work slows what measures the machine, too: the bound is that of the faster of two.
    before = rates_here(provider, manifest, host.root)
    meter = find_meter(provider, host.root)
    with nullcontext() if meter is None else closing(meter):
        if options.warmup:
            map_weights(directory)
        bench = Bench(vlm, options, meter, say)
        rounds = bench.run()
    rates = _faster(before, rates_here(provider, manifest, host.root))
    result = Result(
        schema=SCHEMA,
        machine=machine,
        bundle=describe_bundle(directory, manifest),
        settings=_settings(bench, meter) | {"threads": threads, "portable": portable, "spinning": spinning},
        rates=None if rates is None else asdict(rates),
        rows=tuple(make_rows(rounds, manifest, rates)),
        notes=tuple(_notes(machine, rates, meter)),
    )
    return result, rounds


def _settings(bench: Bench, meter: Meter | None) -> dict[str, Any]:
    """How it was measured."""
    options, prompt = bench.options, bench.prompt
    return asdict(options) | {
        "images": ["-" if isinstance(image, bytes) else image for image in options.images],
        "order": "round robin",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "text_tokens": len(prompt.input_ids) - len(prompt.visual_index),
        "visual_tokens": len(prompt.visual_index),
        "tiles": sum(prompt.tile_counts),
        "energy": None if meter is None else meter.source,
    }


def _faster(one: Rates | None, other: Rates | None) -> Rates | None:
    if one is None or other is None:
        return None
    return replace(one, bytes=max(one.bytes, other.bytes), flops=max(one.flops, other.flops))


def _notes(machine: dict[str, Any], rates: Rates | None, meter: Meter | None) -> Iterator[str]:
    if rates is None:
        yield f"no roofline: no data sheet of {machine['gpu']} is known (runtime/machines/devices.py)"
    if meter is None:
        nvml = "" if machine["provider"] == CPU else ", no NVML"
        yield f"no joules: there is no INA3221 power monitor{nvml} to read"
    cores = usable_cores()
    if machine["load"] > BUSY * cores:
        yield f"load {machine['load']:g} on {cores} cores before it began: other work slowed it"


def profile_requests(vlm: VLM, options: BenchOptions, say: Say = lambda _: None) -> list[dict[str, Any]]:
    """The same requests, all of one kind, on a bundle that was loaded with a profiler; see `export_profile`.

    Raises:
        InvalidRequest: what runs it does not tell how long nodes took; see also `Bench`.
        RunFailed: see `export_profile`.
    """
    backend = profilable(vlm.backend)
    Bench(vlm, options, say=say).run()
    return export_profile(backend.end_profiling(), options.repetitions, options.warmup)
