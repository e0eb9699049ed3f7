# SPDX-License-Identifier: Apache-2.0
"""The cores that this process may use, and the number of threads that make sense on them."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path

from fastmmoe.runtime.errors import InvalidRequest

MOST_PER_CORE = 4
"""Threads for each core above which a number is taken for a mistake: thousands bring a machine down."""

_QUOTA_FILES = {"cpu.max": None, "cpu.cfs_quota_us": "cpu.cfs_period_us"}


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: those of its affinity, fewer where a quota of its cgroups allows fewer.

    Args:
        root: where proc and sys are.
    """
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for directory in cgroups(root) if (quota := _read_quota(directory)) is not None]
    # A share of a core counts as a whole one.
    return max(1, min([cores, *(int(-(-quota // 1)) for quota in quotas)]))


def check_threads(name: str, count: object, *, least: int = 0) -> int:
    """Return the number, as Python's own.

    Args:
        name: the option's, for messages.
        least: 0 where 0 means one per core, otherwise 1.
    Raises:
        InvalidRequest: no whole number, below the least, or more than MOST_PER_CORE for each usable core.
    """
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise InvalidRequest(f"{name} {count!r}: expected a whole number")
    count, cores = int(count), usable_cores()
    if count < least:
        raise InvalidRequest(f"{name} {count}: expected {least} or more")
    if count > MOST_PER_CORE * cores:
        raise InvalidRequest(
            f"{name} {count}: expected at most {MOST_PER_CORE * cores}, {MOST_PER_CORE} for each of the {cores} cores "
            "that this process may use"
        )
    return count


def cgroups(root: Path, controller: str = "cpu") -> list[Path]:
    """Directories of the cgroups that limit this process, of version 2 and of version 1, the innermost first.

    Args:
        root: where proc and sys are.
        controller: whose limits they hold, of version 1.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found: list[Path] = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        parts = path.strip("/").split("/")
        found += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return found


def _read_quota(directory: Path) -> float | None:
    """Cores that a cgroup may use; None = no limit."""
    for name, period_name in _QUOTA_FILES.items():
        try:
            words = (directory / name).read_text(encoding="ascii").split()
            words += [] if period_name is None else (directory / period_name).read_text(encoding="ascii").split()
            quota, period = float(words[0]), float(words[1])
        # Absent in the other version, "max" or -1 without a limit.
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
