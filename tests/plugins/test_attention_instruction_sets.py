# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's CPU kernels for instruction sets that this machine may lack: NEON under qemu, AMX by a stand-in.

The stand-in for AMX (plugins/attention/cpu/tile_registers.h) does what Intel's pseudo code of the operations says; no
processor with AMX has run the kernel.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.types import Array
from tests.plugins.test_native_attention import CACHES, inputs_of, random_case
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case
from tests.support.attention_checks import check_outputs
from tests.support.attention_host import AttentionHost
from tests.support.host_program import QEMU, settings_for_aarch64

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
BY_NAME = {case.name: case for case in (*SMALL, *OTHER_WIDTHS)}
# Nothing is left of the caches: what is read behind the rows in use is behind the arrays, which end at a page that may
# not be touched.
FULL = (
    replace(BY_NAME["prefill"], name="prefill, full", capacity=70),
    replace(BY_NAME["odd widths"], name="odd widths, full", capacity=25),
    replace(BY_NAME["ragged"], name="decode, full", lengths=(63,), call=((0, 1),)),
)
CASES = (*BY_NAME.values(), *FULL, *LARGE)
SLOW = ("prefill 2048", "prefill 600 after 1000")  # 6 and 27 s under qemu
UNDER_QEMU = [pytest.param(case, marks=pytest.mark.slow) if case.name in SLOW else case for case in CASES]
RANDOM = [random_case(seed) for seed in range(40)]
X86 = ("x86_64", "AMD64", "amd64")
bfloat16 = ml_dtypes.bfloat16


# One worker builds each program.
ON_NEON, WITH_TILES = pytest.mark.xdist_group("attention neon"), pytest.mark.xdist_group("attention tiles")


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


@pytest.fixture(scope="session")
def neon(tmp_path_factory: pytest.TempPathFactory) -> AttentionHost:
    """The kernels for aarch64."""
    return AttentionHost(tmp_path_factory.mktemp("neon"), settings_for_aarch64(), (QEMU,))


@pytest.fixture(scope="session")
def software_tiles(tmp_path_factory: pytest.TempPathFactory) -> AttentionHost:
    """The kernels with AMX's tile registers in memory, chosen as AMX's are."""
    needed = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    found = set(next((line.split() for line in lines if line.startswith("flags")), []))
    if missing := needed - found:
        pytest.skip(f"needs a processor with {' '.join(sorted(missing))}")
    return AttentionHost(tmp_path_factory.mktemp("tiles"), ["-DFASTMMOE_SOFTWARE_TILES=ON"])


@ON_NEON
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", UNDER_QEMU, ids=ids(CASES))
def test_neon(neon: AttentionHost, case: Case, cache: str) -> None:
    inputs = inputs_of(case, cache)
    check_outputs(case, inputs, neon(case, inputs))


@WITH_TILES
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_amx(software_tiles: AttentionHost, case: Case) -> None:
    inputs = inputs_of(case, "bfloat16")
    check_outputs(case, inputs, software_tiles(case, inputs))


@WITH_TILES
def test_amx_random_cases(software_tiles: AttentionHost) -> None:
    for seed, case in enumerate(RANDOM):
        inputs = inputs_of(case, "bfloat16", seed)
        check_outputs(case, inputs, software_tiles(case, inputs))


