# SPDX-License-Identifier: Apache-2.0
"""Time the writing of a bundle's weights beside cp of the same bytes, and watch the memory that it takes.

    python scripts/benchmark_writing.py CHECKPOINT [--dtype bf16] [--graph language_model] [--runs 5] [--at DIR]

The graph is traced once. In each run the weights are written to a new file and the result is copied by cp to another
one, in an order that alternates; each file is brought to the disk (fsync) and removed before the next is written. The
checkpoint was read once before, so that both read from memory. "cpu" is the processor's time, which other work on the
machine moves less. Memory is anonymous memory of the process over what it was before the first writing, looked at every
2 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import onnx_ir as ir
import torch
from benchmark_tools.machine import processor
from markers import table

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.graph.inputs import graph_inputs, graph_program
from fastmmoe.exporter.graph.save import save_graph
from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.progress import Progress
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.targets import DTYPES, opset
from fastmmoe.exporter.weight_stream import WeightStream
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.files import sync
from fastmmoe.runtime.machines.targets import TARGETS

_LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class Times:
    """Seconds until the call returned, until the bytes were on the disk, and of the processor."""

    returned: float
    synced: float
    processor: float


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status: no RssAnon, which Linux has")


@contextmanager
def watched(base: int, most: list[int]) -> Iterator[None]:
    """Append the most anonymous memory of what is done inside, over `base`."""
    ended, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_LOOK_SECONDS):
            peak = max(peak, anonymous_bytes() - base)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        most.append(peak)


def timed(work: Callable[[], object], file: Path) -> Times:
    """Time the writing of a file, by this process or one that it waits for."""
    start, used = time.perf_counter(), sum(os.times()[:4])
    work()
    returned, used = time.perf_counter() - start, sum(os.times()[:4]) - used
    sync(file)
    return Times(returned, time.perf_counter() - start, used)


def traced(checkpoint: Path, dtype: str, graph: str) -> tuple[ir.Model, WeightStream]:
    """A graph of a checkpoint for the target cpu, and what writes its weights."""
    precision = Precision(getattr(torch, DTYPES[dtype]), torch.float32)
    model = Model(Checkpoint(checkpoint), PolicyOptions(method="none"), precision)

    def load(name: str) -> torch.Tensor:
        return model.load(f"{graph}.{name}")

    module, program, inputs = getattr(model.graphs, graph), graph_program(model, graph), graph_inputs(model, graph)
    found = trace(module, program, inputs, load, name=graph, opset=opset(TARGETS["cpu"], dtype))
    return found, WeightStream(model, graph)


def measure(model: ir.Model, stream: WeightStream, directory: Path, runs: int) -> tuple[list[list[Times]], list[int]]:
    """Times of writing and of cp in each run, and the memory of each writing."""
    ours, theirs, kept = (directory / name for name in ("weights.data", "copied.data", "kept.data"))
    memory: list[int] = []
    base = anonymous_bytes()

    def write(weights: Path = ours) -> None:
        progress = Progress(f"writing {weights.name}", print)
        with watched(base, memory):
            save_graph(model, directory / "graph.onnx", weights, stream, journal=None, progress=progress)

    def copy() -> None:
        subprocess.run(["cp", kept, theirs], check=True)

    write(kept)
    sync(kept)
    times: list[list[Times]] = []
    for run in range(runs):
        found: dict[Path, Times] = {}
        for work, file in ((write, ours), (copy, theirs))[:: 1 if run % 2 else -1]:
            found[file] = timed(work, file)
            file.unlink()
        times.append([found[ours], found[theirs]])
    return times, memory


def report(times: list[list[Times]], memory: list[int], size: int) -> str:
    """A table of the runs and their medians, under a line on all of them."""
    medians = [
        Times(*(statistics.median(getattr(one, field.name) for one in of) for field in fields(Times)))
        for of in zip(*times, strict=True)
    ]
    names = [*(str(run + 1) for run in range(len(times))), "median"]
    rows = [(name, *_cells(*pair)) for name, pair in zip(names, [*times, medians], strict=True)]
    head = ("run", *(f"{what}{of}" for what in ("", "synced ", "cpu ") for of in ("written", "cp", "cp / written")))
    line = (
        f"{size / 1e9:.2f} GB, {size / 1e6 / medians[0].returned:,.0f} MB/s, {max(memory) / 1e6:.0f} MB of memory at "
        f"most; {processor()}, {torch.get_num_threads()} threads"
    )
    return f"{line}\n\n{table(head, rows, numbers_from=1)}"


def _cells(ours: Times, theirs: Times) -> Iterator[str]:
    for field in fields(Times):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        yield from (f"{a:.2f} s", f"{b:.2f} s", f"{b / a:.2f}" if a else "-")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--graph", choices=("vision", "embedding", "language_model"), default="language_model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at", type=Path, default=Path(), help="where to write, several times the weights")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.at) as scratch:
        model, stream = traced(arguments.checkpoint, arguments.dtype, arguments.graph)
        times, memory = measure(model, stream, Path(scratch), arguments.runs)
        print(report(times, memory, (Path(scratch) / "kept.data").stat().st_size))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmark_writing", main))
