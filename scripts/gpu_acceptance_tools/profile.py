# SPDX-License-Identifier: Apache-2.0
"""Nsight Compute's counters of three kernels: the product of few tokens, that of many, and the choice of survivors."""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict

from gpu_acceptance_tools.report import Recorder
from gpu_acceptance_tools.work import MODULES, REPOSITORY, Work, call, tail

KERNELS = ("gate_up_few", "gate_up_tiles", "choose_survivors")
METRICS = (
    *("Duration", "DRAM Throughput", "Memory Throughput", "Compute (SM) Throughput", "L2 Hit Rate"),
    *("Achieved Occupancy", "Theoretical Occupancy", "Registers Per Thread", "Executed Ipc Active"),
)


def run(work: Work, record: Recorder) -> None:
    """Profile one launch of each; the whole report is OUT/kernels.ncu-rep."""
    ncu, report = work.tool("ncu"), work.out / "kernels.ncu-rep"
    program = [sys.executable, "-m", "gpu_acceptance_tools.profile", str(work.library), work.device.type]
    options = ["--set", "full", "--clock-control", "none", "--kernel-name", f"regex:{'|'.join(KERNELS)}"]
    options += ["--launch-count", str(len(KERNELS)), "--force-overwrite", "--export", str(report), "--"]
    environment = {"PYTHONPATH": MODULES}
    done = call([*ncu, *options, *program], environment=environment)
    if not record.check("ncu runs", done.returncode == 0, tail(done.stdout + done.stderr)[:300], "exit code 0"):
        return
    printed = call([*ncu, "--import", str(report), "--csv", "--page", "details"])
    found = read_metrics(printed.stdout)
    for kernel in KERNELS:
        metrics = found.get(kernel, {})
        for name, (value, unit) in metrics.items():
            record.measure(name, value, unit, kernel=kernel)
        duration = metrics.get("Duration", (0.0, ""))[0]
        record.check(f"{kernel} was profiled", duration > 0, duration, "a duration")


def read_metrics(text: str) -> dict[str, dict[str, tuple[float, str]]]:
    """Of ncu's CSV: kernel -> metric -> value and unit, those of METRICS."""
    # Lines before the table are the program's own.
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, tuple[float, str]]] = defaultdict(dict)
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        kernel = next((name for name in KERNELS if name in row["Kernel Name"]), None)
        if kernel is not None and row["Metric Name"] in METRICS:
            found[kernel][row["Metric Name"]] = float(row["Metric Value"].replace(",", "")), row["Metric Unit"]
    return found


def launch(library: str, device: str) -> int:
    """Launch each of the kernels once, at the sizes of a published model on a GPU, else at tiny ones."""
    from pathlib import Path

    import torch
    from sass_tools.roofline import WEIGHTS, Weights

    from gpu_acceptance_tools.kernels import Kernels
    from gpu_acceptance_tools.layer import RandomLayer, layers
    from gpu_acceptance_tools.times import prune_call

    is_tiny = device == "cpu"
    kernels = Kernels(Path(library), torch.device(device))
    weights = Weights("int4", "int4", 4, 32) if is_tiny else WEIGHTS[-1]
    made = RandomLayer(layers(is_rehearsal=is_tiny)[-1], weights, kernels.device)
    for T in (1, 9 if is_tiny else 2048):
        tokens = made.tokens(T, seed=0)
        made.call(kernels, tokens, torch.empty_like(tokens.hidden))()
    queue, _, _ = prune_call(kernels, 0.5, is_tiny=is_tiny)
    queue()
    if not is_tiny:
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY)]
    sys.exit(launch(*sys.argv[1:]))
