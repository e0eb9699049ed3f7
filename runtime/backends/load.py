# SPDX-License-Identifier: Apache-2.0
"""The backend of a bundle's target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmoe.runtime.backends.settings import DEFAULTS, Settings
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.bundle.verification import Bundle
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.machines.targets import TARGETS

if TYPE_CHECKING:
    from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime

BACKEND = "onnxruntime"


def runs_here(manifest: Manifest) -> bool:
    """Whether this version runs bundles of the manifest's target."""
    return manifest.target in TARGETS and TARGETS[manifest.target].backend == BACKEND


def load_backend(bundle: Bundle, settings: Settings = DEFAULTS) -> OnnxRuntime:
    """Its graphs, loaded from the files that were verified.

    Raises:
        BackendMissing: see `check_onnxruntime`.
        BundleMismatch: the bundle is for a target whose engines this version does not run, or a file has changed since
            it was opened; see also `OnnxRuntime`.
    """
    target = bundle.manifest.target
    if not runs_here(bundle.manifest):
        runnable = " or ".join(name for name, known in TARGETS.items() if known.backend == BACKEND)
        raise BundleMismatch(
            f"{bundle.directory}: exported for {target}, which needs TensorRT engines built on the device; "
            f"this version runs bundles exported with --target {runnable}"
        )
    from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime

    backend = OnnxRuntime(bundle.directory, bundle.manifest, settings)
    bundle.check_unchanged()
    return backend
