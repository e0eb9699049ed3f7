# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer's four tools over the smallest cases of every kernel."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from gpu_acceptance_tools.report import Recorder
from gpu_acceptance_tools.work import MODULES, Work, call, tail

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")
LONGEST = 300


def run(work: Work, record: Recorder) -> None:
    """A check for each tool: it counts no error, and the program came to its end."""
    sanitizer, device = work.tool("compute-sanitizer"), work.device.type
    program = [sys.executable, "-m", "gpu_acceptance_tools.correctness", str(work.library), device]
    # Without PyTorch's cache each block of memory is an allocation of its own, whose ends the tools know.
    environment = {"PYTHONPATH": MODULES, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def ask(tool: str) -> subprocess.CompletedProcess[str]:
        return call([*sanitizer, "--tool", tool, "--", *program], environment=environment)

    with ThreadPoolExecutor(work.pick(len(TOOLS), 1)) as pool:
        for tool, done in zip(TOOLS, pool.map(ask, TOOLS), strict=True):
            record.check(tool, *judge(done), "0 errors")


def judge(done: subprocess.CompletedProcess[str]) -> tuple[bool, str]:
    """Whether the tool found nothing in a program that came to its end, and what it says."""
    said = done.stdout + done.stderr
    counts = [int(count) for count in SUMMARY.findall(said)]
    if done.returncode != 0 or "done" not in done.stdout.splitlines() or not counts:
        return False, f"exit code {done.returncode}: {tail(said)}"[:LONGEST]
    if not sum(counts):
        return True, "0 errors"
    first = tail("\n".join([line for line in said.splitlines() if line.startswith("=====")][:8]), 8)
    return False, f"{sum(counts)} errors: {first}"[:LONGEST]
