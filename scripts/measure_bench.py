# SPDX-License-Identifier: Apache-2.0
"""What fastmmoe bench adds to the requests that it measures, and how far two of its runs in a row agree.

    python scripts/measure_bench.py BUNDLE [--repeats N] [--threads N] [-n N]

Requests of bench and of a bare loop (process, start, decode) take turns on the same loaded model, with the one in front
that was behind before. The overhead is that of all of a call of bench, everything between requests included. The limits
that are printed hold on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from fastmmoe.runtime.bench.measuring import Bench, draw_picture
from fastmmoe.runtime.bench.result import Result, row_name
from fastmmoe.runtime.bench.session import measure
from fastmmoe.runtime.bench.settings import PROMPT, BenchOptions, retentions_for
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.vlm import VLM

MOST_OVERHEAD, MOST_DIFFERENCE = 0.02, 0.05


def main() -> int:
    """Print two numbers and what they are to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=30, help="pairs of requests (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("-n", type=int, default=5, help="of each of the two runs (default %(default)s)")
    arguments = parser.parse_args()
    return run_command("measure_bench", lambda: report(arguments))


def report(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code is 1 where a limit is exceeded."""
    with VLM(arguments.bundle, threads=arguments.threads) as vlm:
        print(f"load {os.getloadavg()[0]:.2f}")
        overhead = overhead_of(vlm, arguments.repeats)
        print(f"overhead against a bare loop: {overhead:+.2%} (limit {MOST_OVERHEAD:.0%}), {arguments.repeats} pairs")
        options = BenchOptions(retentions_for(vlm.manifest.policy), repetitions=arguments.n)
        runs = [measure(vlm, arguments.bundle, options, threads=arguments.threads)[0] for _ in range(2)]
        most, name = greatest_difference(*runs)
        print(f"greatest difference of two medians: {most:.2%}, {name} (limit {MOST_DIFFERENCE:.0%}), -n {arguments.n}")
    return int(overhead > MOST_OVERHEAD or most > MOST_DIFFERENCE)


def overhead_of(vlm: VLM, repeats: int, options: BenchOptions | None = None) -> float:
    """Share of a request's time that bench adds: the median of pairs, less 1."""
    options = options or BenchOptions(retentions_for(vlm.manifest.policy)[-1:], repetitions=1, warmup=0)
    bench, picture, request = Bench(vlm, options), draw_picture(), options.request(options.retentions[0])
    content = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": content}]

    def bare() -> None:
        for _ in vlm.start([vlm.processor(messages, max_tiles=options.max_tiles)], request).tokens():
            pass

    ways = [bench.run, bare]
    for way in ways:
        way()
    ratios = []
    for repeat in range(repeats):
        times = {}
        for way in ways if repeat % 2 else ways[::-1]:
            start = time.perf_counter()
            way()
            times[way] = time.perf_counter() - start
        ratios.append(times[bench.run] / times[bare])
    return statistics.median(ratios) - 1


def greatest_difference(first: Result, second: Result) -> tuple[float, str]:
    """Between the medians of a row, relative to the smaller, and the row's name."""
    others = {row.key: row for row in second.rows}
    found = []
    for row in first.rows:
        medians = sorted((row.median_ms, others[row.key].median_ms))
        found.append((medians[1] / medians[0] - 1, row_name(row)))
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
