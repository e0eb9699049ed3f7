# SPDX-License-Identifier: Apache-2.0
"""Cores that a process may use, by affinity and by quota, and thread counts that are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines import threads
from fastmmoe.runtime.machines.threads import check_threads, usable_cores


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root directory with these cgroups."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 2),
        ("0::/a\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 16),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "0 0\n"}, 16),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "\n"}, 16),
        (
            "4:memory:/x\n1:cpu,cpuacct:/x\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            "1:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            16,
        ),
    ],
)
def test_cores(cgroup: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_cores(machine(tmp_path, cgroup, files)) == cores


def test_cores_where_proc_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cores(tmp_path) == 2


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (9999, "--threads 9999: expected at most 8, 4 for each of the 2 cores"),
        (9, "--threads 9: expected at most 8"),
        (-1, "--threads -1: expected 0 or more"),
        (2.0, "--threads 2.0: expected a whole number"),
        (True, "--threads True: expected a whole number"),
        ("2", "--threads '2': expected a whole number"),
    ],
)
def test_counts_that_are_refused(count: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    with pytest.raises(InvalidRequest, match=message):
        check_threads("--threads", count)


def test_counts_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    assert [check_threads("--threads", count) for count in (0, 1, 8)] == [0, 1, 8]
    assert type(check_threads("threads", np.int64(2))) is int
    with pytest.raises(InvalidRequest, match="--jobs 0: expected 1 or more"):
        check_threads("--jobs", 0, least=1)
