# SPDX-License-Identifier: Apache-2.0
"""Times of requests to bundles, beside a bundle of another commit and its runtime, by turns.

    git worktree add TREE COMMIT && make -C TREE setup native
    TREE/.venv/bin/fastmmoe-export CHECKPOINT BEFORE
    python scripts/benchmark_before.py BUNDLE BUNDLE --baseline TREE/.venv/bin/python BEFORE

Every bundle is loaded by a process of its own and is asked about a drawn picture of 640 x 480, each time after a wait
for an idle machine. Medians, and of each bundle how many times sooner than the baseline it is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark_attention import instruction_set
from benchmark_tools.errors import BenchmarkError
from benchmark_tools.machine import processor
from benchmark_tools.programs import Program
from benchmark_tools.turns import wait_until_idle
from markers import table, write_part
from PIL import Image

from fastmmoe.runtime.bench.measuring import draw_picture
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.machines.threads import usable_cores

TIMES = ("vision", "prefill", "first token", "decode")
ANONYMOUS = "anonymous"
MARKER = "benchmark_before"
Samples = dict[tuple[str, float], list[dict[str, float]]]


def measure(
    programs: Mapping[str, Program], retentions: Sequence[float], repeats: int, new_tokens: int, patience: float
) -> Samples:
    """Answers of each program by retention: each round in another order, after one that does not count."""
    found: Samples = defaultdict(list)
    names = list(programs)
    for i in range(repeats + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            for retention in retentions if i else retentions[:1]:
                wait_until_idle(patience)
                answer = programs[name].ask(retention, new_tokens)
                if i:
                    found[name, retention].append(answer)
    return found


def rows(found: Samples, baseline: str) -> list[tuple[str, ...]]:
    """Cells of the table: milliseconds, GB, and how many times sooner the first token and a step are."""
    medians = {
        key: {part: statistics.median(answer[part] for answer in answers) for part in (*TIMES, ANONYMOUS)}
        for key, answers in found.items()
    }
    lines = []
    for (name, retention), median in medians.items():
        times = [f"{median[part]:,.0f}" for part in TIMES[:-1]] + [f"{median[TIMES[-1]]:,.1f}"]
        sooner = [
            f"{medians[baseline, retention][part] / median[part]:.1f}" if baseline and name != baseline else ""
            for part in TIMES[2:]
        ]
        lines.append((name, f"{retention:g}", *times, f"{median[ANONYMOUS] / 1e9:.2f}", *sooner))
    return lines


def run(a: argparse.Namespace) -> int:
    """Print a Markdown table."""
    threads = a.threads or usable_cores()
    bundles: list[tuple[str, Path]] = [(sys.executable, bundle) for bundle in a.bundles]
    if a.baseline:
        bundles.append((a.baseline[0], Path(a.baseline[1])))
    names = [bundle.name for _, bundle in bundles]
    if len(set(names)) < len(names):
        raise BenchmarkError(f"bundles named {', '.join(names)}: expected names that differ")
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "picture.png"
        Image.fromarray(draw_picture()).save(picture)
        given = (str(picture), str(threads))
        programs = {
            bundle.name: Program(python, "request_worker.py", str(bundle), *given) for python, bundle in bundles
        }
        found = measure(programs, a.retention, a.repeats, a.new_tokens, a.patience)
        for program in programs.values():
            program.close()
    head = ("bundle", "retention", *(f"{part} ms" for part in TIMES), "anonymous GB")
    cells = rows(found, names[-1] if a.baseline else "")
    part = "\n\n".join(
        (
            f"{processor()} ({instruction_set()}), {threads} threads, load {os.getloadavg()[0]:.1f}; medians of "
            f"{a.repeats}, {a.new_tokens} new tokens.",
            table((*head, "first token sooner", "decode sooner"), cells, numbers_from=1),
        )
    )
    print(part)
    if a.write:
        write_part(a.write, MARKER, part)
    return 0


def main() -> int:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="of this one; names differ")
    parser.add_argument("--baseline", nargs=2, metavar=("PYTHON", "BUNDLE"), help="of another commit")
    parser.add_argument("-r", "--retention", type=float, nargs="+", default=[1.0, 0.5, 0.25], metavar="R")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    parser.add_argument("--patience", type=float, default=10.0, metavar="S", help="waiting for an idle machine")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into a document")
    a = parser.parse_args()
    return run_command("benchmark_before.py", lambda: run(a))


if __name__ == "__main__":
    sys.exit(main())
