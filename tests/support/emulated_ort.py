# SPDX-License-Identifier: Apache-2.0
"""The operators for ONNX Runtime's CUDA provider with the emulator's kernels, for sessions of the CPU provider."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "plugins"
SOURCES = (
    "contract/contract.cpp",
    "contract/tables.cpp",
    "attention/node.cpp",
    "linear/node.cpp",
    "sparse_moe/node.cpp",
    "token_prune/node.cpp",
    "onnxruntime/glue.cpp",
    "onnxruntime/infer.cpp",
    "onnxruntime/register.cpp",
    "onnxruntime/cuda/attention_op.cpp",
    "onnxruntime/cuda/library_ops.cpp",
    "onnxruntime/cuda/linear_op.cpp",
    "onnxruntime/cuda/sparse_moe_op.cpp",
    "onnxruntime/cuda/token_prune_op.cpp",
)


def fetch_ort_headers() -> Path:
    """Folder of ONNX Runtime's headers."""
    folder = REPOSITORY / ".build" / "ort_headers"
    _run([str(REPOSITORY / "scripts" / "fetch_ort_headers.sh"), str(folder)])
    return folder / "include" / "onnxruntime"


def build_emulated_ort(folder: Path, headers: Path) -> Path:
    """The library, made in the folder; each source is given its definitions by a file of one line."""
    definitions = '#define ORT_API_MANUAL_INIT\n#define FASTMMOE_VERSION "emulated"\n'
    wrappers = []
    for source in SOURCES:
        wrapper = folder / source.replace("/", "_")
        wrapper.write_text(f'{definitions}#include "{PLUGINS / source}"\n', encoding="utf-8")
        wrappers.append(str(wrapper))
    kernels = sorted(str(path) for path in PLUGINS.glob("*/cuda/*.cu"))
    output = folder / "libfastmmoe_ort_cuda.so"
    command = [str(REPOSITORY / "scripts" / "build_emulator.sh"), str(output), *kernels, *wrappers]
    _run(command, CPLUS_INCLUDE_PATH=str(headers))
    return output


def _run(command: list[str], **environment: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
