# SPDX-License-Identifier: Apache-2.0
"""Loads a bundle's engines: everything that can be known to fail is checked before TensorRT is started.

Without a GPU `tensorrt.Runtime` logs an error, returns an object, and the process ends later (seen with 10.16): so the
driver is asked first.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import msgspec

from fastmmoe import __version__
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed, load_module
from fastmmoe.runtime.backends.tensorrt.backend import TensorRT
from fastmmoe.runtime.backends.tensorrt.device import Device, OutOfDeviceMemory, Properties
from fastmmoe.runtime.backends.tensorrt.profiles import resolve_limits
from fastmmoe.runtime.backends.tensorrt.resources import Resources
from fastmmoe.runtime.bundle.manifest import (
    ENGINES,
    FORMAT,
    GRAPHS,
    MANIFEST,
    Engines,
    Manifest,
    engine_file,
    file_entry,
    read_engines,
)
from fastmmoe.runtime.bundle.plugin_library import check_bundled_plugin
from fastmmoe.runtime.errors import BackendMissing, BundleMismatch, InvalidRequest, RunFailed
from fastmmoe.runtime.machines.gpu import BINDINGS
from fastmmoe.runtime.machines.targets import find_target

NO_DRIVER = 35
"""cudaErrorInsufficientDriver: what CUDA answers without a driver, too."""


def load_engines(directory: Path, manifest: Manifest, *, portable: bool = False, notes_times: bool = False) -> TensorRT:
    """The engines of a bundle, ready to run.

    Args:
        portable: asks for graphs without operators of our own, which engines are not.
        notes_times: of every layer; every call then waits for the device, and steps are not captured.

    Raises:
        BackendMissing: cuda-bindings or TensorRT is not installed, or there is no driver or GPU that they work with.
        BundleMismatch: there are no engines, or they are of another bundle, machine or version.
        RunFailed: the device has too little memory, or CUDA fails.
    """
    if portable:
        raise BundleMismatch(f"{directory}: the bundle has no portable variant")
    engines = _check_engines(directory, manifest)
    plugin = check_bundled_plugin(directory, manifest)
    if engines.plugin_version != plugin.version:
        raise _again(directory, f"built with plugin {engines.plugin_version}, the bundle has {plugin.version}")
    cudart = _cuda()
    device = Device(cudart)
    gpu = _gpu(cudart, device)
    if gpu.sm not in engines.compute_capabilities or engines.device not in (None, gpu.name):
        where = engines.device or ", ".join(f"SM {sm}" for sm in engines.compute_capabilities)
        raise _again(directory, f"built for {where}, this GPU is {gpu.name}, SM {gpu.sm}")
    trt = _tensorrt(directory, manifest, engines)
    _check_memory(directory, manifest, engines, device, gpu)
    try:
        return TensorRT(manifest, Resources(trt, device, directory, manifest, engines, notes_times=notes_times))
    except OutOfDeviceMemory as error:
        raise OutOfDeviceMemory(
            f"{directory}: its engines, with room for the greatest call, do not fit on {gpu.name}: end other programs, "
            f"or build them for less, see fastmmoe build --help ({error})"
        ) from error


def _check_engines(directory: Path, manifest: Manifest) -> Engines:
    engines = read_engines(directory)
    if engines is None:
        target = find_target(manifest.target)
        is_bound = target is not None and target.tensorrt is not None and not target.tensorrt.is_ahead_of_time
        where = f" on a machine of its target, {manifest.target}" if is_bound else ""
        raise BundleMismatch(f"{directory}: has no engines yet: fastmmoe build {directory}{where}")
    if engines.format != FORMAT:
        raise _again(directory, f"format {engines.format}, fastmmoe {__version__} reads format {FORMAT}")
    if engines.fastmmoe_version != __version__:
        raise _again(directory, f"built by fastmmoe {engines.fastmmoe_version}, this is {__version__}")
    if engines.bundle_sha256 != file_entry(directory / MANIFEST).sha256:
        raise _again(directory, "built from another export of the bundle")
    try:
        resolve_limits(manifest, **msgspec.structs.asdict(engines.limits))
    except InvalidRequest as error:
        raise _again(directory, f"has limits that no build takes, {error}") from error
    for name in map(engine_file, GRAPHS):
        path, entry = directory / name, engines.files.get(name)
        if entry is None:
            raise _again(directory, f"does not name {name}")
        found = path.stat().st_size if path.is_file() else None
        if found != entry.bytes:
            what = "missing" if found is None else f"{found} bytes, expected {entry.bytes}"
            raise BundleMismatch(f"{path}: {what}; build the engines again: fastmmoe build {directory}")
    return engines


def _again(directory: Path, what: str) -> BundleMismatch:
    return BundleMismatch(f"{directory / ENGINES}: {what}; build the engines again: fastmmoe build {directory}")


def _cuda() -> Any:
    try:
        return importlib.import_module(BINDINGS)
    except ModuleNotFoundError as error:
        raise BackendMissing(
            f"cuda-bindings is not installed for {sys.executable}: pip install 'fastmmoe[tensorrt]'"
        ) from error
    except (ImportError, OSError) as error:
        raise BackendMissing(f"cuda-bindings cannot be loaded: {' '.join(str(error).split())}") from error


def _gpu(cudart: Any, device: Device) -> Properties:
    """The GPU, once the driver has said that there is one."""
    error, count = cudart.cudaGetDeviceCount()
    if int(error) == NO_DRIVER:
        driver, wanted = (_version(call()) for call in (cudart.cudaDriverGetVersion, cudart.cudaRuntimeGetVersion))
        if driver == "0.0":
            raise BackendMissing("no NVIDIA driver is loaded: engines run on an NVIDIA GPU")
        raise BackendMissing(
            f"the NVIDIA driver is for CUDA {driver}, cuda-bindings need {wanted}: install a newer driver, or "
            f"pip install 'cuda-bindings=={driver.partition('.')[0]}.*'"
        )
    if int(error) != 0 or count == 0:
        raise BackendMissing("no NVIDIA GPU is visible: engines run on one (see nvidia-smi and $CUDA_VISIBLE_DEVICES)")
    return device.properties()


def _version(answer: tuple[Any, int]) -> str:
    """CUDA's version number: 13000 for 13.0."""
    number = int(answer[1])
    return f"{number // 1000}.{number % 1000 // 10}"


