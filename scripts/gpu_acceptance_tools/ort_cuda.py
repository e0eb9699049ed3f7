# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CUDA provider on a machine that has the CPU package: the provider's library of the GPU package of the
same version registers there (docs/gpu.md says how to bring it).
"""

from __future__ import annotations

import importlib
import importlib.util
import lzma
import shutil
import sys
from pathlib import Path
from typing import Any

from gpu_acceptance_tools.report import Unavailable
from gpu_acceptance_tools.work import REPOSITORY, Work

NAME = "CUDAExecutionProvider"
PROVIDER = "libonnxruntime_providers_cuda.so"
SHARED = "libonnxruntime_providers_shared.so"
CARRIED = REPOSITORY / ".build" / "gpu_acceptance" / "provider"


def onnxruntime(work: Work) -> Any:
    """The module, whose CUDA provider is there. Unavailable: it is not, and why; a rehearsal needs none."""
    if work.is_rehearsal:
        return importlib.import_module("onnxruntime")
    import torch  # noqa: F401  (loads CUDA's libraries and cuDNN)

    if (CARRIED / f"{PROVIDER}.xz").is_file():
        _use_copy(work.scratch)
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise Unavailable(f"onnxruntime: {error}") from error
    if NAME in ort.get_available_providers() or NAME in {device.ep_name for device in ort.get_ep_devices()}:
        return ort
    library = Path(str(ort.__file__)).parent / "capi" / PROVIDER
    if not library.is_file():
        raise Unavailable(f"onnxruntime {ort.__version__} has no CUDA provider, and none was brought")
    try:
        ort.register_execution_provider_library(NAME, str(library))
    except Exception as error:
        raise Unavailable(f"{library.name} cannot be registered: {' '.join(str(error).split())}"[:300]) from error
    if not _devices(ort):
        raise Unavailable(f"{library.name} is registered, and names no device")
    return ort


def _devices(ort: Any) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == NAME]


def _use_copy(scratch: Path) -> None:
    """Have imports find a copy of the package with the carried libraries: what is installed stays as it is."""
    site = scratch / "onnxruntime-cuda"
    if not site.is_dir():
        spec = importlib.util.find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            raise Unavailable("onnxruntime is not installed")
        part = scratch / "onnxruntime-cuda.part"
        shutil.copytree(Path(spec.origin).parent, part / "onnxruntime")
        capi = part / "onnxruntime" / "capi"
        shutil.copy2(CARRIED / SHARED, capi)
        with lzma.open(CARRIED / f"{PROVIDER}.xz") as packed, (capi / PROVIDER).open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 24)
        part.rename(site)
    sys.path.insert(0, str(site))


def session(
    work: Work, ort: Any, model: Path | bytes, *, library: Path | None = None, options: Any = None
) -> tuple[Any, str]:
    """A session on the GPU, and the name of its memory: "cuda", in a rehearsal "cpu".

    Args:
        library: of custom operators.
    """
    options = options or ort.SessionOptions()
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    given = model if isinstance(model, bytes) else str(model)
    if work.is_rehearsal:
        options.intra_op_num_threads = 1
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"]), "cpu"
    if devices := _devices(ort):
        options.add_provider_for_devices(devices[:1], {})
        return ort.InferenceSession(given, options), "cuda"
    return ort.InferenceSession(given, options, providers=[NAME]), "cuda"
