# SPDX-License-Identifier: Apache-2.0
"""The library of all kernels, built on the machine for its GPU; in a rehearsal for the emulator."""

from __future__ import annotations

import time

from gpu_acceptance_tools.report import Recorder
from gpu_acceptance_tools.work import Work, call, tail


def run(work: Work, record: Recorder) -> None:
    """Build it, and load it."""
    arch = "emulator"
    if not work.is_rehearsal:
        import torch

        major, minor = torch.cuda.get_device_capability(work.device)
        arch = f"{major}{minor}"
    start = time.perf_counter()
    done = call(["bash", "scripts/build_kernels.sh", str(work.library), arch])
    record.measure("build", time.perf_counter() - start, "s", arch=arch)
    if not record.check("kernels compile", done.returncode == 0, tail(done.stderr) or "yes", "yes"):
        return
    from gpu_acceptance_tools.kernels import Kernels

    Kernels(work.library, work.device)
    record.fact(bytes=work.library.stat().st_size)
    record.check("library loads", True, "yes", "yes")
