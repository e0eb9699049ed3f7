# SPDX-License-Identifier: Apache-2.0
"""What a section is given, and the programs that sections call."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_acceptance_tools.report import Unavailable

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parents[2]
SITE = REPOSITORY / ".build" / "gpu_acceptance" / "site"
"""Python packages that travel with a folder."""
MODULES = os.pathsep.join(map(str, (REPOSITORY / "scripts", REPOSITORY, SITE)))
"""PYTHONPATH of programs that sections start."""
STAND_IN = Path(__file__).with_name("stand_in.py")
TOOLS = {
    "ncu": ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/2025.3.1/ncu"),
    "compute-sanitizer": ("/usr/local/cuda/bin/compute-sanitizer",),
    "nvidia-smi": ("/usr/local/nvidia/bin/nvidia-smi",),
    "nvcc": ("/usr/local/cuda/bin/nvcc",),
}
"""Programs, and where they are if not on the PATH."""


@dataclass(frozen=True)
class Work:
    """A section's surroundings.

    Attributes:
        is_rehearsal: without a GPU, in tiny sizes: emulator, torch on the CPU and stand-ins.
        scratch: folder that the run's sections share.
        out: folder for what is to be kept, the report among it.
    """

    is_rehearsal: bool
    scratch: Path
    out: Path

    @property
    def library(self) -> Path:
        """Of the kernels' C entry points; the section `build` makes it."""
        return self.scratch / "libfastmmoe_kernels.so"

    @property
    def bundles(self) -> Path:
        """Folder of the demo's bundles, which travels with the second run; a rehearsal makes them."""
        return self.scratch / "bundles" if self.is_rehearsal else REPOSITORY / ".build" / "gpu_acceptance" / "bundles"

    @functools.cached_property
    def device(self) -> torch.device:
        """Where tensors are. Unavailable: there is no GPU."""
        import torch

        if self.is_rehearsal:
            torch.set_num_threads(1)
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise Unavailable(f"torch {torch.__version__} sees no GPU")
        return torch.device("cuda")

    def pick(self, real: Any, rehearsal: Any) -> Any:
        """The one or the other."""
        return rehearsal if self.is_rehearsal else real

    def tool(self, name: str) -> list[str]:
        """How a program of `TOOLS` is called, in a rehearsal its stand-in. Unavailable: it is not there."""
        if self.is_rehearsal:
            return [sys.executable, str(STAND_IN), name]
        found = shutil.which(name) or next((path for path in TOOLS[name] if Path(path).is_file()), None)
        if found is None:
            raise Unavailable(f"{name} is not installed")
        return [found]


def call(command: list[str], *, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it prints is kept. Its time is limited by the section's."""
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ | (environment or {})
    )


def tail(text: str, lines: int = 5) -> str:
    """The last lines that are not empty, as one."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])
