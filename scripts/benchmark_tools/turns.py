# SPDX-License-Identifier: Apache-2.0
"""Subjects of a benchmark, each in a process of its own, timed by turns while the machine has nothing else to do."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

Run = Callable[[int, int], None]
"""Size of the work, and the number of the call."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_LOOK = 0.1
"""Seconds between two looks at what the machine does."""
_OTHERS = 0.06
"""Share of the processors' time that others may take of a sample that counts."""
TRIES = 3


@dataclass
class Samples:
    """Seconds of calls; clean: those beside which nothing else ran, every: all, used: of all processors, by turn."""

    clean: list[float] = field(default_factory=list)
    every: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)

    @property
    def best(self) -> list[float]:
        """The clean ones, where there are some."""
        return self.clean or self.every


class Timed(Protocol):
    """Something in a process of its own."""

    def times(self, size: int, count: int) -> tuple[list[float], float]:
        """Seconds of so many calls, and the processor time that they took."""


class Subject:
    """A process that makes a subject and runs it when it is asked.

    Args:
        make: is called there, and gives what is timed; it and its arguments can be pickled.
    """

    def __init__(self, make: Callable[..., Run], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        # Else its end would not be seen.
        theirs.close()
        self.calls = 0
        try:
            self.error = str(self._pipe.recv())
        except EOFError:
            self.error = "its process ended"
        """Why it cannot run; "" = it can."""

    def times(self, size: int, count: int) -> tuple[list[float], float]:
        """Seconds of so many calls, and the processor time that they took."""
        self._pipe.send((size, self.calls, count))
        self.calls += count
        found: tuple[list[float], float] = self._pipe.recv()
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive() and not self.error:
            self._pipe.send(None)
        self._process.join(10)


def _serve(pipe: Connection, make: Callable[..., Run], arguments: tuple[Any, ...]) -> None:
    try:
        run = make(*arguments)
    except Exception as error:  # noqa: BLE001  (what other packages raise is told, whatever it is)
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    pipe.send("")
    while (request := pipe.recv()) is not None:
        size, first, count = request
        used, times = time.process_time(), []
        for call in range(first, first + count):
            start = time.perf_counter()
            run(size, call)
            times.append(time.perf_counter() - start)
        pipe.send((times, time.process_time() - used))


def by_turns(subjects: Mapping[str, Timed], size: int, count: int, rounds: int, patience: float) -> dict[str, Samples]:
    """Samples of every subject: each round in another order, after one that does not count.

    Args:
        count: calls of a turn.
        patience: seconds that a turn waits for an idle machine before it goes on.
    """
    found = {name: Samples() for name in subjects}
    names = list(subjects)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            for _ in range(TRIES if i else 1):
                wait_until_idle(patience)
                before, start = busy_seconds(), time.perf_counter()
                times, used = subjects[name].times(size, count)
                passed = time.perf_counter() - start
                others = busy_seconds() - before - used
                if i == 0:
                    break
                found[name].every += times
                found[name].used.append(used / count)
                if others <= max(2 * _TICK, _OTHERS * passed * (os.cpu_count() or 1)):
                    found[name].clean += times
                    break
    return found


def busy_seconds() -> float:
    """What all processors have worked since the machine started."""
    fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    del steal  # of the machine below, which this one does not see
    return (user + nice + system + irq + softirq) * _TICK


def wait_until_idle(patience: float) -> bool:
    """Whether nothing ran for a moment, within so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(_LOOK)
        if busy_seconds() - before <= _TICK:
            return True
    return False
