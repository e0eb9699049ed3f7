# SPDX-License-Identifier: Apache-2.0
"""What a measurement is of: the machine with its power mode, clocks and versions, and the bundle."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastmmoe import __version__
from fastmmoe.runtime.backends.distribution import DISTRIBUTIONS
from fastmmoe.runtime.backends.settings import CPU, TENSORRT
from fastmmoe.runtime.bundle.manifest import Manifest, manifest_sha256, read_engines
from fastmmoe.runtime.doctor.host import Host, plain
from fastmmoe.runtime.doctor.jetson import probe_jetson
from fastmmoe.runtime.doctor.system import probe_system
from fastmmoe.runtime.machines.data_sheet import read_board
from fastmmoe.runtime.machines.gpu import find_gpu
from fastmmoe.runtime.machines.threads import usable_cores

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=power.limit,clocks.sm,clocks.max.sm,driver_version", "--format=csv,noheader")
COMMIT_DIGITS = 12


def describe_machine(host: Host, provider: str, threads: int) -> dict[str, Any]:
    """What ran it; None where a thing is not told.

    Args:
        provider: as `Backend.provider` has it.
        threads: as the user gave it; 0 = one for each core.
    """
    cores, gpu = usable_cores(host.root), None if provider == CPU else find_gpu()
    processor = _processor(host)
    board = read_board(host.root)
    card = _ask_card(host) if gpu is not None and not board else {}
    found = {finding.name: finding.found for finding in (*probe_jetson(host), *probe_system(host))}
    clocks = [found[name] for name in ("gpu clocks", "cpu clocks") if name in found]
    return {
        "device": (gpu.name if gpu is not None and not board else "") or board or processor,
        "processor": processor,
        "gpu": None if gpu is None else gpu.name,
        "provider": provider,
        "power_mode": found.get("power mode", card.get("power_mode")),
        "clocks": "; ".join(filter(None, [card.get("clocks"), *clocks])) or _clock(host),
        "temperature": found.get("temperature"),
        "cores": cores,
        "threads": (threads or cores) if provider == CPU else None,
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "versions": dict(_versions(provider)) | ({"driver": card["driver"]} if card else {}),
        "commit": find_commit(host, Path(__file__).resolve().parents[2]),
    }


def describe_bundle(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Which bundle; sha256 is that of what its manifest says, hashes of all files included."""
    engines = read_engines(directory) if manifest.plugin is not None else None
    return {
        "model": manifest.model,
        "family": manifest.family,
        "target": manifest.target,
        "dtype": manifest.dtype,
        "cache_dtype": manifest.cache_dtype,
        "experts": manifest.experts.weight_format,
        "linears": {name: getattr(manifest.linears, name).weight_format for name in manifest.linears.__struct_fields__},
        "method": manifest.policy.default_method,
        "engines": None if engines is None else f"{engines.module} {engines.tensorrt_version}",
        "sha256": manifest_sha256(manifest),
    }


def find_commit(host: Host, root: Path) -> str | None:
    """The commit of a checkout, "-dirty" where files were changed; None where it is none."""
    if not (root / ".git").exists():
        return None
    command = ("git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", f"--abbrev={COMMIT_DIGITS}")
    said = host.run(command)
    return None if said is None else said.strip() or None


def _processor(host: Host) -> str:
    """Its name; Arm's tell numbers alone."""
    text = host.text("proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return plain(found[1]) if found else platform.machine()


def _clock(host: Host) -> str | None:
    clocks = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", host.text("proc/cpuinfo") or "", flags=re.MULTILINE)
    return f"cpu at {max(map(float, clocks)):.0f} MHz" if clocks else None


def _ask_card(host: Host) -> dict[str, str]:
    said = host.run(NVIDIA_SMI)
    parts = [part.strip() for part in (said or "").partition("\n")[0].split(",")]
    if len(parts) != 4:
        return {}
    limit, now, most, driver = map(plain, parts)
    return {"power_mode": f"limit {limit}", "clocks": f"gpu at {now} of {most}", "driver": driver}


def _versions(provider: str) -> Iterator[tuple[str, str]]:
    yield "fastmmoe", __version__
    names = ("tensorrt", "tensorrt_rtx", "cuda-bindings") if provider == TENSORRT else DISTRIBUTIONS
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
    yield "numpy", version("numpy")
    yield "python", ".".join(map(str, sys.version_info[:3]))
