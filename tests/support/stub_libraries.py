# SPDX-License-Identifier: Apache-2.0
"""Empty libraries in the place of TensorRT's, over which its Python bindings can be imported."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

OWN = re.compile(r"^(createInfer|createNvOnnx|getNvOnnx|getPluginRegistry|getBuilder|getInfer|initLibNvInfer)")


def write_stubs(binding: Path, folder: Path) -> None:
    """Write each of TensorRT's libraries that a binding needs, with the functions that it takes of them."""
    needed = re.findall(r"NEEDED.*\[(libnv.*?)\]", _output("readelf", "-dW", str(binding)))
    undefined = [line.split()[-1].split("@")[0] for line in _output("nm", "-D", "-u", str(binding)).splitlines()]
    functions = "\n".join(f"void* {name}(void) {{ return 0; }}" for name in undefined if OWN.match(name))
    folder.mkdir(parents=True, exist_ok=True)
    for library in needed:
        # One of them is enough to have the functions; in each, they do no harm.
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-x", "c", "-o", str(folder / library), "-"]
        subprocess.run(command, input=functions, text=True, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