@WITH_TILES
def test_amx_is_what_runs(software_tiles: AttentionHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are rounded otherwise than by vdpbf16ps; caches in float have no tiles."""
    case = BY_NAME["prefill"]
    for cache, has_tiles in (("bfloat16", True), ("float32", False)):
        inputs = inputs_of(case, cache)
        output = software_tiles(case, inputs)[0]
        monkeypatch.setenv("FASTMMOE_CPU_ISA", "avx512_bf16")
        without = software_tiles(case, inputs)[0]
        monkeypatch.setenv("FASTMMOE_CPU_ISA", "amx_bf16")
        np.testing.assert_array_equal(software_tiles(case, inputs)[0], output)
        monkeypatch.delenv("FASTMMOE_CPU_ISA")
        assert (output.tobytes() != without.tobytes()) == has_tiles


@pytest.fixture(scope="session")
def add_products(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Array, Array, Array], Array]:
    """Function (sums, left, right) -> sums by the stand-in for one tdpbf16ps."""
    library = tmp_path_factory.mktemp("registers") / "libregisters.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-DFASTMMOE_SOFTWARE_TILES", "-DFASTMMOE_ISA=stand_in"]
    source = Path(__file__).with_name("tile_registers_abi.cpp")
    subprocess.run(["c++", *flags, "-I", str(PLUGINS), str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).add_products

    def call(sums: Array, left: Array, right: Array) -> Array:
        result = sums.astype(np.float32).copy()
        arrays = [np.ascontiguousarray(array) for array in (left, right)]
        function(*(ctypes.c_void_p(array.ctypes.data) for array in (result, *arrays)))
        return result

    return call


def expected_products(sums: Array, left: Array, right: Array) -> Array:
    """Intel's pseudo code; left [16, 32], right [16, 16, 2]. Exact where double holds product plus sum."""
    halves = np.zeros((16, 16, 2), np.float32)
    for k in range(16):
        pair = left[:, None, 2 * k : 2 * k + 2].astype(np.float64) * right[k].astype(np.float64)
        halves = (halves.astype(np.float64) + pair).astype(np.float32)
    return sums + (halves[..., 0] + halves[..., 1])


def test_stand_in_rounds_as_the_pseudo_code_does(add_products: Callable[..., Array]) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        left = random.standard_normal((16, 32)).astype(bfloat16)
        right = random.standard_normal((16, 16, 2)).astype(bfloat16)
        sums = random.standard_normal((16, 16)).astype(np.float32)
        np.testing.assert_array_equal(add_products(sums, left, right), expected_products(sums, left, right))


def test_stand_in_has_no_denormal_numbers(add_products: Callable[..., Array]) -> None:
    tiny = float(np.finfo(np.float32).tiny)
    left, right, sums = np.zeros((16, 32), bfloat16), np.zeros((16, 16, 2), bfloat16), np.zeros((16, 16), np.float32)
    left[0, 0], right[0, 0, 0] = tiny / 2, 4.0  # an operand
    left[1, 0], right[0, 1, 0] = tiny, 0.5  # a product, which two halves would make normal
    left[1, 1], right[0, 1, 1] = tiny, 0.5
    left[2, 0], right[0, 2, 0] = tiny, 1.0  # no denormal number
    sums[3, 3] = tiny / 2  # what is added to
    left[4, 0], right[0, 4, 0], sums[4, 4] = -tiny, 1.5, 1.25 * tiny  # the last sum
    assert left[0, 0] != 0
    found = add_products(sums, left, right)
    assert [found[i, i] for i in range(5)] == [0, 0, np.float32(tiny), 0, 0]


def test_only_the_amx_variant_has_its_operations() -> None:
    """Of the library that is shipped: another function that had them would end on most processors."""
    if platform.machine() not in X86:
        pytest.skip(f"needs x86-64, this is {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump: install binutils")
    library = PLUGINS / "lib" / "libfastmmoe_ort.so"
    if not library.is_file():
        pytest.skip("needs plugins/lib/libfastmmoe_ort.so: make native")
    functions = operations_by_function(library)
    for operation, isas in OPERATIONS.items():
        found = {name for name, has in functions.items() if operation in has}
        spaces = {re.search(r"fastmmoe::(\w+)::", name) for name in found}
        assert {space and space[1] for space in spaces} == isas, operation


TILE_OPERATIONS = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps")
OPERATIONS = {name: {"amx_bf16"} for name in TILE_OPERATIONS} | {
    "vdpbf16ps": {"avx512_bf16"},
    "vpdpbusd": {"avx512_vnni", "avx512_bf16"},
    "vpmaddubsw": {"avx2"},
}
"""Operations and the namespaces of all functions that have them."""


def operations_by_function(library: Path) -> dict[str, set[str]]:
    """What is among OPERATIONS in each function of a library."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith(">:"):
            name = line
        words: Any = line.split("\t")
        if len(words) > 1 and words[1].split(" ")[0] in OPERATIONS:
            functions.setdefault(name, set()).add(words[1].split(" ")[0])
    return functions
