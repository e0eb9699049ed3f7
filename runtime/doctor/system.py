# SPDX-License-Identifier: Apache-2.0
"""Probes of any Linux machine: memory and swap, cores and the limits of containers, clocks, temperatures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastmmoe.runtime.doctor.host import Finding, Host, plain, shown
from fastmmoe.runtime.machines.memory import read_memory
from fastmmoe.runtime.machines.threads import cgroups, usable_cores

GB = 1e9
LEAST_FREE = 2e9
"""Free memory and swap under which a demo runs, and little else."""
HOT, MILLI = 85.0, 1000.0
"""Degrees that are near the limit where a zone names none."""
NEAR = 5.0
ADD_SWAP = "sudo fallocate -l 16G /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
SET_GOVERNOR = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
SLOW_GOVERNORS = ("powersave", "conservative", "userspace")
UNLIMITED = 1 << 60
"""What cgroups of version 1 say where there is no limit is about this."""
CONTAINER_FILES = (".dockerenv", "run/.containerenv")


def probe_system(host: Host) -> Iterator[Finding]:
    """Everything of this file."""
    yield from _memory(host)
    yield from _swap(host)
    yield from _cores(host)
    yield from _governor(host)
    yield from _temperature(host)


def _memory(host: Host) -> Iterator[Finding]:
    memory = read_memory(host.root)
    if memory is None:
        yield Finding("memory", "warning", "/proc/meminfo does not say how much there is", "mount -t proc proc /proc")
        return
    free, swap = memory["MemAvailable"], memory["SwapFree"]
    found = f"{free / GB:.1f} of {memory['MemTotal'] / GB:.1f} GB free, {swap / GB:.1f} GB of swap"
    limit = memory_limit(host)
    if limit is not None and limit < memory["MemTotal"]:
        yield Finding(
            "memory",
            "warning",
            f"{found}; this container may use {limit / GB:.1f} GB",
            f"docker run --memory {round(memory['MemTotal'] / GB)}g ...",
        )
    elif free + swap < LEAST_FREE:
        yield Finding("memory", "warning", found, "end other programs: ps aux --sort -rss | head")
    else:
        yield Finding("memory", "ok", found)


def memory_limit(host: Host) -> int | None:
    """Bytes that the cgroups of this process may use; None = all."""
    found = []
    for directory in cgroups(host.root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = host.number(str((directory / name).relative_to(host.root)))
            found += [] if limit is None or not 0 < limit < UNLIMITED else [limit]
    return min(found, default=None)


def _swap(host: Host) -> Iterator[Finding]:
    text = host.text("proc/swaps")
    if text is None:
        return
    rows = [line.split() for line in text.splitlines()[1:]]
    kinds = {"zram" if "zram" in row[0] else "disk" for row in rows if row}
    if "disk" in kinds:
        yield Finding("swap", "ok", f"on disk{', and compressed memory (zram)' if 'zram' in kinds else ''}")
    elif "zram" in kinds:
        yield Finding(
            "swap", "warning", "compressed memory (zram) alone: a build of engines that needs more is killed", ADD_SWAP
        )
    else:
        yield Finding("swap", "warning", "none: what needs more memory than there is, is killed", ADD_SWAP)


def _cores(host: Host) -> Iterator[Finding]:
    there = len(re.findall(r"^processor\s*:", host.text("proc/cpuinfo") or "", flags=re.MULTILINE))
    usable = usable_cores(host.root)
    is_container = any(host.is_there(name) for name in CONTAINER_FILES)
    where = "this container" if is_container else "this process"
    if there == 0 or usable >= there:
        yield Finding("cores", "ok", f"{usable}{', in a container' if is_container else ''}")
        return
    mend = f"docker run --cpus {there} ..." if is_container else f"taskset -c 0-{there - 1} fastmmoe ..."
    yield Finding("cores", "warning", f"{where} may use {usable} of {there}", mend)


def _governor(host: Host) -> Iterator[Finding]:
    folders = host.names("sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    governors = {text for folder in folders if (text := host.text(f"{folder}/scaling_governor")) is not None}
    if not governors:
        return
    found = ", ".join(sorted(governors))
    if not all(re.fullmatch(r"\w+", governor) for governor in governors):
        yield Finding("cpu clocks", "warning", f"governor {shown(found)} is not understood", SET_GOVERNOR)
    elif governors & set(SLOW_GOVERNORS):
        yield Finding("cpu clocks", "warning", f"governor {found}: times will vary", SET_GOVERNOR)
    else:
        yield Finding("cpu clocks", "ok", f"governor {found}")


def _temperature(host: Host) -> Iterator[Finding]:
    zones = []
    for zone in host.names("sys/class/thermal/thermal_zone*"):
        value = host.number(f"{zone}/temp")
        if value is not None and 0 < value < 200 * MILLI:
            zones.append(
                (value / MILLI, _limit(host, zone), plain(host.text(f"{zone}/type") or zone.rpartition("/")[2]))
            )
    if not zones:
        return
    degrees, limit, name = max(zones, key=lambda zone: zone[0] - zone[1])
    found = f"{name} at {degrees:.0f} degrees, limit {limit:.0f}"
    if degrees >= limit:
        yield Finding("temperature", "problem", f"{found}: clocks are held down", "cool the machine, and wait")
    elif degrees >= limit - NEAR:
        yield Finding("temperature", "warning", f"{found}: clocks are about to fall", "cool the machine, and wait")
    else:
        yield Finding("temperature", "ok", found)


def _limit(host: Host, zone: str) -> float:
    """The first temperature at which the system holds clocks down."""
    limits = []
    for trip in host.names(f"{zone}/trip_point_*_type"):
        value = host.number(f"{trip.removesuffix('_type')}_temp")
        if host.text(trip) in ("passive", "hot", "critical") and value is not None and value > 0:
            limits.append(value / MILLI)
    return min(limits, default=HOT)
