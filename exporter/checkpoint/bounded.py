# SPDX-License-Identifier: Apache-2.0
"""Runs a program that a checkpoint brings, its chat template, in a process of its own: little time, little memory."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from fastmmoe.runtime.cli.command import SIGNALS
from fastmmoe.runtime.errors import InvalidRequest

CPU_SECONDS = 2
MORE_BYTES = 1 << 28
"""Bytes of address space, beside what this process has: a program that keeps to it gets MemoryError beyond."""


def run_bounded(function: Callable[[], bytes], what: str) -> bytes:
    """The result of `function`, which runs in a forked process.

    Args:
        function: pure Python; catches what may go wrong in it.
        what: names it in the error.
    Raises:
        InvalidRequest: it takes too much time, or more memory than it can be refused.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(function, writer)
    try:
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            result = file.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        raise InvalidRequest(f"{what} takes more than {CPU_SECONDS} s")
    if status != 0:
        raise InvalidRequest(f"{what} ends its process (status {status})")
    return result


def _run(function: Callable[[], bytes], writer: int) -> NoReturn:
    code = 1
    try:
        for number in (*SIGNALS, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        with suppress(OSError):  # a system that does not tell what is mapped
            mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE_BYTES,) * 2)
        with os.fdopen(writer, "wb") as file:
            file.write(function())
        code = 0
    finally:
        os._exit(code)
