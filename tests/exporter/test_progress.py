# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: every few seconds, one line on a terminal, and nothing of work that ends soon."""

from __future__ import annotations

import io
import sys

import pytest

from fastmmoe.exporter import progress
from fastmmoe.exporter.progress import Progress, duration_text
from fastmmoe.runtime.cli.output import Lines


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def work(clock: Clock, said: Progress, steps: int, seconds: float) -> None:
    said.start(steps * 10**9)
    for _ in range(steps):
        clock.now += seconds
        said.add(10**9)


def test_rate_and_time_left_every_ten_seconds(clock: Clock) -> None:
    lines: list[str] = []
    work(clock, Progress("writing x", lines.append), 12, 4.0)
    assert lines == [
        "writing x: 3.0 of 12.0 GB, 250 MB/s, 36 s left",
        "writing x: 6.0 of 12.0 GB, 250 MB/s, 24 s left",
        "writing x: 9.0 of 12.0 GB, 250 MB/s, 12 s left",
    ]


def test_short_work_says_nothing(clock: Clock) -> None:
    lines: list[str] = []
    work(clock, Progress("writing x", lines.append), 12, 0.5)
    assert lines == []


def test_a_terminal_keeps_one_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    say = Lines()
    say("first")
    work(clock, Progress("x", say), 4, 2.0)
    say("last")
    assert isinstance(sys.stdout, Terminal)
    assert sys.stdout.getvalue() == (
        "first\nx: 1.0 of 4.0 GB, 5\n\x1b[A\x1b[2Kx: 2.0 of 4.0 GB, 5\n\x1b[A\x1b[2Kx: 3.0 of 4.0 GB, 5\nlast\n"
    )


@pytest.mark.parametrize("term", ["dumb", None])
def test_other_places_get_plain_lines(
    clock: Clock, term: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if term:
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        monkeypatch.setenv("TERM", term)
    work(clock, Progress("x", Lines()), 6, 5.0)
    written = terminal.getvalue() if term else capsys.readouterr().out
    assert written == "x: 2.0 of 6.0 GB, 200 MB/s, 20 s left\nx: 4.0 of 6.0 GB, 200 MB/s, 10 s left\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
