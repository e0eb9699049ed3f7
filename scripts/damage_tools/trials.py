# SPDX-License-Identifier: Apache-2.0
"""Runs a function in a forked process, with its output caught, its time and memory measured, and an end to both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

KILL_SECONDS = 60.0
POLL_SECONDS = 0.005
KILOBYTE = 1024


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code or None, the signal that ended it or None, what it wrote, what it took.

    `megabytes` is the most memory that was its own at once, mapped files not counted where the kernel tells them apart.
    """

    code: int | None
    signal: int | None
    out: str
    err: str
    seconds: float
    megabytes: float


def run_forked(function: Callable[[], int], scratch: Path, *, seconds: float = KILL_SECONDS) -> Outcome:
    """Run `function` in a child of this process, which has imported what it needs.

    Args:
        function: its result is the exit code.
        scratch: an empty folder for what it writes to the terminal.
        seconds: after which it is killed.
    """
    out, err, status = scratch / "out", scratch / "err", scratch / "status"
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _child(function, out, err, status)
    done, wait_status = 0, 0
    while not done:
        done, wait_status = os.waitpid(pid, os.WNOHANG)
        if not done and time.perf_counter() - start > seconds:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0 if done else POLL_SECONDS)
    took = time.perf_counter() - start
    return Outcome(
        os.WEXITSTATUS(wait_status) if os.WIFEXITED(wait_status) else None,
        os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else None,
        _text(out),
        _text(err),
        took,
        float(status.read_text()) if status.is_file() else 0.0,
    )


def run_program(program: list[str], scratch: Path, seconds: float) -> Outcome:
    """Run a program of its own, whose memory is not measured: after torch has started threads a fork of it may hang."""
    start = time.perf_counter()
    try:
        done = subprocess.run(program, cwd=scratch, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Outcome(None, signal.SIGKILL, "", "", time.perf_counter() - start, 0.0)
    code, ended_by = (done.returncode, None) if done.returncode >= 0 else (None, -done.returncode)
    return Outcome(code, ended_by, done.stdout, done.stderr, time.perf_counter() - start, 0.0)


def _child(function: Callable[[], int], out: Path, err: Path, status: Path) -> NoReturn:
    code = 1
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    before = own_megabytes()
    try:
        code = function()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    # Whatever it is, a process of its own would print it like this and end.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    status.write_text(str(_peak_megabytes(before)))
    os._exit(code)


def own_megabytes() -> float:
    """Memory that this process holds and no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * KILOBYTE / 1e6
    return 0.0


def _peak_megabytes(before: float) -> float:
    """Greatest resident size, less what was resident of files at the end: at least what was the process's own."""
    values = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmHWM", "RssFile", "RssShmem"):
            values[name] = int(rest.split()[0]) * KILOBYTE / 1e6
    return max(before, values["VmHWM"] - values["RssFile"] - values["RssShmem"])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.is_file() else ""
