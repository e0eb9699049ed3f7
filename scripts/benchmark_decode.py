# SPDX-License-Identifier: Apache-2.0
"""Time a decode step by how many tokens are cached, on the machine as it is.

    python scripts/benchmark_decode.py BUNDLE... [--depths 64 1024 4096] [--repeats N] [--portable]

Every repeat runs one step of each bundle at each depth, in a random order, so that drift hits all alike. A ratio
compares a time with that of the bundle's first depth in the same repeat. Rows are random; what they hold changes
the time little.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from benchmark_tools.machine import processor
from markers import table

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.schedule import Schedule, plan_request

CHUNK = 512
"""Rows of a prefill call: the cache is filled by several."""


class Decoding:
    """One sequence, filled up to a depth; `step` appends one row and tells the milliseconds."""

    def __init__(self, backend: OnnxRuntime, depth: int, steps: int) -> None:
        info, self._policy = backend.info, backend.policy
        plan = plan_request(self._policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k, method="none")
        self._plan: Schedule = plan
        self._random, self._width = np.random.default_rng(depth), info.hidden_size
        self._batch = Batch(backend)
        for first in range(0, depth, CHUNK):
            self._extend(min(CHUNK, depth - first), new_tokens=depth + steps)

    def step(self) -> float:
        """Append one row."""
        start = time.perf_counter()
        self._extend(1)
        return (time.perf_counter() - start) * 1e3

    def _extend(self, rows: int, new_tokens: int = 0) -> None:
        embeds = self._random.standard_normal((rows, self._width), np.float32)
        chunk = Chunk(0, embeds, NO_VISUAL_TOKENS, self._plan)
        self._batch.extend([chunk], alpha=self._policy.alpha, new_tokens=[new_tokens] if new_tokens else ())


def measure(bundles: Sequence[Path], depths: Sequence[int], repeats: int, *, portable: bool) -> int:
    """Measure and print one Markdown table; the exit code is 0."""
    sequences: dict[tuple[Path, int], Decoding] = {}
    for bundle in bundles:
        backend = OnnxRuntime(bundle, read_manifest(bundle), Settings(portable=portable), graphs=("language_model",))
        sequences |= {(bundle, depth): Decoding(backend, depth, repeats + 1) for depth in depths}
    times: dict[tuple[Path, int], list[float]] = {key: [] for key in sequences}
    shuffled = random.Random(0)
    for repeat in range(repeats + 1):
        for key in shuffled.sample(list(sequences), len(sequences)):
            elapsed = sequences[key].step()
            if repeat:  # the first warms up
                times[key].append(elapsed)
    print(
        f"{processor()}, {usable_cores()} threads, ONNX Runtime {onnxruntime.__version__}, "
        f"{'portable' if portable else 'native'}; {repeats} repeats; medians\n"
    )
    rows = []
    for (bundle, depth), of_key in times.items():
        ratio = statistics.median(a / b for a, b in zip(of_key, times[bundle, depths[0]], strict=True))
        rows.append((bundle.name, str(depth), f"{statistics.median(of_key):.1f} ms", f"{ratio:.2f}"))
    print(table(("bundle", "cached tokens", "decode step", "ratio"), rows))
    return 0


def main() -> int:
    """Exit code 0; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 1024, 4096], metavar="N")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--portable", action="store_true", help="without the native library")
    arguments = parser.parse_args()
    return run_command(
        "benchmark_decode",
        lambda: measure(arguments.bundles, arguments.depths, arguments.repeats, portable=arguments.portable),
    )


if __name__ == "__main__":
    sys.exit(main())
