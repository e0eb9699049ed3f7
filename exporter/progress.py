# SPDX-License-Identifier: Apache-2.0
"""Lines for the user on how far long work is, with its rate and the time left."""

from __future__ import annotations

import time

from fastmmoe.runtime.cli.output import SECONDS, Lines
from fastmmoe.runtime.types import Say

STEPS_SECONDS = 30.0
"""Between lines on steps that take about the same time each."""


class Progress:
    """How far work on many bytes is, said every few seconds; work that ends sooner says nothing.

    Args:
        what: begins the lines.
        say: gets them.
    """

    def __init__(self, what: str, say: Say) -> None:
        self._what = what
        self._say = say.progress if isinstance(say, Lines) else say
        self._seconds = say.seconds if isinstance(say, Lines) else SECONDS
        self.start(0)

    def start(self, total: int) -> None:
        """Begin; total: bytes in the end."""
        self._total, self._done = total, 0
        self._began = self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that are done."""
        self._done += count
        now = time.monotonic()
        if now - self._said < self._seconds or self._done >= self._total:
            return
        self._said = now
        rate = self._done / (now - self._began)
        left = duration_text((self._total - self._done) / rate)
        of_it = f"{self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
        self._say(f"{self._what}: {of_it}, {rate / 1e6:.0f} MB/s, {left} left")


class Steps:
    """How many steps of a work are done, said now and then with the time that the others take.

    Args:
        what: the line's beginning, with places for the steps that are done and for all.
        total: number of steps.
        say: gets the lines.
    """

    def __init__(self, what: str, total: int, say: Say) -> None:
        self._what, self._total, self._say, self._done = what, total, say, 0
        self._began = self._said = time.monotonic()

    def add(self) -> None:
        """Count a step that is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._said > STEPS_SECONDS:
            self._said, left = now, (now - self._began) / self._done * (self._total - self._done)
            self._say(f"{self._what.format(self._done, self._total)}; about {left:.0f} s left")


def duration_text(seconds: float) -> str:
    """A time for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
