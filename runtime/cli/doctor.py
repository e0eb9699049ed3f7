# SPDX-License-Identifier: Apache-2.0
"""fastmmoe doctor: what of this machine, and of a bundle on it, is to be mended, and by which line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.cli.output import add_json, print_json

if TYPE_CHECKING:
    from fastmmoe.runtime.doctor.host import Finding

DESCRIPTION = """Look at this machine: JetPack, driver, TensorRT and whether it knows this GPU, plugins, ONNX Runtime,
power mode, clocks, memory, swap, temperature, limits of containers; and whether a bundle fits it. Each finding that can
be mended has the line that does. Exit code 0: no problem, warnings aside; 1: a problem."""
MARKS = {"ok": "[✓]", "warning": "[!]", "problem": "[✗]"}
WIDTH = 80
HAS_PROBLEM = 1


def add_doctor(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    doctor = commands.add_parser("doctor", help="what of this machine is to be mended", description=DESCRIPTION)
    doctor.add_argument("bundle", type=Path, nargs="?", metavar="OUT", help="a bundle's directory (default: none)")
    doctor.add_argument(
        "--quick", action="store_true", help="do not have TensorRT build for this GPU, which takes seconds"
    )
    add_json(doctor)
    doctor.set_defaults(function=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.doctor.examination import examine, worst
    from fastmmoe.runtime.doctor.host import Host

    found = []
    for finding in examine(Host(), arguments.bundle, asks_tensorrt=not arguments.quick):
        found.append(finding)
        if not arguments.json:
            print("\n".join(describe(finding)), flush=True)
    if arguments.json:
        print_json({"worst": worst(found), "findings": [asdict(finding) for finding in found]})
    return HAS_PROBLEM if worst(found) == "problem" else 0


def describe(finding: Finding) -> Iterator[str]:
    """A finding in lines; what mends it is one line, whole, so that it can be copied."""
    start = f"{MARKS[finding.severity]} {finding.name}: "
    yield from textwrap.wrap(f"{start}{finding.found}", WIDTH, subsequent_indent="    ", break_long_words=False)
    if finding.mend:
        yield f"    {finding.mend}"
