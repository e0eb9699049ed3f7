# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's CPU kernels for instruction sets that this machine may lack: NEON under qemu, AMX by a stand-in.

The stand-in for AMX (plugins/common/cpu/tile_registers.h) does what Intel's pseudo code of the operations says; no
processor with AMX has run the kernel.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.test_native_attention import CACHES, inputs_of, random_case
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case
from tests.support.attention_checks import check_outputs
from tests.support.attention_host import AttentionHost
from tests.support.host_program import QEMU, settings_for_aarch64
from tests.support.software_tiles import AVX512, require_flags, software_tiles

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


# One worker builds each program.
ON_NEON, WITH_TILES = pytest.mark.xdist_group("attention neon"), pytest.mark.xdist_group("attention tiles")


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


@pytest.fixture(scope="session")
def neon(tmp_path_factory: pytest.TempPathFactory) -> AttentionHost:
    """The kernels for aarch64."""
    return AttentionHost(tmp_path_factory.mktemp("neon"), settings_for_aarch64(), (QEMU,))


@pytest.fixture(scope="session")
def with_tiles(tmp_path_factory: pytest.TempPathFactory) -> AttentionHost:
    """The kernels with AMX's tile registers in memory, chosen as AMX's are."""
    require_flags(AVX512)
    return AttentionHost(tmp_path_factory.mktemp("tiles"), software_tiles())


@ON_NEON
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", UNDER_QEMU, ids=ids(CASES))
def test_neon(neon: AttentionHost, case: Case, cache: str) -> None:
    inputs = inputs_of(case, cache)
    check_outputs(case, inputs, neon(case, inputs))


@WITH_TILES
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_amx(with_tiles: AttentionHost, case: Case) -> None:
    inputs = inputs_of(case, "bfloat16")
    check_outputs(case, inputs, with_tiles(case, inputs))


@WITH_TILES
def test_amx_random_cases(with_tiles: AttentionHost) -> None:
    for seed, case in enumerate(RANDOM):
        inputs = inputs_of(case, "bfloat16", seed)
        check_outputs(case, inputs, with_tiles(case, inputs))


@WITH_TILES
def test_amx_is_what_runs(with_tiles: AttentionHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are rounded otherwise than by vdpbf16ps; caches in float have no tiles."""
    case = BY_NAME["prefill"]
    for cache, has_tiles in (("bfloat16", True), ("float32", False)):
        inputs = inputs_of(case, cache)
        output = with_tiles(case, inputs)[0]
        monkeypatch.setenv("FASTMMOE_CPU_ISA", "avx512_bf16")
        without = with_tiles(case, inputs)[0]
        monkeypatch.setenv("FASTMMOE_CPU_ISA", "amx_bf16")
        np.testing.assert_array_equal(with_tiles(case, inputs)[0], output)
        monkeypatch.delenv("FASTMMOE_CPU_ISA")
        assert (output.tobytes() != without.tobytes()) == has_tiles


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


TILE_OPERATIONS = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps", "tdpbssd")
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
