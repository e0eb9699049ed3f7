# SPDX-License-Identifier: Apache-2.0
"""Builds the TensorRT engines of a bundle, one process for each, and records them in engines.json."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fastmmoe import __version__
from fastmmoe.runtime.backends.tensorrt import api as tensorrt_api
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed, EngineReply, EngineRequest
from fastmmoe.runtime.backends.tensorrt.builder_memory import check_builder_memory
from fastmmoe.runtime.backends.tensorrt.profiles import Profile, engine_profiles, resolve_limits
from fastmmoe.runtime.backends.tensorrt.trtexec import commands
from fastmmoe.runtime.bundle.manifest import (
    ENGINES,
    FORMAT,
    MANIFEST,
    PLUGIN,
    TIMING_CACHE,
    Engines,
    FileEntry,
    Limits,
    Manifest,
    PluginInfo,
    engine_file,
    file_entry,
    graph_file,
    read_engines,
)
from fastmmoe.runtime.bundle.plugin_library import check_bundled_plugin
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.files import scratch_directory, sync
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.gpu import Gpu, find_gpu
from fastmmoe.runtime.machines.targets import TARGETS, Target, TensorRT, find_target, unknown_target
from fastmmoe.runtime.types import Say

PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build. The limits are those of `Limits`; None = the default of `resolve_limits`.

    Attributes:
        workspace_mib: the most scratch memory of a layer; None = TensorRT's own limit, all of the GPU's memory.
    """

    max_tokens: int | None = None
    max_visual: int | None = None
    max_cache: int | None = None
    max_tiles: int | None = None
    max_batch: int | None = None
    workspace_mib: int | None = None


def build_engines(
    directory: Path, options: BuildOptions | None = None, say: Say = print, *, verify: bool = True
) -> Engines:
    """Build the engines of a bundle. They appear in it, with engines.json, complete or not at all.

    Args:
        say: is called with a line for each step, and every few seconds in between.
        verify: see `open_bundle`.
    Returns:
        What engines.json says.
    Raises:
        BundleMismatch: not a bundle, its plugin does not fit, or it is for other machines than this one.
        InvalidRequest: limits that the model does not allow, or a target without engines.
        EngineBuildFailed: TensorRT is not installed, or refuses a graph.
    """
    options = BuildOptions() if options is None else options
    opened = open_bundle(directory, verify=verify, say=say)
    manifest = opened.manifest
    target, tensorrt = _engine_target(directory, manifest)
    limits = _resolve(manifest, options)
    plugin = _check_plugin(directory, manifest, target)
    version = tensorrt_api.load_module(tensorrt.module, tensorrt.install).__version__
    gpu = None if tensorrt.is_ahead_of_time else _device(target, tensorrt)
    capabilities = tensorrt.compute_capabilities if gpu is None else (gpu.sm,)
    _report_plan(tensorrt, version, gpu, limits, say)
    check_builder_memory(manifest, say)
    last = _report_last(directory, say)
    profiles = engine_profiles(manifest, limits)
    with scratch_directory(directory, "engines", say) as scratch:
        builder = _Builder(directory, scratch, tensorrt, options.workspace_mib, last, say)
        built = {engine_file(graph): builder.build(graph, profiles[graph]) for graph in profiles}
        opened.check_unchanged()
        engines = Engines(
            format=FORMAT,
            fastmmoe_version=__version__,
            plugin_version=plugin.version,
            bundle_sha256=file_entry(directory / MANIFEST).sha256,
            module=tensorrt.module,
            tensorrt_version=version,
            device=None if gpu is None else gpu.name,
            compute_capabilities=capabilities,
            limits=limits,
            files={name: entry for name, (entry, _) in built.items()},
            seconds={name: round(seconds, 1) for name, (_, seconds) in built.items()},
        )
        _publish(directory, scratch, engines)
    return engines


