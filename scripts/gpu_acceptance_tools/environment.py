# SPDX-License-Identifier: Apache-2.0
"""What the machine is: GPU, driver, compiler, packages."""

from __future__ import annotations

import importlib.metadata
import platform

from gpu_acceptance_tools.report import Recorder, Unavailable
from gpu_acceptance_tools.work import TOOLS, Work, call, tail

PACKAGES = ("torch", "triton", "numpy", "onnx", "onnxruntime", "cuda-bindings", "ml_dtypes", "msgspec")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def run(work: Work, record: Recorder) -> None:
    """Facts, and whether there is a GPU that the kernels are for."""
    record.fact(python=platform.python_version(), platform=platform.platform())
    for name in PACKAGES:
        try:
            record.fact(**{name: importlib.metadata.version(name)})
        except importlib.metadata.PackageNotFoundError:
            record.fact(**{name: "not installed"})
    for name in TOOLS:
        try:
            record.fact(**{f"has {name}": work.tool(name)[0]})
        except Unavailable as error:
            record.fact(**{f"has {name}": str(error)})
    _ask(work, record, "nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    _ask(work, record, "nvcc", "--version")
    if work.is_rehearsal:
        record.check("a GPU", True, "none: a rehearsal", "none")
        return
    import torch

    if not record.check("a GPU", torch.cuda.is_available(), torch.cuda.device_count(), "at least 1"):
        return
    found = torch.cuda.get_device_properties(0)
    sm = 10 * found.major + found.minor
    record.fact(gpu=found.name, sm=sm, multiprocessors=found.multi_processor_count, memory=found.total_memory)
    record.fact(torch_cuda=str(torch.version.cuda))
    record.check("compute capability", sm >= 80, sm, 80)


def _ask(work: Work, record: Recorder, tool: str, *arguments: str) -> None:
    try:
        done = call([*work.tool(tool), *arguments])
    except Unavailable:
        return
    record.fact(**{tool: tail(done.stdout, 2) if done.returncode == 0 else f"failed: {tail(done.stderr)}"})
