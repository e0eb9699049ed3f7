# SPDX-License-Identifier: Apache-2.0
"""What the acceptance writes: a JSON file with a schema, after each section. docs/gpu.md has it as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

SCHEMA = 1
REPORT = "acceptance.json"

Status = Literal["passed", "failed", "error", "timeout", "unavailable"]
Value = str | int | float | bool

EXIT_PASSED, EXIT_FAILED, EXIT_UNAVAILABLE = 0, 1, 3


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """Something that has to hold.

    Attributes:
        name: what was looked at.
        passed: whether it holds.
        found: what was found; a number, or words.
        limit: what was expected, or the greatest number that passes.
    """

    name: str
    passed: bool
    found: Value
    limit: Value


class Measurement(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A number that nothing judges.

    Attributes:
        name: what was measured.
        value: a median where it was repeated.
        unit: "us", "ms", "GB/s", "TFLOP/s", "tokens", ...
        conditions: sizes and formats.
        ceiling_share: of what the same run measured as the most that the machine does; None: there is none.
    """

    name: str
    value: float
    unit: str
    conditions: dict[str, Value] = {}
    ceiling_share: float | None = None


class Section(msgspec.Struct, forbid_unknown_fields=True):
    """One section's results: what it had found when it ended, however it did.

    Attributes:
        status: passed: every check holds and there is one; failed: one does not; error: it raised, or its process
            ended; timeout: its budget was used up; unavailable: the machine lacks what it needs.
        seconds, budget_s: taken, and allowed.
        error: why it did not pass; empty where it did.
        facts: what describes machine and method.
    """

    name: str
    status: Status
    seconds: float
    budget_s: float
    error: str
    checks: list[Check]
    measurements: list[Measurement]
    facts: dict[str, Value]


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """A run.

    Attributes:
        schema: `SCHEMA`.
        run: 1 or 2.
        is_rehearsal: nothing in it is about a GPU.
        started: UTC, ISO 8601.
        planned: names of the run's sections, in order; when the run is over, each has an entry.
    """

    schema: Literal[1]
    run: Literal[1, 2]
    is_rehearsal: bool
    started: str
    planned: list[str]
    sections: list[Section]


class Unavailable(Exception):
    """The machine lacks what a section needs; the message says what."""


class Recorder:
    """What a section has found so far, in a file that is whole at any time: its process may be killed."""

    def __init__(self, path: Path, section: str, budget_s: float) -> None:
        self._path = path
        self.section = Section(section, "timeout", 0.0, budget_s, "", [], [], {})

    def check(self, name: str, passed: bool, found: Value, limit: Value) -> bool:
        """Record whether something holds; returns it."""
        self.section.checks.append(Check(name, bool(passed), found, limit))
        self.write()
        return bool(passed)

    def measure(
        self, name: str, value: float, unit: str, ceiling_share: float | None = None, **conditions: Value
    ) -> float:
        """Record a number; returns it."""
        self.section.measurements.append(Measurement(name, float(value), unit, conditions, ceiling_share))
        self.write()
        return float(value)

    def fact(self, **facts: Value) -> None:
        """Record what describes machine or method."""
        self.section.facts.update(facts)
        self.write()

    def end(self, status: Status | None = None, error: str = "") -> None:
        """Say how it ended; by default by its checks."""
        if status is None:
            status, error = judge(self.section.checks)
        self.section.status, self.section.error = status, error
        self.write()

    def write(self) -> None:
        """Put it all into the file."""
        write_json(self._path, self.section)


def judge(checks: Iterable[Check]) -> tuple[Status, str]:
    """Status and error of a section that came to its end."""
    checks = list(checks)
    if not checks:
        return "failed", "it checked nothing"
    wrong = [check for check in checks if not check.passed]
    if not wrong:
        return "passed", ""
    first = wrong[0]
    more = f", and {len(wrong) - 1} more of {len(checks)}" if len(wrong) > 1 else ""
    return "failed", f"{first.name}: found {first.found}, expected {first.limit}{more}"


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Replace the file at once."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=1)
    scratch = path.with_suffix(".part")
    scratch.write_bytes(data)
    os.replace(scratch, path)  # noqa: PTH105


def read_section(path: Path) -> Section:
    """Raises msgspec.ValidationError where the file is no section."""
    return msgspec.json.decode(path.read_bytes(), type=Section)


def read_report(path: Path) -> Report:
    """A report of the schema; msgspec.ValidationError says what is not."""
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    names = [section.name for section in report.sections]
    if names != report.planned[: len(names)]:
        raise msgspec.ValidationError(f"sections are {names}, expected the first of {report.planned}")
    return report


def exit_code(report: Report) -> int:
    """0: every planned section passed; 3: some were unavailable, the rest passed; else 1."""
    found = [section.status for section in report.sections]
    if len(found) < len(report.planned) or set(found) - {"passed", "unavailable"}:
        return EXIT_FAILED
    return EXIT_UNAVAILABLE if "unavailable" in found else EXIT_PASSED


def summary(report: Report) -> str:
    """A line for each section, for people."""
    lines = []
    for section in report.sections:
        passed = sum(check.passed for check in section.checks)
        lines.append(
            f"{section.name:<12} {section.status:<11} {section.seconds:6.1f} of {section.budget_s:.0f} s  "
            f"{passed}/{len(section.checks)} checks, {len(section.measurements)} measurements"
            + (f"  {section.error}" if section.error else "")
        )
    return "\n".join(lines)
