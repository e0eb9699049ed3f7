# SPDX-License-Identifier: Apache-2.0
"""The sections: in which run each is, and how long it may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Planned:
    """A section.

    Attributes:
        name: its module in this package, whose function `run` (work, recorder) it is.
        runs: 1, 2 or both.
        budget_s: seconds, of its process with all imports.
        rehearsal_s: the same in a rehearsal, on a machine with two shared cores.
    """

    name: str
    runs: tuple[int, ...]
    budget_s: float
    rehearsal_s: float

    def function(self) -> Callable[..., Any]:
        """What does it."""
        module = importlib.import_module(f"gpu_acceptance_tools.{self.name}")
        return module.run  # type: ignore[no-any-return]

    def budget(self, *, is_rehearsal: bool) -> float:
        """Seconds that it may take."""
        return self.rehearsal_s if is_rehearsal else self.budget_s


# 13 minutes in two runs, of which starting a machine and copying take about 2.
SECTIONS = (
    Planned("environment", (1, 2), 20, 120),
    Planned("build", (1, 2), 60, 600),
    Planned("correctness", (1,), 90, 600),
    Planned("sanitizer", (1,), 60, 600),
    Planned("times", (1,), 110, 600),
    Planned("profile", (1,), 40, 600),
    Planned("device_loop", (2,), 30, 600),
    Planned("peers", (2,), 90, 600),
    Planned("whole_model", (2,), 120, 900),
)
RUN_S = {1: 360, 2: 300}
"""Seconds that a run may take in all: the sections' budgets together are more, and not all will be used up."""


def of_run(run: int) -> list[Planned]:
    """The sections of a run, in order."""
    return [section for section in SECTIONS if run in section.runs]


def named(name: str) -> Planned:
    """KeyError where there is no such section."""
    return {section.name: section for section in SECTIONS}[name]
