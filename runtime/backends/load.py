# SPDX-License-Identifier: Apache-2.0
"""The backend of a bundle's target."""

from __future__ import annotations

from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.settings import DEFAULTS, Settings
from fastmmoe.runtime.bundle.verification import Bundle
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.machines.targets import find_target, unknown_target


def load_backend(bundle: Bundle, settings: Settings = DEFAULTS) -> Backend:
    """Its graphs or engines, loaded from the files that were verified.

    Raises:
        BackendMissing: see `check_onnxruntime` and `load_engines`.
        BundleMismatch: the bundle is for a target that this version does not know, or a file has changed since it was
            opened; see also `OnnxRuntime` and `load_engines`.
        RunFailed: see `load_engines`.
    """
    directory, manifest = bundle.directory, bundle.manifest
    target = find_target(manifest.target)
    if target is None:
        raise BundleMismatch(f"{directory}: exported for {unknown_target(manifest.target)}")
    backend: Backend
    if target.backend == "onnxruntime":
        from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime

        backend = OnnxRuntime(directory, manifest, settings)
    else:
        from fastmmoe.runtime.backends.tensorrt.loading import load_engines

        backend = load_engines(directory, manifest, portable=settings.portable)
    bundle.check_unchanged()
    return backend
