# SPDX-License-Identifier: Apache-2.0
"""The built plugin in NVIDIA's own TensorRT runtimes: it loads there, and makes and refuses plugins. No GPU runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.ops import ENGINE_OPS
from fastmmoe.plugins import tensorrt_library_path
from tests.support.attention_cases import SMALL
from tests.support.linear_cases import IN_ROWS
from tests.support.operators import moe_attributes

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]

JETPACK_7 = "10.16.1.11"
NEWEST = "11.4.0.106"
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}
ATTENTION: dict[str, Any] = next(case for case in SMALL if case.name == "window, lse").attributes
REFUSAL = "fastmmoe: FmmTokenPrune: attribute window is -1, expected 1 to 64 (node node)\n"
CROSS_COMPILER = "aarch64-linux-gnu-g++-12"
QEMU = "qemu-aarch64-static"


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def fetch_runtime(*arguments: str) -> Path:
    """The folder of TensorRT's lean runtime."""
    done = run(["bash", str(REPOSITORY / "scripts" / "fetch_tensorrt_lean.sh"), *arguments], PYTHON=sys.executable)
    if done.returncode != 0:
        pytest.skip(f"needs TensorRT's lean runtime: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def built_library(architecture: str, command: str) -> str:
    path = tensorrt_library_path(architecture)
    if not path.is_file():
        pytest.skip(f"needs {path}: {command}")
    return str(path)


@pytest.mark.parametrize("version", [JETPACK_7, NEWEST])
def test_x86_64(version: str) -> None:
    library = built_library("x86_64", "make plugins")
    runtime = fetch_runtime(version)
    linear = IN_ROWS[-1].attributes(64, has_bias=True)
    complete = {
        "FmmSparseMoE": moe_attributes(),
        "FmmTokenPrune": MLERP,
        "FmmAttention": ATTENTION,
        "FmmLinear": linear,
    }
    requests = list(complete.items())
    requests += [(op, {"contract_version": 1, **attributes}) for op, attributes in complete.items()]
    requests.append(("FmmTokenPrune", {**MLERP, "window": -1}))
    done = run(
        [sys.executable, str(HERE / "lean_host.py"), library, *(f"{op}={json.dumps(a)}" for op, a in requests)],
        PYTHONPATH=str(runtime),
    )
    assert done.returncode == 0, done.stderr
    found, *plugins = map(json.loads, done.stdout.splitlines())
    assert found == version
    expected = [
        {
            "name": ["fastmmoe", spec.name, "1"],
            "outputs": len(spec.outputs_for(complete[spec.name])),
            "fields": [attribute.name for attribute in spec.attributes],
        }
        for spec in ENGINE_OPS
    ]
    assert [spec.name for spec in ENGINE_OPS] == list(complete)
    assert plugins == [*expected, *expected, None]
    assert done.stderr == REFUSAL


def test_aarch64(tmp_path: Path, tensorrt_include: str) -> None:
    """The cross-built library in the runtime of JetPack 7, on an emulated processor."""
    library = built_library("aarch64", "scripts/build_plugins.sh --aarch64")
    for tool in (CROSS_COMPILER, QEMU):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    runtime = fetch_runtime(JETPACK_7, "aarch64")
    cuda = run(["bash", str(REPOSITORY / "scripts" / "build_emulator.sh"), "--cuda-include"]).stdout.strip()
    program = tmp_path / "lean_host"
    command = [CROSS_COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", tensorrt_include]
    done = run([*command, "-isystem", cuda, str(HERE / "lean_host.cpp"), "-ldl", "-o", str(program)])
    assert done.returncode == 0, done.stderr
    lean = runtime / "tensorrt_lean_libs" / "libnvinfer_lean.so.10"
    requests = [
        ("FmmSparseMoE", moe_attributes()),
        ("FmmTokenPrune", MLERP),
        ("FmmTokenPrune", {**MLERP, "window": -1}),
    ]
    words = [word for op, attributes in requests for word in (op, *map(as_word, attributes.items()))]
    done = run([QEMU, "-L", "/usr/aarch64-linux-gnu", str(program), str(lean), library, *words])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "TensorRT 101601",
        "FmmSparseMoE 1 outputs",
        "FmmTokenPrune 4 outputs",
        "FmmTokenPrune refused",
    ]
    assert done.stderr == REFUSAL


def as_word(attribute: tuple[str, Any]) -> str:
    """An attribute as lean_host.cpp reads it."""
    name, value = attribute
    return f"{name}={type(value).__name__[0]}{value}"