def show_commands(
    directory: Path, options: BuildOptions | None = None, say: Say = print, *, verify: bool = True
) -> None:
    """Say for each engine the trtexec command that builds it; nothing is built, and no TensorRT or GPU is needed.

    Raises:
        BundleMismatch, InvalidRequest: as `build_engines`.
    """
    options = BuildOptions() if options is None else options
    manifest = open_bundle(directory, verify=verify, say=say).manifest
    _, tensorrt = _engine_target(directory, manifest)
    limits = _resolve(manifest, options)
    for line in commands(directory, tensorrt, engine_profiles(manifest, limits), options.workspace_mib):
        say(line)


def _check_plugin(directory: Path, manifest: Manifest, target: Target) -> PluginInfo:
    """The bundle's plugin; BundleMismatch unless it is whole and for this machine."""
    plugin = check_bundled_plugin(directory, manifest)
    machine = platform.machine()
    if plugin.architecture != machine:
        raise BundleMismatch(
            f"{directory / PLUGIN}: for {plugin.architecture}, this machine is {machine}: build on a machine of the "
            f"bundle's target, {target.name}"
        )
    return plugin


def _engine_target(directory: Path, manifest: Manifest) -> tuple[Target, TensorRT]:
    target = find_target(manifest.target)
    if target is None:
        raise BundleMismatch(f"{directory}: target {unknown_target(manifest.target)}")
    if target.tensorrt is None:
        with_engines = ", ".join(t.name for t in TARGETS.values() if t.tensorrt is not None)
        raise InvalidRequest(
            f"{directory}: exported for {target.name}, which has no engines: run it with fastmmoe run, or export with "
            f"one of the targets {with_engines}"
        )
    return target, target.tensorrt


def _resolve(manifest: Manifest, options: BuildOptions) -> Limits:
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise InvalidRequest(f"--workspace {options.workspace_mib}: expected at least 1 MiB")
    return resolve_limits(
        manifest,
        max_tokens=options.max_tokens,
        max_visual=options.max_visual,
        max_cache=options.max_cache,
        max_tiles=options.max_tiles,
        max_batch=options.max_batch,
    )


def _device(target: Target, tensorrt: TensorRT) -> Gpu:
    """The GPU of this machine, which the engines will be for."""
    gpu = find_gpu()
    wanted = " or ".join(f"SM {sm}" for sm in tensorrt.compute_capabilities)
    names = ", ".join(DEVICES[name].name for name in target.devices)
    if gpu is None:
        raise BundleMismatch(f"no CUDA GPU found: engines of {target.name} are built on the device, {wanted} ({names})")
    if gpu.sm not in tensorrt.compute_capabilities:
        fitting = [t.name for t in TARGETS.values() if t.tensorrt and gpu.sm in t.tensorrt.compute_capabilities]
        again = f": export with --target {' or '.join(fitting)}" if fitting else ""
        raise BundleMismatch(f"GPU {gpu.name} is SM {gpu.sm}, target {target.name} is for {wanted} ({names}){again}")
    return gpu


def _report_last(directory: Path, say: Say) -> dict[str, float]:
    """Seconds that the engines which are there took, by file; no other estimate is at hand before a build."""
    last = None
    with contextlib.suppress(BundleMismatch):
        last = read_engines(directory)
    if last is None:
        return {}
    say(f"the last build of this bundle took {sum(last.seconds.values()):.0f} s")
    return last.seconds


def _report_plan(tensorrt: TensorRT, version: str, gpu: Gpu | None, limits: Limits, say: Say) -> None:
    where = ", ".join(f"SM {sm}" for sm in tensorrt.compute_capabilities) if gpu is None else f"{gpu.name}, SM {gpu.sm}"
    say(f"{tensorrt.module} {version}, engines for {where}")
    release = next((r for r in tensorrt.releases if f"{version}.".startswith(f"{r.version}.")), None)
    if release is None or not release.is_checked:
        checked = ", ".join(f"{r.version} ({r.source})" for r in tensorrt.releases if r.is_checked)
        say(
            f"{tensorrt.module} {version} has not been tried with this version of fastmmoe"
            + (f"; {checked} has" if checked else "")
        )
    say(
        f"limits: {limits.max_tokens} tokens a prompt, {limits.max_visual} of them visual, {limits.max_cache} cached, "
        f"{limits.max_tiles} tiles, {limits.max_batch} sequences at once"
    )


