# SPDX-License-Identifier: Apache-2.0
"""Probes of a bundle beside the machine it is to run on."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator
from pathlib import Path

from fastmmoe.runtime.bundle.manifest import GRAPHS, Engines, Manifest, read_engines, read_manifest, weights_file
from fastmmoe.runtime.bundle.plugin_library import check_bundled_plugin
from fastmmoe.runtime.doctor.host import Finding, Host
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.machines.gpu import find_gpu
from fastmmoe.runtime.machines.memory import read_memory
from fastmmoe.runtime.machines.targets import Target, TensorRT, find_target, unknown_target


def probe_bundle(host: Host, directory: Path) -> Iterator[Finding]:
    """Everything that is known of a bundle without hashing or running it; `fastmmoe verify` does the first."""
    try:
        manifest = read_manifest(directory)
    except (BundleMismatch, OSError) as error:
        yield _damaged("bundle", str(error), f"fastmmoe verify {shlex.quote(str(directory))}")
        return
    target = find_target(manifest.target)
    if target is None:
        yield Finding("bundle", "problem", f"target {unknown_target(manifest.target)}", "fastmmoe-export MODEL OUT")
        return
    yield Finding("bundle", "ok", f"{manifest.model} for {manifest.target}, {_formats(manifest)}")
    yield _memory(host, manifest)
    if target.tensorrt is not None:
        yield from _engines(directory, manifest, target, target.tensorrt)


def _formats(manifest: Manifest) -> str:
    """The dtype, and what else weights are stored in."""
    linears = manifest.linears
    stored = (manifest.experts, linears.dense, linears.head, linears.vision)
    others = dict.fromkeys(f for one in stored if (f := one.weight_format) not in ("float", manifest.dtype))
    return manifest.dtype + (f" with weights in {' and '.join(others)}" if others else "")


def _damaged(name: str, error: str, otherwise: str) -> Finding:
    """Messages of bundles end with what to do."""
    found, separator, mend = error.rpartition("; ")
    return Finding(name, "problem", found if separator else error, mend if separator else otherwise)


def _memory(host: Host, manifest: Manifest) -> Finding:
    names = set(map(weights_file, GRAPHS))
    weights = sum(entry.bytes for name, entry in manifest.files.items() if name in names)
    memory = read_memory(host.root)
    found = f"weights {weights / 1e9:.2f} GB"
    if memory is None or memory["MemAvailable"] >= weights:
        return Finding("bundle memory", "ok", found)
    free = f"{found}, {memory['MemAvailable'] / 1e9:.2f} GB of memory free"
    if memory["MemTotal"] < weights:
        return Finding("bundle memory", "problem", free, "fastmmoe-export MODEL OUT --weights int4")
    return Finding("bundle memory", "warning", free, "end other programs: ps aux --sort -rss | head")


def _engines(directory: Path, manifest: Manifest, target: Target, tensorrt: TensorRT) -> Iterator[Finding]:
    build = f"fastmmoe build {shlex.quote(str(directory))}"
    try:
        plugin = check_bundled_plugin(directory, manifest)
        engines = read_engines(directory)
    except (BundleMismatch, OSError) as error:
        yield _damaged("engines", str(error), build)
        return
    machine, gpu = platform.machine(), find_gpu()
    again = f"fastmmoe-export MODEL {shlex.quote(str(directory))} --overwrite --target T"
    if plugin.architecture != machine:
        found = f"for {plugin.architecture}, this machine is {machine}"
        yield Finding("bundle machine", "problem", found, f"copy it to a machine of target {target.name}")
        return
    if gpu is None:
        found = "engines need a GPU, CUDA finds none"
        yield Finding("bundle machine", "problem", found, f"copy it to a machine of target {target.name}")
    elif gpu.sm not in tensorrt.compute_capabilities:
        wanted = ", ".join(map(str, tensorrt.compute_capabilities))
        yield Finding("bundle machine", "problem", f"for SM {wanted}, {gpu.name} is SM {gpu.sm}", again)
    else:
        yield Finding("bundle machine", "ok", f"{gpu.name}, SM {gpu.sm}")
    yield _built(engines, None if gpu is None else gpu.name, build)


def _built(engines: Engines | None, gpu: str | None, build: str) -> Finding:
    if engines is None:
        return Finding("engines", "warning", "not built yet", build)
    found = f"built by {engines.module} {engines.tensorrt_version}"
    if engines.device is not None and gpu is not None and engines.device != gpu:
        return Finding("engines", "problem", f"{found} for {engines.device}, this is {gpu}", build)
    return Finding("engines", "ok", found)
