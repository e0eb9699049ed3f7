# SPDX-License-Identifier: Apache-2.0
"""Probes of a Jetson: which JetPack, power mode, clocks of the GPU. Elsewhere they find nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastmmoe.runtime.doctor.host import Finding, Host, plain, shown
from fastmmoe.runtime.machines.data_sheet import read_board

RELEASE = "etc/nv_tegra_release"
PACKAGES = "var/lib/dpkg/status"
REINSTALL = "sudo apt install --reinstall nvidia-l4t-core"
FLASH = "flash JetPack 6.2 or 7.2: https://developer.nvidia.com/embedded/jetpack"
UPGRADE = "sudo apt update && sudo apt dist-upgrade && sudo apt install nvidia-jetpack"
MOST_POWER = "sudo nvpmodel -m 0"
FIX_CLOCKS = "sudo jetson_clocks"
GPU_CLOCKS = tuple(f"sys/class/devfreq/{name}" for name in ("*.gpu", "*gpu*", "*gpc*", "*gv11b", "*ga10b"))
"""Names that JetPack gave the GPU, the newest first."""


def is_jetson(host: Host) -> bool:
    """Whether the machine says that it is one."""
    return host.is_there(RELEASE) or "jetson" in model_name(host).lower()


def model_name(host: Host) -> str:
    """The board's name; "" where the firmware tells none."""
    return plain(read_board(host.root))


def jetpack_of(release: tuple[int, int, int]) -> str:
    """The JetPack that a release of L4T belongs to, as NVIDIA pairs them; "" where no target is for it."""
    if release >= (39, 0, 0):
        return "7.2"
    return "6.2" if (36, 4, 3) <= release < (37, 0, 0) else ""


def read_release(host: Host) -> tuple[int, int, int] | None:
    """L4T's version from "# R36 (release), REVISION: 4.3, ..."; None where it is not there or not understood."""
    found = re.match(r"# R(\d+) \(release\), REVISION: (\d+)\.(\d+)", host.text(RELEASE) or "")
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def package_version(host: Host, name: str) -> str | None:
    """The version of a Debian package that is installed."""
    pattern = rf"^Package: {re.escape(name)}\nStatus: install ok installed\n(?:[^\n]+\n)*?Version: (\S+)"
    found = re.search(pattern, host.text(PACKAGES) or "", flags=re.MULTILINE)
    return None if found is None else found[1]


def probe_jetson(host: Host) -> Iterator[Finding]:
    """Everything of this file."""
    if not is_jetson(host):
        return
    yield _jetpack(host)
    yield from _power_mode(host)
    yield from _clocks(host)


def _jetpack(host: Host) -> Finding:
    board = model_name(host) or "a Jetson"
    release = read_release(host)
    if release is None:
        text = host.text(RELEASE)
        what = f"/{RELEASE} is missing" if text is None else f"/{RELEASE} says {shown(text)}, which is not understood"
        return Finding("jetpack", "warning", f"{board}; {what}", REINSTALL)
    l4t = "L4T {}.{}.{}".format(*release)
    jetpack = jetpack_of(release)
    installed = package_version(host, "nvidia-jetpack")
    if not jetpack:
        newer = release >= (36, 0, 0)
        return Finding(
            "jetpack",
            "problem",
            f"{board}, {l4t}: bundles are made for JetPack 6.2 (L4T 36.4.3) and 7.2 (L4T 39)",
            UPGRADE if newer else FLASH,
        )
    if installed is None and package_version(host, "libnvinfer10") is None:
        return Finding("jetpack", "warning", f"{board}, {l4t}; JetPack {jetpack}'s packages are not installed", UPGRADE)
    suffix = "@jp6.2" if jetpack == "6.2" else ""
    said = f" ({installed})" if installed else ""
    return Finding("jetpack", "ok", f"{board}, {l4t}, JetPack {jetpack}{said}: targets jetson-...{suffix}")


def _power_mode(host: Host) -> Iterator[Finding]:
    said = host.run(("nvpmodel", "-q"))
    if said is None:
        status = host.text("var/lib/nvpmodel/status")
        found = re.search(r"pmode:(\d+)", status or "")
        if found is None:
            yield Finding("power mode", "warning", "nvpmodel does not say it", "sudo nvpmodel -q")
            return
        name, number = f"mode {int(found[1])}", int(found[1])
    else:
        match = re.search(r"NV Power Mode: (\S+)\s+(\d+)", said)
        if match is None:
            yield Finding("power mode", "warning", f"nvpmodel says {shown(said)}, not understood", "sudo nvpmodel -q")
            return
        name, number = match[1], int(match[2])
    if name.startswith("MAXN") or (said is None and number == 0):
        yield Finding("power mode", "ok", name)
    else:
        yield Finding("power mode", "warning", f"{name}: slower than the board can be", MOST_POWER)


def _clocks(host: Host) -> Iterator[Finding]:
    folders = dict.fromkeys(name for pattern in GPU_CLOCKS for name in host.names(pattern))
    for folder in folders:
        least, most = host.number(f"{folder}/min_freq"), host.number(f"{folder}/max_freq")
        now = host.number(f"{folder}/cur_freq")
        if least is None or most is None or most <= 0:
            yield Finding("gpu clocks", "warning", f"/{folder} does not say them", "sudo jetson_clocks --show")
        elif least < most:
            at = "" if now is None else f", now {now / 1e6:.0f}"
            found = f"{least / 1e6:.0f} to {most / 1e6:.0f} MHz{at}: they follow the load, times will vary"
            yield Finding("gpu clocks", "warning", found, FIX_CLOCKS)
        else:
            yield Finding("gpu clocks", "ok", f"fixed at {most / 1e6:.0f} MHz")
        return