def _publish(directory: Path, scratch: Path, engines: Engines) -> None:
    """Move the engines to their places. engines.json is there only while it and all engines belong together."""
    (scratch / ENGINES).write_bytes(msgspec.json.format(msgspec.json.encode(engines), indent=2) + b"\n")
    for name in (*engines.files, ENGINES):
        sync(scratch / name)
    (directory / ENGINES).unlink(missing_ok=True)
    for name in (*engines.files, ENGINES):
        (scratch / name).replace(directory / name)
    sync(directory)


@dataclass(frozen=True)
class _Builder:
    """Builds one engine after another into the scratch directory.

    Attributes:
        last: see `_report_last`.
    """

    directory: Path
    scratch: Path
    tensorrt: TensorRT
    workspace_mib: int | None
    last: dict[str, float]
    say: Say

    def build(self, graph: str, profiles: tuple[Profile, ...]) -> tuple[FileEntry, float]:
        """The engine of a graph, and the seconds that it took."""
        is_ahead_of_time = self.tensorrt.is_ahead_of_time
        request = EngineRequest(
            module=self.tensorrt.module,
            graph=str(self.directory / graph_file(graph)),
            plugin=str(self.directory / PLUGIN),
            output=str(self.scratch / engine_file(graph)),
            profiles=profiles,
            compute_capabilities=self.tensorrt.compute_capabilities if is_ahead_of_time else (),
            workspace_mib=self.workspace_mib,
            # Nothing is measured ahead of time.
            timing_cache=None if is_ahead_of_time else str(self.directory / TIMING_CACHE),
        )
        before = self.last.get(engine_file(graph))
        last = "" if before is None else f", {before:.0f} s the last time"
        start = time.monotonic()
        reply = self._run(request, lambda: self.say(f"building {graph}: {time.monotonic() - start:.0f} s{last} ..."))
        if reply.engine is None:
            raise EngineBuildFailed(reply.error)
        seconds = time.monotonic() - start
        self.say(f"built {graph}: {reply.engine.bytes / 1e6:.1f} MB ({seconds:.1f} s)")
        return reply.engine, seconds

    def _run(self, request: EngineRequest, tick: Callable[[], None]) -> EngineReply:
        """Have another process do it, and tick while it does."""
        request_file, reply_file, log_file = (self.scratch / name for name in ("request.json", "reply.json", "log"))
        request_file.write_bytes(msgspec.json.encode(request))
        reply_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", tensorrt_api.__name__, str(request_file), str(reply_file)]
        with (
            log_file.open("wb") as log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environment()
            ) as process,
        ):
            try:
                code = _wait(process, tick)
            finally:
                process.kill()
                process.wait()
        if not reply_file.is_file():
            raise EngineBuildFailed(_sudden_end(self.tensorrt.module, code, log_file))
        return msgspec.json.decode(reply_file.read_bytes(), type=EngineReply)

    def _environment(self) -> dict[str, str]:
        """TensorRT-RTX's parser looks for libtensorrt_rtx.so, the wheel has only libtensorrt_rtx.so.1: name it so."""
        links = self.scratch / "lib"
        links.mkdir(exist_ok=True)
        spec = importlib.util.find_spec(f"{self.tensorrt.module}_libs")
        folders = [] if spec is None else spec.submodule_search_locations or []
        for library in (path for folder in folders for path in Path(folder).glob("lib*.so.*")):
            link = links / f"{library.name.partition('.so.')[0]}.so"
            if not link.is_symlink():
                link.symlink_to(library)
        paths = [str(links), os.environ.get("LD_LIBRARY_PATH", "")]
        return os.environ | {"LD_LIBRARY_PATH": ":".join(path for path in paths if path)}


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(PROGRESS_SECONDS)
        except subprocess.TimeoutExpired:
            tick()


def _sudden_end(module: str, code: int, log_file: Path) -> str:
    """Why a process ended without a reply."""
    if code == -signal.SIGKILL:
        return (
            f"{module} was killed, as the system does where memory runs out: end other programs, add swap, or lower "
            f"--max-tokens, --max-cache and --workspace"
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = log_file.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{module} ended with {how}: {tensorrt_api.one_line(last)}"
