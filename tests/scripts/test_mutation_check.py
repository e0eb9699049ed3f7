# SPDX-License-Identifier: Apache-2.0
"""scripts/mutation_check.py: the places that it finds in kernels, and what is left without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scripts import SCRIPTS, script

check = script("mutation_check")
PLUGINS = SCRIPTS.parent / "plugins"
KERNEL = """// __syncthreads(); of a comment
__syncthreads();
if (__syncthreads_or(flag)) copy_async_wait<2>();
  __syncwarp();  // and one more __syncwarp();
copy_async_wait_all();
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Kernels of one operator and a header that both share; what defines the barriers is no place of one."""
    for name in (
        "op/cuda/kernel.cuh",
        "op/cuda/kernel.cu",
        "common/cuda/ptx.cuh",
        "common/cuda/copy.h",
        "op/cpu/kernel.h",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(KERNEL if name == "op/cuda/kernel.cuh" else "__syncthreads();\n")
    (tmp_path / "common" / "cuda" / "ptx.h").write_text("")
    return tmp_path


def test_places_of_barriers_and_waits(folder: Path) -> None:
    found = [(site.name, site.line, site.text) for site in check.sites_of(folder)]
    assert found == [
        ("common/cuda/copy.h#1", 1, "__syncthreads()"),
        ("op/cuda/kernel.cu#1", 1, "__syncthreads()"),
        ("op/cuda/kernel.cuh#1", 2, "__syncthreads()"),
        ("op/cuda/kernel.cuh#2", 3, "__syncthreads_or("),
        ("op/cuda/kernel.cuh#3", 3, "copy_async_wait<2>()"),
        ("op/cuda/kernel.cuh#4", 4, "__syncwarp()"),
        ("op/cuda/kernel.cuh#5", 5, "copy_async_wait_all()"),
    ]


def test_what_is_left_without_a_place(folder: Path) -> None:
    """A vote gives each thread its own value; of the others nothing is left, and the rest of the file stays."""
    sites = {site.name: site for site in check.sites_of(folder)}
    nothing = "static_cast<void>(0)"
    assert sites["op/cuda/kernel.cuh#2"].removed(KERNEL) == KERNEL.replace("__syncthreads_or(", "(")
    assert sites["op/cuda/kernel.cuh#3"].removed(KERNEL) == KERNEL.replace("copy_async_wait<2>()", nothing)
    assert sites["op/cuda/kernel.cuh#1"].removed(KERNEL) == KERNEL.replace("\n__syncthreads()", f"\n{nothing}")


def test_every_place_in_the_kernels_has_tests() -> None:
    sites = check.sites_of(PLUGINS)
    assert len(sites) > 20
    for site in sites:
        assert all((SCRIPTS.parent / test).is_file() for test in check.tests_of(site)), site


def test_reasons_are_of_places_that_there_are() -> None:
    assert check.REDUNDANT.keys() <= {site.name for site in check.sites_of(PLUGINS)}


def test_the_table_says_what_happened() -> None:
    sites = {site.name: site for site in check.sites_of(PLUGINS)}
    known, other = sites[next(iter(check.REDUNDANT))], sites["sparse_moe/cuda/route.cuh#1"]
    lines = check.results_table([(known, True, ""), (other, True, ""), (other, False, "`test_x`")]).splitlines()
    assert lines[2].endswith(f"| no test fails: {check.REDUNDANT[known.name]} |")
    assert lines[3].endswith("| no test fails: no reason known |")
    assert lines[4].endswith("| `test_x` fails |") and f"| `{other.name}` |" in lines[4]
