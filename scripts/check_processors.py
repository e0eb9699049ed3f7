# SPDX-License-Identifier: Apache-2.0
"""Run the tests that depend on rounding as other processors would round: one row of a table for each setting.

    python scripts/check_processors.py [--other] [--only TEXT] [--threads 2,1] [--write FILE] [-- PYTEST_ARGUMENT ...]

A setting makes PyTorch, MKL, oneDNN and OpenBLAS take the kernels of another processor; with one thread sums are split
otherwise. Tests are TORCH, which the settings reach, and with --threads and no setting ONNX_RUNTIME, which has no such
variables; or what is given behind --. A setting under which a probe gives the processor's own bits is not run. --other
runs PARITY alone under the first setting that gives other bits. "rounding used" is the greatest share of the tolerance
(docs/precision.md) that a comparison needed. The exit code is 1 if a test fails or none ran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markers import write_part

ROOT = Path(__file__).resolve().parents[1]
OWN = "the processor's own"
SETTINGS = (
    OWN,
    "ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE",
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "MKL_CBWR=COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "OPENBLAS_CORETYPE=Nehalem",
)
PARITY = ("tests/exporter/models/test_parity.py", "tests/exporter/ops/sparse_moe/test_gates.py")
TORCH = (
    "tests/exporter/models",
    "tests/exporter/ops",
    "tests/exporter/pruning/test_sparsevlm.py",
    "tests/plugins/test_native_sparse_moe.py",
    "tests/plugins/test_native_token_prune.py",
    "tests/calibration/test_evaluate.py",
)
ONNX_RUNTIME = tuple(
    f"tests/end_to_end/test_{name}.py" for name in ("golden", "fastmmoe", "equivalence", "methods", "edges")
)
MARKER = "check_processors"
# Results that differ where the kernels of matrix products, of transcendental functions or of reductions do.
PROBE = """
import hashlib, numpy, torch
torch.manual_seed(0)
x, w = torch.randn(257, 300), torch.randn(300, 310)
y = torch.nn.functional.rms_norm(x @ w, (310,)).softmax(1).sin()
z = torch.einsum("ij,ij->i", y, y)
print(hashlib.sha256(y.numpy().tobytes() + z.numpy().tobytes() + (x.numpy() @ w.numpy()).tobytes()).hexdigest())
"""


@dataclass(frozen=True)
class Row:
    """Outcome of one run of the tests."""

    setting: str
    threads: int
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    rounding_used: dict[str, float] = field(default_factory=dict)
    is_own: bool = False


def environment_of(setting: str, threads: int) -> dict[str, str]:
    """This process's environment without any of the settings, plus this one's."""
    names = {part.partition("=")[0] for other in SETTINGS[1:] for part in other.split()}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if setting != OWN:
        environment |= dict(part.split("=", 1) for part in setting.split())
    return environment | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def limit_threads(threads: int) -> None:
    """Leave this process so many processors: ONNX Runtime starts a thread for each."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@cache
def probe(setting: str) -> str:
    """A digest of what this setting's kernels compute."""
    command = [sys.executable, "-c", PROBE]
    return subprocess.run(command, env=environment_of(setting, 1), capture_output=True, text=True, check=True).stdout


def other_setting() -> str:
    """The first setting under which the results are not, bit for bit, those of the processor's own kernels."""
    own = probe(OWN)
    for setting in SETTINGS[1:]:
        if probe(setting) != own:
            return setting
    raise SystemExit("check_processors.py: no setting changes a result of this processor, so none can be checked")


def run(setting: str, threads: int, tests: list[str]) -> Row:
    """Run the tests, their output passed through."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        start = time.monotonic()
        subprocess.run(
            [*command, *tests],
            cwd=ROOT,
            env=environment_of(setting, threads),
            check=False,
            preexec_fn=lambda: limit_threads(threads),
        )
        seconds = time.monotonic() - start
        if not report.is_file():
            return Row(setting, threads, failed=1, seconds=seconds)
        return read_report(report, setting, threads, seconds)


def read_report(report: Path, setting: str, threads: int, seconds: float) -> Row:
    """Counts and the used shares of the tolerance from pytest's JUnit file."""
    tree = ElementTree.parse(report)
    (suite,) = tree.iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    used: dict[str, float] = {}
    for entry in tree.iter("property"):
        name = entry.attrib["name"].removeprefix("rounding of ")
        if name != entry.attrib["name"]:
            used[name] = max(used.get(name, 0), float(entry.attrib["value"]))
    passed = counts["tests"] - failed - counts["skipped"]
    return Row(setting, threads, passed, failed, counts["skipped"], seconds, used)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| setting | threads | passed | failed | skipped | s | rounding used |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        if row.is_own:
            lines.append(f"| {row.setting} | {row.threads} | the processor's own bits | | | | |")
            continue
        used = max(((share, name) for name, share in row.rounding_used.items()), default=None)
        words = f"{used[0]:.2f} ({used[1].replace('_', ' ')})" if used else ""
        cells = (row.setting, row.threads, row.passed, row.failed, row.skipped, f"{row.seconds:.0f}", words)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", action="store_true", help="PARITY alone under the first setting that differs")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings that hold TEXT")
    parser.add_argument("--threads", default="2,1", help="numbers of threads, for example 2,1")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into FILE")
    parser.add_argument("tests", nargs="*", help="tests and other arguments for pytest")
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.threads.split(",")]
    runs: list[tuple[str, int, list[str]]]
    if arguments.other:
        runs = [(other_setting(), counts[0], arguments.tests or list(PARITY))]
    else:
        chosen = [setting for setting in SETTINGS if arguments.only in setting]
        runs = [(setting, n, arguments.tests or list(TORCH)) for setting in chosen for n in counts]
        if OWN in chosen and not arguments.tests:
            runs = [(s, n, [*tests, *ONNX_RUNTIME] if s == OWN else tests) for s, n, tests in runs]
    rows = []
    for setting, threads, tests in runs:
        if setting != OWN and probe(setting) == probe(OWN):
            rows.append(Row(setting, threads, is_own=True))
            continue
        print(f"{setting}, {threads} threads", flush=True)
        rows.append(run(setting, threads, tests))
    print(table(rows), flush=True)
    if arguments.write:
        write_part(arguments.write, MARKER, table(rows))
    return int(any(row.failed or not (row.passed or row.is_own) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
