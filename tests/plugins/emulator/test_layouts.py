# SPDX-License-Identifier: Apache-2.0
"""Which lane and register holds which element, against the PTX ISA and, where it can be fetched, CuTe."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.types import Array

Emulated = Callable[[str], Any]
# Parts a, b and d, or rows: [32, values], the column-major offset of each value of each lane.
Layouts = dict[str, Array]

REPOSITORY = Path(__file__).resolve().parents[3]
DTYPES: dict[str, Any] = {"multiply_f16": np.float16, "multiply_bf16": ml_dtypes.bfloat16, "multiply_s8": np.int8}
LOADS = [(count, transpose) for count in (1, 2, 4) for transpose in (False, True)]
CUTLASS = "nvidia-cutlass==4.2.0.0"

LANES = np.arange(32)[:, None]


def documented_multiply(name: str) -> Layouts:
    """The fragments of PTX ISA 9.0, sections "Matrix Fragments for mma.m16n8k16" and ".m16n8k32"."""
    group, thread = LANES >> 2, LANES % 4
    d = np.arange(4)
    layouts = {"d": group + 8 * (d >= 2) + 16 * (thread * 2 + (d & 1))}
    if name == "multiply_s8":
        a, b = np.arange(16), np.arange(8)
        row = group + 8 * (((a >= 4) & (a < 8)) | (a >= 12))
        layouts["a"] = row + 16 * (thread * 4 + (a & 3) + 16 * (a >= 8))
        layouts["b"] = group + 8 * (thread * 4 + (b & 3) + 16 * (b >= 4))
    else:
        a, b = np.arange(8), np.arange(4)
        row = group + 8 * (((a >= 2) & (a < 4)) | (a >= 6))
        layouts["a"] = row + 16 * (thread * 2 + (a & 1) + 8 * (a >= 4))
        layouts["b"] = group + 8 * (thread * 2 + (b & 1) + 8 * (b >= 2))
    return layouts


def documented_load(count: int, transpose: bool) -> Array:
    """PTX ISA 9.0, section "ldmatrix"; offsets in rows of 8 elements, matrices behind each other."""
    value = np.arange(2 * count)
    row, column = LANES // 4 + 0 * value, LANES % 4 * 2 + value % 2
    if transpose:
        row, column = column, row
    return (value // 2 * 8 + row) * 8 + column


def check_multiply(library: Any, name: str, layouts: Layouts) -> None:
    """Spread random integer matrices over lanes as the layouts say, multiply, and compare what comes back."""
    dtype = DTYPES[name]
    depth = 32 if dtype == np.int8 else 16
    low, high, total = (-128, 128, np.int32) if dtype == np.int8 else (-8, 9, np.float32)
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(low, high, shape) for shape in ((16, depth), (depth, 8), (16, 8)))
    # CuTe counts elements of A [M, K], of B as [N, K] and of D [M, N], the first index fastest.
    fragment_a = np.ascontiguousarray(a.T).reshape(-1)[layouts["a"]].astype(dtype)
    fragment_b = b.reshape(-1)[layouts["b"]].astype(dtype)
    fragment_d = np.ascontiguousarray(c.T).reshape(-1)[layouts["d"]].astype(total)
    expected = np.ascontiguousarray((a @ b + c).T).reshape(-1)[layouts["d"]]
    library(name, fragment_a.view(np.uint32), fragment_b.view(np.uint32), fragment_d)
    np.testing.assert_array_equal(fragment_d, expected)


def check_load(library: Any, count: int, transpose: bool, offsets: Array) -> None:
    rows = np.random.default_rng(2).permutation(2**16)[: 64 * count].astype(np.uint16)
    fragments = np.zeros((32, count), np.uint32)
    library(f"load_x{count}", rows, fragments, int(transpose))
    np.testing.assert_array_equal(fragments.view(np.uint16), rows[offsets])


@pytest.mark.parametrize("name", DTYPES)
def test_multiply_as_documented(emulated: Emulated, name: str) -> None:
    check_multiply(emulated("fragments"), name, documented_multiply(name))


@pytest.mark.parametrize(("count", "transpose"), LOADS)
def test_load_as_documented(emulated: Emulated, count: int, transpose: bool) -> None:
    check_load(emulated("fragments"), count, transpose, documented_load(count, transpose))


@pytest.mark.parametrize("name", ["multiply_f16", "multiply_bf16"])
def test_every_finite_value_is_read_exactly(emulated: Emulated, name: str) -> None:
    layouts = documented_multiply(name)
    patterns = np.arange(2**16, dtype=np.uint16)
    # The first 32 subnormal and normal numbers of both formats, and numbers from everywhere.
    chosen = np.r_[patterns[:32], patterns[0x0070:0x0090], patterns[0x03F0:0x0410], patterns[:: 2**16 // 512]]
    values = chosen.view(DTYPES[name])
    values = values[np.isfinite(values.astype(np.float32))]
    identity = np.eye(16).reshape(-1)[layouts["a"]].astype(DTYPES[name])
    for start in range(0, len(values) // 128 * 128, 128):
        b = values[start : start + 128].reshape(16, 8)
        d = np.zeros((32, 4), np.float32)
        fragment_b = np.ascontiguousarray(b.reshape(-1)[layouts["b"]])
        emulated("fragments")(name, identity.view(np.uint32), fragment_b.view(np.uint32), d)
        expected = np.ascontiguousarray(b.T).reshape(-1)[layouts["d"]].astype(np.float32)
        np.testing.assert_array_equal(d, expected)


def test_integer_sums_wrap_around(emulated: Emulated) -> None:
    ones = np.full(32 * 16, 1, np.int8)
    d = np.full((32, 4), 2**31 - 1, np.int32)
    emulated("fragments")("multiply_s8", ones.view(np.uint32), ones[: 32 * 8].view(np.uint32), d)
    assert (d == -(2**31) + 31).all()


def fetch_cutlass() -> Path:
    """The folder of the CuTe headers, fetched into .build where they are not yet."""
    directory = REPOSITORY / ".build" / "cutlass"
    include = directory / "cutlass_library" / "source" / "include"
    if not include.is_dir():
        directory.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, CUTLASS]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
                wheel.extractall(Path(temporary) / "unpacked")
            (Path(temporary) / "unpacked").rename(directory)
    return include


@pytest.fixture(scope="module")
def cute_layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layouts]:
    """Name of a function of fragments.cu -> part -> offsets."""
    program = tmp_path_factory.mktemp("cute") / "layouts"
    script = str(REPOSITORY / "scripts" / "build_emulator.sh")
    cuda = subprocess.run([script, "--cuda-include"], check=True, capture_output=True, text=True).stdout.strip()
    # g++ is no CUDA compiler: the headers' warnings about that are not ours.
    command = ["g++", "-std=c++17", "-w", "-I", str(fetch_cutlass()), "-I", cuda, "-I", f"{cuda}/cccl"]
    subprocess.run([*command, str(Path(__file__).with_name("cute_layouts.cpp")), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    offsets: dict[str, dict[str, list[list[int]]]] = {}
    for line in lines:
        key, lane, _, offset = line.split()
        name, part = key.split(".")
        table = offsets.setdefault(name, {}).setdefault(part, [[] for _ in range(32)])
        table[int(lane)].append(int(offset))
    return {name: {part: np.array(table) for part, table in parts.items()} for name, parts in offsets.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", DTYPES)
def test_multiply_as_in_cute(emulated: Emulated, cute_layouts: dict[str, Layouts], name: str) -> None:
    check_multiply(emulated("fragments"), name, cute_layouts[name])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "transpose"), LOADS)
def test_load_as_in_cute(emulated: Emulated, cute_layouts: dict[str, Layouts], count: int, transpose: bool) -> None:
    name = f"load_x{count}" + "_transposed" * transpose
    check_load(emulated("fragments"), count, transpose, cute_layouts[name]["rows"])