def _tensorrt(directory: Path, manifest: Manifest, engines: Engines) -> Any:
    found = find_target(manifest.target)
    assert found is not None and found.tensorrt is not None
    target = found.tensorrt
    if engines.module != target.module:
        raise _again(directory, f"built by {engines.module!r}, expected {target.module} for target {manifest.target}")
    try:
        trt = load_module(engines.module, target.install)
    except EngineBuildFailed as error:
        raise BackendMissing(str(error)) from error
    if trt.__version__ != engines.tensorrt_version:
        raise _again(
            directory, f"built by {engines.module} {engines.tensorrt_version}, {trt.__version__} is installed here"
        )
    return trt


def _check_memory(directory: Path, manifest: Manifest, engines: Engines, device: Device, gpu: Properties) -> None:
    """Raise RunFailed where the weights alone do not fit. On Jetson what the page cache holds counts as free."""
    weights = sum(entry.bytes for entry in engines.files.values())
    weights += sum(tensor.bytes for tensor in manifest.experts.inputs.values())
    free, total = device.memory()
    available = total if gpu.is_integrated else free
    if weights > available:
        raise RunFailed(
            f"{directory}: its weights are {weights / 1e9:.2f} GB, {gpu.name} has {available / 1e9:.2f} GB "
            f"{'in all' if gpu.is_integrated else 'free'}: end other programs, or export with --weights int4"
        )
