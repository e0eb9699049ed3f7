# SPDX-License-Identifier: Apache-2.0
"""Probes of what runs bundles: driver and GPU, TensorRT and whether it holds this GPU, plugins, ONNX Runtime."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from fastmmoe import __version__
from fastmmoe.plugins import native_library_path, tensorrt_library_command, tensorrt_library_path
from fastmmoe.runtime.backends.distribution import check_onnxruntime, has_gpu_distribution
from fastmmoe.runtime.backends.tensorrt import api
from fastmmoe.runtime.backends.tensorrt.api import EngineReply, EngineRequest
from fastmmoe.runtime.bundle.plugin_library import read_plugin
from fastmmoe.runtime.doctor.host import Finding, Host, Severity, shown
from fastmmoe.runtime.doctor.jetson import is_jetson, jetpack_of, read_release
from fastmmoe.runtime.doctor.tiny_graph import TINY_GRAPH
from fastmmoe.runtime.errors import BackendMissing, BundleMismatch
from fastmmoe.runtime.machines.gpu import Gpu, driver_cuda, find_gpu
from fastmmoe.runtime.machines.targets import TARGETS

DRIVER = "proc/driver/nvidia/version"
DEVICE = "dev/nvidia0"
BINDINGS = "cuda-bindings"
TENSORRT_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
EXPORTS = (b"getCreators", b"getPluginCreators", b"setLoggerFinder")
"""Names that TensorRT looks for in a plugin library."""
BUILD_SECONDS = 120.0


def probe_software(host: Host, *, asks_tensorrt: bool = True) -> Iterator[Finding]:
    """Everything of this file.

    Args:
        asks_tensorrt: have TensorRT build a tiny engine, which is what tells whether it knows this GPU.
    """
    gpu = find_gpu()
    yield _driver(host, gpu)
    if gpu is not None:
        yield _bindings()
    yield from _tensorrt(host, gpu, asks_tensorrt)
    yield from _plugin(host, gpu)
    yield _onnxruntime()
    yield _native_library()


def _driver(host: Host, gpu: Gpu | None) -> Finding:
    text = host.text(DRIVER)
    found = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]+)", text or "")
    driver = "" if text is None else f", driver {found[1] if found else shown(text)}"
    if gpu is not None:
        return Finding("gpu", "ok", f"{gpu.name}, SM {gpu.sm}{driver}{_serving(gpu)}")
    if is_jetson(host):
        return Finding("gpu", "problem", "CUDA finds none on this Jetson", "docker run --runtime nvidia ...")
    if text is None:
        return Finding("gpu", "ok", "none of NVIDIA: bundles of target cpu run here")
    if not host.is_there(DEVICE):
        return Finding("gpu", "problem", f"none is visible here{driver}", "docker run --gpus all ...")
    return Finding("gpu", "problem", f"CUDA finds none{driver}", "nvidia-smi")


def _serving(gpu: Gpu) -> str:
    names = [t.name for t in TARGETS.values() if t.tensorrt is not None and gpu.sm in t.tensorrt.compute_capabilities]
    return "" if names else ": no target is for this SM"


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _bindings() -> Finding:
    found, cuda = _installed(BINDINGS), driver_cuda()
    driver = "" if cuda is None else "driver for CUDA {}.{}, ".format(*cuda)
    if found is None:
        mend = "pip install 'fastmmoe[tensorrt]'"
        return Finding("cuda", "warning", f"{driver}no cuda-bindings: engines need them", mend)
    if cuda is not None and int(found.partition(".")[0]) > cuda[0]:
        mend = f"pip install 'cuda-bindings=={cuda[0]}.*'"
        return Finding("cuda", "problem", f"{driver}cuda-bindings {found} need a newer one", mend)
    return Finding("cuda", "ok", f"{driver}cuda-bindings {found}")


def _tensorrt(host: Host, gpu: Gpu | None, asks: bool) -> Iterator[Finding]:
    modules = [name for name in TENSORRT_PACKAGES if importlib.util.find_spec(name) is not None]
    for module in modules:
        yield _ask_tensorrt(host, module, gpu, asks)
    if not modules and gpu is not None:
        yield Finding("tensorrt", "warning", f"not installed for {sys.executable}", _install_line(host, gpu))


def _install_line(host: Host, gpu: Gpu) -> str:
    if is_jetson(host):
        return "sudo apt install python3-libnvinfer; python3 -m venv --system-site-packages VENV"
    fitting = (t.tensorrt for t in TARGETS.values() if t.tensorrt and gpu.sm in t.tensorrt.compute_capabilities)
    return next((tensorrt.install for tensorrt in fitting), "pip install 'fastmmoe[rtx]'")


def _ask_tensorrt(host: Host, module: str, gpu: Gpu | None, asks: bool) -> Finding:
    known = _installed(TENSORRT_PACKAGES[module])
    name = f"{module}{f' {known}' if known else ''}"
    # Engines of TensorRT-RTX are built without a GPU, for all that it serves.
    if gpu is None or module != "tensorrt" or not asks:
        return Finding("tensorrt", "ok", f"{name}, not asked for a GPU")
    error = build_tiny_engine(module)
    if error is None:
        return Finding("tensorrt", "ok", f"{name} builds for {gpu.name}, SM {gpu.sm}")
    reinstall = "sudo apt install --reinstall tensorrt python3-libnvinfer"
    mend = reinstall if is_jetson(host) else "pip install --upgrade tensorrt"
    return Finding("tensorrt", "problem", f"{name} builds nothing for SM {gpu.sm}: {error}", mend)


def build_tiny_engine(module: str) -> str | None:
    """Have TensorRT build an engine for this machine's GPU, in a process of its own; None, or why it does not.

    No list says which compute capabilities a release holds: some for Jetson's containers came without those of Orin.
    """
    with tempfile.TemporaryDirectory(prefix="fastmmoe-doctor-") as name:
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(TINY_GRAPH)
        request = EngineRequest(
            module=module,
            graph=str(folder / "graph.onnx"),
            plugin=None,
            output=str(folder / "engine"),
            profiles=(),
            compute_capabilities=(),
            workspace_mib=None,
            timing_cache=None,
        )
        (folder / "request").write_bytes(msgspec.json.encode(request))
        command = [sys.executable, "-m", api.__name__, str(folder / "request"), str(folder / "reply")]
        try:
            done = subprocess.run(command, capture_output=True, timeout=BUILD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"no answer within {BUILD_SECONDS:.0f} s"
        if not (folder / "reply").is_file():
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            return f"it ended with {done.returncode}: {shown(last)}"
        reply = msgspec.json.decode((folder / "reply").read_bytes(), type=EngineReply)
        return None if reply.engine is not None else reply.error


def _plugin(host: Host, gpu: Gpu | None) -> Iterator[Finding]:
    """The TensorRT plugin that this machine's engines take."""
    is_needed = gpu is not None or any(importlib.util.find_spec(name) for name in TENSORRT_PACKAGES)
    build = "x86_64"
    if is_jetson(host):
        build = "jetpack6" if jetpack_of(read_release(host) or (0, 0, 0)) == "6.2" else "aarch64"
    path, command = tensorrt_library_path(build), tensorrt_library_command(build)
    if not path.is_file():
        # A bundle brings its own.
        if is_needed and not is_jetson(host):
            yield Finding("plugin", "warning", f"{path.name} is not there: needed to export engines", command)
        return
    try:
        info, data = read_plugin(path), path.read_bytes()
    except (BundleMismatch, OSError) as error:
        yield Finding("plugin", "problem", str(error), command)
        return
    missing = [name.decode() for name in EXPORTS if name not in data]
    found = f"{path.name} {info.version} for {info.architecture}"
    if missing:
        yield Finding("plugin", "problem", f"{found} does not export {', '.join(missing)}", command)
    elif info.version != __version__:
        yield Finding("plugin", "problem", f"{found}, fastmmoe is {__version__}", command)
    else:
        yield Finding("plugin", "ok", found)


def _onnxruntime() -> Finding:
    try:
        check_onnxruntime()
    except BackendMissing as error:
        found, _, mend = str(error).partition(": ")
        is_missing = "not installed" in found
        line = re.search(r"pip .*", mend)
        severity: Severity = "warning" if is_missing else "problem"
        return Finding("onnxruntime", severity, found, line[0] if line else "pip install 'fastmmoe[cpu]'")
    name = "onnxruntime-gpu" if has_gpu_distribution() else "onnxruntime"
    return Finding("onnxruntime", "ok", f"{name} {_installed(name) or 'of an unknown version'}")


def _native_library() -> Finding:
    path = native_library_path()
    if path.is_file():
        return Finding("operators", "ok", f"{path.name} for the CPU")
    return Finding("operators", "warning", f"{path.name} is not there: fastmmoe run needs --portable", "make native")
