# SPDX-License-Identifier: Apache-2.0
"""What probes see of a machine: files under a root, and the output of commands; neither ever raises."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["ok", "warning", "problem"]
SEVERITIES: tuple[Severity, ...] = ("ok", "warning", "problem")
"""The mildest first."""
MOST_BYTES = 1 << 25
COMMAND_SECONDS = 10.0
SHOWN = 60


@dataclass(frozen=True)
class Finding:
    """One thing about the machine.

    Attributes:
        name: of the probe.
        found: in words, one line.
        mend: the one line that mends it; "" where there is nothing to mend.
    """

    name: str
    severity: Severity
    found: str
    mend: str = ""


def run_quietly(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is not there, fails, or takes long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        root: where proc, sys, etc and var are.
        run: what a command prints, None where there is none.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str | None] = run_quietly

    def text(self, name: str) -> str | None:
        """A file's text without the blanks around it; None where it is not there or cannot be read."""
        path = self.root / name
        try:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                return file.read(MOST_BYTES).decode(errors="replace").strip("\0 \t\r\n")
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """A file's whole number; None where it has none."""
        try:
            return int(self.text(name) or "")
        except ValueError:
            return None

    def names(self, pattern: str) -> list[str]:
        """Paths that match a pattern, relative to the root."""
        try:
            return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))
        except OSError:
            return []

    def is_there(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            return (self.root / name).exists()
        except OSError:
            return False


def plain(text: str) -> str:
    """Text of a file as part of a line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def shown(text: str) -> str:
    """The same in quotes, where it is not what was expected."""
    return repr(plain(text))
