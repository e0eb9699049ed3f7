# SPDX-License-Identifier: Apache-2.0
"""The host memory that a build takes: said before it, because the system kills what takes too much."""

from __future__ import annotations

from pathlib import Path

from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, weights_file
from fastmmoe.runtime.machines.memory import read_memory
from fastmmoe.runtime.types import Say

PEAK = 3.3
"""Bytes at the peak for each byte of constants: 1 GB of them had 3.3 GB, built by TensorRT-RTX 1.7 in one piece."""
ADVICE = "end other programs or add swap"


def check_builder_memory(manifest: Manifest, say: Say) -> None:
    """Say where memory and swap are less than a build is known to take.

    Raises:
        EngineBuildFailed: they hold not even the weights once.
    """
    constants, available = largest_constants(manifest), available_bytes()
    if available is None:
        return
    has = f"{available / 1e9:.1f} GB of memory and swap are free"
    if constants > available:
        raise EngineBuildFailed(f"{has}; the weights that the builder takes are {constants / 1e9:.1f} GB: {ADVICE}")
    if build_peak(constants) > available:
        say(
            f"memory: {has}; a build of {constants / 1e9:.1f} GB of weights was seen to take {PEAK:g} times as much: "
            f"{ADVICE}"
        )


def largest_constants(manifest: Manifest) -> int:
    """Bytes of the weights that become constants of one engine, at most: each has a process of its own.

    The routed experts are inputs of the language model's engine and no constants.
    """
    files = manifest.files
    sizes = {graph: files[weights_file(graph)].bytes for graph in GRAPHS if weights_file(graph) in files}
    experts = sum(tensor.bytes for tensor in manifest.experts.inputs.values())
    return max((size - experts if graph == "language_model" else size for graph, size in sizes.items()), default=0)


def build_peak(constants: int) -> int:
    """Bytes of a builder's process at its peak, for so many bytes of constants."""
    return int(PEAK * constants)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that programs may still take, and free swap; None where the system does not say."""
    memory = read_memory(root)
    return None if memory is None else memory["MemAvailable"] + memory["SwapFree"]
