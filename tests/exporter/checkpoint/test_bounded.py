# SPDX-License-Identifier: Apache-2.0
"""A program in a process of its own: its result, its bounds, and how its end is told."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint import bounded
from fastmmoe.exporter.checkpoint.bounded import CPU_SECONDS, MORE_BYTES, run_bounded
from fastmmoe.runtime.errors import InvalidRequest


def test_the_result_comes_back_whole() -> None:
    """More than a pipe holds at once."""
    assert run_bounded(lambda: b"", "it") == b""
    assert run_bounded(lambda: b"x" * 1_000_000, "it") == b"x" * 1_000_000


def test_it_is_another_process_with_bounds_of_its_own() -> None:
    def report() -> bytes:
        mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
        space = resource.getrlimit(resource.RLIMIT_AS)
        room = space[0] - mapped
        cpu = resource.getrlimit(resource.RLIMIT_CPU)
        return repr((os.getpid(), cpu, space[0] == space[1], room)).encode()

    before = resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_AS)
    pid, cpu, is_hard, room = eval(run_bounded(report, "it"))
    assert pid != os.getpid()
    assert cpu == (CPU_SECONDS, CPU_SECONDS + 1) and is_hard
    assert abs(room - MORE_BYTES) < 1 << 24
    assert (resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_AS)) == before


def test_memory_beyond_its_bound_is_refused_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MORE_BYTES", 1 << 26)

    def fill() -> bytes:
        # More than what a process may have mapped and not in use, of which it would be given some.
        try:
            bytes(1 << 32)
        except MemoryError:
            return b"refused"
        return b"given"

    assert run_bounded(fill, "it") == b"refused"


def die_of(number: int) -> Callable[[], bytes]:
    def die() -> bytes:
        os.kill(os.getpid(), number)
        time.sleep(9)
        return b"alive"

    return die


@pytest.mark.parametrize("number", [signal.SIGXCPU, signal.SIGKILL])
def test_too_much_time_is_told(number: int) -> None:
    """Of these two the system sends the first at the bound, and the second where it is not heeded."""
    with pytest.raises(InvalidRequest) as raised:
        run_bounded(die_of(number), "the checkpoint's chat template")
    assert str(raised.value) == f"the checkpoint's chat template takes more than {CPU_SECONDS} s"


def test_another_end_is_told_with_its_status() -> None:
    with pytest.raises(InvalidRequest, match=rf"^it ends its process \(status {int(signal.SIGUSR1)}\)$"):
        run_bounded(die_of(signal.SIGUSR1), "it")

    def fail() -> bytes:
        raise ValueError("not caught")

    with pytest.raises(InvalidRequest, match=r"^it ends its process \(status 256\)$"):
        run_bounded(fail, "it")
    with pytest.raises(InvalidRequest, match=r"^it ends its process \(status 768\)$"):
        run_bounded(lambda: os._exit(3), "it")


def test_an_interrupt_ends_the_process_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is left behind, nor waited for: it would come to its end, status 0."""
    children: list[int] = []
    statuses: list[int] = []
    fork, wait = os.fork, os.waitpid

    def remember() -> int:
        children.append(fork())
        return children[-1]

    def waited(child: int, options: int) -> tuple[int, int]:
        found = wait(child, options)
        statuses.append(found[1])
        return found

    parent, fdopen = os.getpid(), os.fdopen

    def interrupt(descriptor: int, mode: str) -> Any:
        if os.getpid() == parent:
            raise KeyboardInterrupt
        return fdopen(descriptor, mode)

    monkeypatch.setattr(os, "fork", remember)
    monkeypatch.setattr(os, "waitpid", waited)
    monkeypatch.setattr(os, "fdopen", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_bounded(die_of(0), "it")
    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL]
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_signals_that_this_process_takes_end_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(InvalidRequest, match=rf"\(status {int(signal.SIGTERM)}\)$"):
            run_bounded(die_of(signal.SIGTERM), "it")
    finally:
        signal.signal(signal.SIGTERM, before)
