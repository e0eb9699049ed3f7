# SPDX-License-Identifier: Apache-2.0
"""The same kernels compile with nvcc, and the emulator passes its tests under the sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
PLUGINS = REPOSITORY / "plugins"
KERNELS = sorted((HERE / "kernels").glob("*.cu"))
SANITIZE = "address,undefined"

# One array too small for the result [64, 64].
OUT_OF_BOUNDS = """
import ctypes, sys
import numpy as np
a, b, c = np.ones((64, 32), np.float16), np.ones((32, 64), np.float16), np.zeros(64 * 64 - 2, np.float32)
pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, c)]
ctypes.CDLL(sys.argv[1]).gemm_f16(*pointers, 64, 64, 32)
"""


@pytest.fixture(scope="session")
def nvcc() -> str:
    """The CUDA compiler: of $CUDA_HOME, else in $PATH."""
    home = os.environ.get("CUDA_HOME")
    path = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if path is None:
        pytest.skip("needs nvcc: set CUDA_HOME or put it in PATH")
    return path


@pytest.mark.parametrize("source", KERNELS, ids=[path.stem for path in KERNELS])
def test_nvcc_compiles_the_test_kernels(nvcc: str, source: Path, tmp_path: Path) -> None:
    command = [nvcc, "-std=c++17", "-arch=sm_80", f"-I{PLUGINS}", "-Werror", "all-warnings", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernel.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_only_one_file_of_each_kind_holds_asm() -> None:
    """PTX's, and that of AMX's tile registers. An empty asm only orders what stands around it."""
    sources = [path for path in PLUGINS.rglob("*") if path.suffix in {".h", ".cuh", ".cu", ".cpp"}]
    assert len(sources) > 10
    has_asm = re.compile(r'\basm\b\s*(volatile)?\s*\((?!"")')
    found = {path.name for path in sources if has_asm.search(path.read_text("utf-8"))}
    assert found == {"ptx.cuh", "tile_registers.h"}


@pytest.fixture
def sanitized_environment() -> dict[str, str]:
    """Variables for a Python that can load libraries built with the sanitizers."""
    command = ["g++", "-print-file-name=libasan.so"]
    asan = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(asan).is_absolute(), f"g++ has no libasan.so: {asan}"
    # Python itself leaks; the C++ library must be loaded before libasan looks for __cxa_throw.
    stdcxx = subprocess.run(["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True)
    return os.environ | {
        "LD_PRELOAD": f"{asan} {stdcxx.stdout.strip()}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FASTMMOE_EMULATOR_SANITIZE": SANITIZE,
    }


@pytest.mark.slow
def test_sanitizers_find_nothing(sanitized_environment: dict[str, str]) -> None:
    files = [str(HERE / f"test_{name}.py") for name in ("kernels", "faults", "layouts")]
    # Stacks are larger under AddressSanitizer, which sees an overflow itself.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "not large_locals", *files]
    done = subprocess.run(
        command, env=sanitized_environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.slow
def test_sanitizer_names_the_line_of_a_bad_store(sanitized_environment: dict[str, str], tmp_path: Path) -> None:
    library, source = tmp_path / "gemm.so", HERE / "kernels" / "gemm.cu"
    build = ["bash", str(REPOSITORY / "scripts" / "build_emulator.sh"), str(library), str(source)]
    subprocess.run(build, env=os.environ | {"FASTMMOE_EMULATOR_SANITIZE": SANITIZE}, check=True)
    command = [sys.executable, "-c", OUT_OF_BOUNDS, str(library)]
    done = subprocess.run(command, env=sanitized_environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert re.search(r"WRITE of size 4.*?gemm\.cu:\d+", done.stderr, re.DOTALL)
