# SPDX-License-Identifier: Apache-2.0
"""All probes, one after the other."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastmmoe import __version__
from fastmmoe.runtime.doctor.bundle import probe_bundle
from fastmmoe.runtime.doctor.host import SEVERITIES, Finding, Host, Severity
from fastmmoe.runtime.doctor.jetson import probe_jetson
from fastmmoe.runtime.doctor.software import probe_software
from fastmmoe.runtime.doctor.system import probe_system


def examine(host: Host, bundle: Path | None = None, *, asks_tensorrt: bool = True) -> Iterator[Finding]:
    """Findings in the order in which they are made, which a build of an engine may hold up for seconds.

    Args:
        asks_tensorrt: see `probe_software`.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    system = f"{platform.machine()}, {platform.system()} {platform.release()}"
    yield Finding("fastmmoe", "ok", f"{__version__}, Python {python}, {system}")
    yield from probe_jetson(host)
    yield from probe_software(host, asks_tensorrt=asks_tensorrt)
    yield from probe_system(host)
    if bundle is not None:
        yield from probe_bundle(host, bundle)


def worst(findings: Sequence[Finding]) -> Severity:
    """The worst severity."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")
