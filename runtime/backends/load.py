# SPDX-License-Identifier: Apache-2.0
"""The backend that runs a bundle."""

from __future__ import annotations

from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.provider import choose_provider
from fastmmoe.runtime.backends.settings import CPU, CUDA, DEFAULTS, Settings
from fastmmoe.runtime.bundle.verification import Bundle
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.machines.targets import find_target, unknown_target


def load_backend(bundle: Bundle, settings: Settings = DEFAULTS) -> Backend:
    """Its graphs or engines, loaded from the files that were verified.

    Raises:
        BackendMissing: see `check_onnxruntime`, `check_cuda_provider` and `load_engines`.
        InvalidRequest: the provider that is asked for cannot run the bundle.
        BundleMismatch: the bundle is for a target that this version does not know, or a file has changed since it was
            opened; see also `OnnxRuntime` and `load_engines`.
        RunFailed: see `load_engines`.
    """
    directory, manifest = bundle.directory, bundle.manifest
    target = find_target(manifest.target)
    if target is None:
        raise BundleMismatch(f"{directory}: exported for {unknown_target(manifest.target)}")
    backend: Backend
    provider = choose_provider(settings.provider, directory, target)
    if provider == CPU:
        from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime

        backend = OnnxRuntime(directory, manifest, settings)
    elif provider == CUDA:
        from fastmmoe.runtime.backends.cuda_provider import check_cuda_provider

        check_cuda_provider(directory)
        from fastmmoe.runtime.backends.onnxruntime_cuda import CudaOnnxRuntime

        backend = CudaOnnxRuntime(directory, manifest, settings)
    else:
        from fastmmoe.runtime.backends.tensorrt.loading import load_engines

        backend = load_engines(directory, manifest, portable=settings.portable, notes_times=settings.profile)
    try:
        bundle.check_unchanged()
    except BundleMismatch:
        backend.close()
        raise
    return backend
