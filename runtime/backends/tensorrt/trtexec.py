# SPDX-License-Identifier: Apache-2.0
"""The command of NVIDIA's trtexec that builds an engine as `fastmmoe build` does, for who wants to look at one build.

Options as in samples/common/sampleOptions.cpp of NVIDIA's repository TensorRT, releases 10.3 to 11.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastmmoe.runtime.backends.tensorrt.profiles import Profile
from fastmmoe.runtime.bundle.manifest import ENGINES, PLUGIN, TIMING_CACHE, engine_file, graph_file
from fastmmoe.runtime.machines.targets import TensorRT

PROGRAMS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}
ALIASED = "+aliasedPluginIO1003"
"""Outputs of FmmAttention have the addresses of inputs."""
RANGES = ("min", "opt", "max")
FIRST_ALWAYS_STRONG = 11


def commands(
    directory: Path, tensorrt: TensorRT, profiles: Mapping[str, tuple[Profile, ...]], workspace_mib: int | None
) -> Iterator[str]:
    """Lines for a shell: what trtexec cannot do, and a command for each engine.

    Args:
        profiles: those of each graph.
        workspace_mib: the most scratch memory of a layer; None = TensorRT's own limit.
    """
    program = PROGRAMS[tensorrt.module]
    yield f"# {program} writes no {ENGINES}, without which fastmmoe run takes no engine: fastmmoe build does"
    if tensorrt.is_ahead_of_time:
        listed = ", ".join(f"SM {sm}" for sm in tensorrt.compute_capabilities)
        yield f"# {program} builds for the GPU of its machine; fastmmoe build for {listed}, without one"
    for graph, given in profiles.items():
        yield " \\\n  ".join(_words(program, directory, graph, given, tensorrt, workspace_mib))


def _words(
    program: str,
    directory: Path,
    graph: str,
    profiles: tuple[Profile, ...],
    tensorrt: TensorRT,
    workspace_mib: int | None,
) -> Iterator[str]:
    """The words of one command, a profile's shapes after its number."""

    def file(option: str, name: str) -> str:
        return shlex.quote(f"--{option}={directory / name}")

    yield program
    yield file("onnx", graph_file(graph))
    yield file("saveEngine", engine_file(graph))
    yield file("dynamicPlugins", PLUGIN)
    # TensorRT 11 has no networks of another kind.
    if int(tensorrt.releases[0].version.partition(".")[0]) < FIRST_ALWAYS_STRONG:
        yield "--stronglyTyped"
    yield f"--preview={ALIASED}"
    yield "--maxAuxStreams=0"
    if workspace_mib is not None:
        yield f"--memPoolSize=workspace:{workspace_mib}"
    if not tensorrt.is_ahead_of_time:
        yield file("timingCacheFile", TIMING_CACHE)
    yield "--skipInference"
    for number, profile in enumerate(profiles):
        if len(profiles) > 1:
            yield f"--profile={number}"
        for place, which in enumerate(RANGES):
            yield f"--{which}Shapes={','.join(_shape(name, shapes[place]) for name, shapes in profile.items())}"


def _shape(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}:{'x'.join(map(str, shape))}"
