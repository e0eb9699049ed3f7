# SPDX-License-Identifier: Apache-2.0
"""Made machines for fastmmoe doctor: files under a root, and what their commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastmmoe.runtime.doctor.host import Host

Files = Mapping[str, str]

MEMINFO = "MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {free} kB\nSwapTotal: {swap} kB\nSwapFree: {swap} kB\n"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ZRAM = "/dev/zram0                              partition\t1000\t0\t5\n"
DISK = "/swapfile                               file\t\t8000\t0\t-2\n"


def memory(total_gb: float, free_gb: float, swap_gb: float) -> str:
    """/proc/meminfo."""
    total, free, swap = (int(gb * 1e9 / 1024) for gb in (total_gb, free_gb, swap_gb))
    return MEMINFO.format(total=total, free=free, swap=swap)


def processors(count: int) -> str:
    """/proc/cpuinfo of so many."""
    return "".join(f"processor\t: {i}\nmodel name\t: made\n\n" for i in range(count))


def package(name: str, version: str) -> str:
    """A paragraph of dpkg's list."""
    return f"Package: {name}\nStatus: install ok installed\nPriority: optional\nVersion: {version}\nDescription: x\n\n"


def _jetson(board: str, release: str, packages: str) -> dict[str, str]:
    gpu = "sys/class/devfreq/17000000.gpu"
    zone = "sys/class/thermal/thermal_zone0"
    return {
        "proc/device-tree/model": f"{board}\0",
        "etc/nv_tegra_release": release,
        "var/lib/dpkg/status": packages,
        "proc/meminfo": memory(16.0, 12.0, 8.0),
        "proc/swaps": SWAPS + ZRAM,
        "proc/cpuinfo": processors(2),
        "proc/self/cgroup": "0::/\n",
        f"{gpu}/min_freq": "306000000\n",
        f"{gpu}/max_freq": "918000000\n",
        f"{gpu}/cur_freq": "306000000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        f"{zone}/type": "gpu-thermal\n",
        f"{zone}/temp": "51500\n",
        f"{zone}/trip_point_0_type": "passive\n",
        f"{zone}/trip_point_0_temp": "99000\n",
    }


ORIN_JETPACK_6 = _jetson(
    "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n",
    package("nvidia-l4t-core", "36.4.3-20250107174145")
    + package("nvidia-jetpack", "6.2+b77")
    + package("libnvinfer10", "10.3.0.30-1+cuda12.5"),
)
ORIN_JETPACK_7 = _jetson(
    "NVIDIA Jetson AGX Orin Developer Kit",
    "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Mon Jun  8 01:49:37 UTC 2026\n",
    package("nvidia-jetpack", "7.2+b1") + package("libnvinfer10", "10.16.2.10-1+cuda13.2"),
)
LAPTOP: dict[str, str] = {
    "proc/meminfo": memory(16.6, 9.1, 4.0),
    "proc/swaps": SWAPS + DISK,
    "proc/cpuinfo": processors(2),
    "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n",
    "dev/nvidia0": "",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "64000\n",
}
CONTAINER: dict[str, str] = {
    ".dockerenv": "",
    "proc/meminfo": memory(64.0, 50.0, 0.0),
    "proc/swaps": SWAPS,
    "proc/cpuinfo": processors(8),
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.max": "100000 100000\n",
    "sys/fs/cgroup/memory.max": "4000000000\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26\n",
}
NVPMODEL_15W = "NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n"
NVPMODEL_MAXN = "NV Power Mode: MAXN_SUPER\n0\n"


def machine(root: Path, files: Files, commands: Mapping[str, str] | None = None) -> Host:
    """The machine that has these files and commands, by their first word."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")

    def run(command: Sequence[str]) -> str | None:
        return (commands or {}).get(command[0])

    return Host(root, run)
