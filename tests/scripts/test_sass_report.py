# SPDX-License-Identifier: Apache-2.0
"""scripts/sass_report.py: occupancy, bank conflicts, what it reads from the compiler, and the estimates."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.errors import FastmmoeError
from fastmmoe.runtime.machines.devices import DEVICES, Device
from tests.support.scripts import script

REPOSITORY = Path(__file__).resolve().parents[2]
PRUNE_KERNEL = REPOSITORY / "plugins" / "token_prune" / "cuda" / "kernel.cu"

report = script("sass_report")
banks, binaries, launches, linear, occupancy, roofline, tables, toolchain = (
    script(f"sass_tools.{name}")
    for name in ("banks", "binaries", "launches", "linear", "occupancy", "roofline", "tables", "toolchain")
)

# Reads `arch registers threads static dynamic` lines, prints blocks per multiprocessor.
OCCUPANCY_PROGRAM = """
#include <cuda_runtime.h>
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int arch, registers, threads, warps, shared, fixed, dynamic;
  while (std::scanf("%d %d %d %d %d %d %d", &arch, &warps, &shared, &registers, &threads, &fixed, &dynamic) == 7) {
    cudaOccDeviceProp device;
    device.computeMajor = arch / 10;
    device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = shared;
    device.sharedMemPerBlockOptin = shared - 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = fixed;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = dynamic;
    const cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic)) return 1;
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""

# In place of the kernels that take longer to compile.
OTHER_OPERATORS = """
#include <stdexcept>
#include "attention/cuda/kernel.h"
#include "linear/cuda/kernel.h"
#include "sparse_moe/cuda/kernel.h"
size_t fastmmoe::attention_workspace_bytes(const AttentionParams&) { return 0; }
void fastmmoe::launch_attention(const AttentionParams&, void*, cudaStream_t) {
  throw std::runtime_error("no FmmAttention here");
}
void fastmmoe::launch_linear(const LinearKernelParams&, cudaStream_t) {
  throw std::runtime_error("no FmmLinear here");
}
size_t fastmmoe::sparse_moe_workspace_bytes(const SparseMoeKernelParams&) { return 0; }
void fastmmoe::launch_sparse_moe(const SparseMoeKernelParams&, void*, cudaStream_t) {
  throw std::runtime_error("no FmmSparseMoE here");
}
"""

PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_87'
ptxas info    : Function properties for _Z5firstPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 37 registers, used 0 barriers, 632 bytes cmem[0]
ptxas info    : Compiling entry function '_Z6secondPf' for 'sm_87'
ptxas info    : Function properties for _Z6secondPf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 18560 bytes smem, 632 bytes cmem[0]
"""

SASS = """
	code for sm_87
		Function : _Z5firstPf
	.headerflags	@"EF_CUDA_SM87"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                 /* 0x00000a0000017a02 */
                                                                          /* 0x000fc40000000f00 */
        /*0010*/              @!PT LDS RZ, [RZ] ;                         /* 0x00000000fffff984 */
        /*0020*/               @P0 LDS.128 R4, [R2] ;                     /* 0x0000000002047984 */
        /*0030*/             @!UP1 HMMA.16816.F32 R4, R8, R12, R4 ;       /* 0x0000000c0804723c */
        /*0040*/                   HMMA.16816.F32 R4, R8, R14, R4 ;       /* 0x0000000e0804723c */
		Function : _Z6secondPf
        /*0000*/                   LDGSTS.E.BYPASS.128 [R15], [R8.64], P1 ;  /* 0x00000000080f7fae */
        /*0010*/                   STS [R15], R3 ;                        /* 0x00000000080f7fae */
"""

LINES_OF_C_PLUS_PLUS_FILT = {
    "void fastmmoe::sparse_moe::down_tiles<fastmmoe::sparse_moe::Int4Weights<__half>, fastmmoe::sparse_moe::Tile<16, "
    "1, 4, 4> >(fastmmoe::SparseMoeKernelParams, fastmmoe::sparse_moe::Workspace)": (
        "down_tiles<Int4Weights<half>, Tile<16,1,4,4>>"
    ),
    "fastmmoe::(anonymous namespace)::score_tokens(fastmmoe::TokenPruneParams, int)": "score_tokens",
    "void fastmmoe::token_prune::gather_rows<__nv_bfloat16, uint4>(fastmmoe::TokenPruneParams)": (
        "gather_rows<bfloat16, uint4>"
    ),
}

BEGIN, END = "<!-- sass_report -->", "<!-- end of sass_report -->"


@pytest.mark.parametrize(("arch", "percent"), [(80, 31.25), (87, 41.67), (89, 25.0), (90, 31.25)])
def test_known_occupancy(arch: int, percent: float) -> None:
    assert 100 * occupancy.occupancy(arch, 92, 128, 29184) == pytest.approx(percent, abs=0.01)


def test_occupancy_is_that_of_cuda_occupancy_h(tmp_path: Path) -> None:
    """Also for blocks that do not fit, and for numbers of warps that the partitions cannot share evenly."""
    include = launches.cuda_include()
    if not (Path(include) / "cuda_occupancy.h").is_file():
        pytest.skip("needs cuda_occupancy.h, which is in a CUDA toolkit but not in the package of its headers")
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(OCCUPANCY_PROGRAM, encoding="utf-8")
    toolchain.run([*launches.compiler(), source, "-o", program])
    numbers = random.Random(1)
    cases = []
    for _ in range(3000):
        arch = numbers.choice(list(occupancy.LIMITS))
        static, dynamic = numbers.choice((0, 160, 18560)), numbers.choice((0, numbers.randrange(240_000)))
        cases.append((arch, numbers.randint(1, 255), numbers.randint(1, 1024), static, dynamic))
    limits = occupancy.LIMITS
    lines = [f"{case[0]} {limits[case[0]].warps} {limits[case[0]].shared_bytes} {case[1]} {case[2]}" for case in cases]
    text = "\n".join(f"{line} {case[3]} {case[4]}" for line, case in zip(lines, cases, strict=True))
    expected = [int(line) for line in toolchain.run([program], text=text)[0].split()]
    ours = [occupancy.blocks_per_multiprocessor(a, r, t, static + dynamic) for a, r, t, static, dynamic in cases]
    assert ours == expected
    assert {0, 1, 2, 3} < set(ours)


@pytest.mark.parametrize(
    ("offsets", "size", "steps", "least"),
    [
        ([4 * lane for lane in range(32)], 4, 1, 1),
        ([0] * 32, 4, 1, 1),  # the same word for all
        ([32 * lane for lane in range(32)], 4, 8, 1),
        ([128 * lane for lane in range(32)], 4, 32, 1),
        ([8 * lane for lane in range(32)], 8, 2, 2),
        ([16 * lane for lane in range(32)], 16, 4, 4),
        ([64 * lane for lane in range(32)], 16, 16, 4),  # rows of 32 halves, not swizzled
        ([64 * lane + 16 * (lane // 2 % 4) for lane in range(32)], 16, 4, 4),  # swizzled
        ([0, 128, *[-1] * 30], 4, 2, 1),
        ([*range(0, 128, 16), *[-1] * 24], 16, 1, 1),  # one matrix
        ([2 * lane for lane in range(32)], 1, 1, 1),
    ],
)
def test_steps_of_shared_memory(offsets: list[int], size: int, steps: int, least: int) -> None:
    assert banks.count_steps(offsets, size) == (steps, least)


def test_ptxas_output() -> None:
    assert binaries.parse_ptxas(PTXAS) == {
        "_Z5firstPf": {"registers": 37, "spilled_bytes": 0, "shared_bytes": 0},
        "_Z6secondPf": {"registers": 255, "spilled_bytes": 20, "shared_bytes": 18560},
    }
    with pytest.raises(toolchain.ReportError, match="no registers or spills of _Z6secondPf"):
        binaries.parse_ptxas(PTXAS.replace("Used 255", "Use 255"))


def test_a_source_without_kernels() -> None:
    assert binaries.parse_ptxas("ptxas info    : 0 bytes gmem\n") == {}
    assert binaries.demangle([]) == []


def test_sass() -> None:
    """Instructions with a predicate count, those that never run do not."""
    first, second = binaries.parse_sass(SASS).values()
    assert first == Counter({"HMMA.16816.F32": 2, "LDS.128": 1, "MOV": 1})
    kernels = [binaries.KernelCode("k", "k", 87, 1, 0, 0, instructions) for instructions in (first, second)]
    assert [kernel.count("HMMA") for kernel in kernels] == [2, 0]
    assert [kernel.count("STS") for kernel in kernels] == [0, 1]
    assert [kernel.width("LDS") for kernel in kernels] == [16, 4]


@pytest.mark.parametrize(("demangled", "name"), LINES_OF_C_PLUS_PLUS_FILT.items())
def test_names(demangled: str, name: str) -> None:
    assert binaries.short_name(demangled) == name


def test_one_kernel_has_one_shape() -> None:
    launch = launches.Launch("k", (1, 1, 1), 128, 0)
    assert launches.block_shapes([launch, launch]) == {"k": (128, 0)}
    with pytest.raises(toolchain.ReportError, match=r"k is launched with \(256, 0\) and with \(128, 0\)"):
        launches.block_shapes([launch, launches.Launch("k", (1, 1, 1), 256, 0)])


def test_expected_experts_and_tiles() -> None:
    """Against all routings of three tokens to two of four experts."""
    case = launches.MoeCase(T=3, H=16, I=16, E=4, top_k=2)
    choices = list(itertools.combinations(range(4), 2))
    used, tiles = [], []
    for routing in itertools.product(choices, repeat=3):
        rows = Counter(itertools.chain.from_iterable(routing))
        used.append(len(rows))
        tiles.append(sum(math.ceil(count / 2) for count in rows.values()))
    assert roofline.used_experts(case) == pytest.approx(sum(used) / len(used))
    assert roofline.expected_tiles(case, 2) == pytest.approx(sum(tiles) / len(tiles))
    everything = launches.MoeCase(T=5, H=16, I=16, E=4, top_k=4)
    assert roofline.expected_tiles(everything, 2) == 12


CASE = launches.MoeCase(T=1, H=2048, I=1408, E=64, top_k=6)
FP16, INT8, INT4 = roofline.WEIGHTS


def test_work_of_one_token() -> None:
    """Six experts of three matrices, read once."""
    gate_up = launches.Launch("gate_up_few<half>", (6, 176, 1), 256, 0)
    work = roofline.work_of(gate_up, CASE, FP16, uses_tensor_cores=False)
    assert work.bytes == pytest.approx(6 * 2 * 1408 * 2048 * 2 + 2 * (2048 + 6 * 1408))
    assert work.operations == 2 * 6 * 2 * 1408 * 2048
    assert work.blocks == 6 * 176
    down = launches.Launch("down_few<Int4Weights<half>>", (128, 1, 1), 256, 0)
    work = roofline.work_of(down, CASE, INT4, uses_tensor_cores=True)
    assert work.bytes == pytest.approx(6 * 1408 * 2048 * (0.5 + 2 / 128) + 2 * (6 * 1408 + 2048))
    assert (work.phase, work.blocks, work.uses_tensor_cores) == ("down", 128, True)


def test_work_of_tiles() -> None:
    """Rows that only fill up a tile are multiplied too; the grid must be that of the tiles."""
    case = launches.MoeCase(T=64, H=2048, I=1408, E=64, top_k=6)
    launch = launches.Launch("down_tiles<Int8Weights<half>, Tile<16,1,4,4>>", (84, 16, 1), 128, 21504)
    work = roofline.work_of(launch, case, INT8, uses_tensor_cores=True)
    tiles = roofline.expected_tiles(case, 16)
    assert 63 < tiles < 66
    assert work.operations == pytest.approx(2 * 16 * tiles * 1408 * 2048)
    assert work.blocks == math.ceil(16 * tiles)
    other = launches.Launch(launch.kernel, (85, 16, 1), 128, 21504)
    with pytest.raises(toolchain.ReportError, match=r"has 85 blocks in x .* expected 84 tiles of 16 rows"):
        roofline.work_of(other, case, INT8, uses_tensor_cores=True)


def test_estimate() -> None:
    device = Device("d", 87, 8, 1.0, fp16_tflops=16, int8_tops=None, gb_per_s=100, memory_gb=8, shared_kb_per_sm=164)
    work = roofline.Work("down", bytes=1e6, operations=16e6, uses_tensor_cores=True, blocks=16)
    assert roofline.estimate(work, device) == roofline.Estimate("down", 10.0, 1.0)
    # Without tensor cores 8 multiprocessors do 128 multiply-adds each in a cycle of 1 ns.
    without = roofline.Work("down", bytes=0, operations=2048e3, uses_tensor_cores=False, blocks=8)
    assert roofline.estimate(without, device).us == pytest.approx(1.0)
    # Nine blocks take as long as sixteen; one block has one multiprocessor's share.
    for blocks, factor in ((9, 16 / 9), (1, 8), (8, 1)):
        uneven = roofline.Work("down", bytes=1e6, operations=0, uses_tensor_cores=True, blocks=blocks)
        assert roofline.estimate(uneven, device).us == pytest.approx(10 * factor)


def test_linear_layers() -> None:
    """Those of Qwen3-30B-A3B: query, key, value and output in 48 layers, and the head, which int4 stores as int8."""
    weights = {w.name: w for w in roofline.WEIGHTS}
    of_call = list(linear.products("InternVL3.5-30B-A3B", weights["int4"], 512))
    assert [(p.N, p.K, p.rows, p.weights.name, p.count) for p in of_call] == [
        (4096, 2048, 512, "int4", 48),
        (512, 2048, 512, "int4", 48),
        (512, 2048, 512, "int4", 48),
        (2048, 4096, 512, "int4", 48),
        (151936, 2048, 1, "int8", 1),
    ]
    product, orin = linear.Product(2048, 512, 1, weights["int4"], 48), DEVICES["agx-orin-64gb"]
    launched = {product.case: [launches.Launch("linear_few<Int4Weights<half>>", (32, 1, 1), 256, 0)]}
    bytes_moved = 512 * (2048 / 2 + 2048 / 128 * 2) + 2 * (2048 + 512)
    assert linear.time_of(product, launched, orin).us == pytest.approx(bytes_moved / (orin.gb_per_s * 1e3))
    many = linear.Product(2048, 512, 70, weights["int4"], 48)
    launched = {many.case: [launches.Launch("linear_tiles<Int4Weights<half>, Tile<64,2,2,4,3>>", (2, 4, 1), 128, 0)]}
    # 8 blocks of 16 multiprocessors, on rows that fill two tiles.
    operations = 2 * 128 * 512 * 2048 * 16 / 8
    assert linear.time_of(many, launched, orin).compute_us == pytest.approx(operations / (orin.fp16_tflops * 1e6))


def test_unknown_kernels_are_refused() -> None:
    code = binaries.KernelCode("gate_up_new<half>", "s", 87, 1, 0, 0, Counter())
    with pytest.raises(toolchain.ReportError, match="launches gate_up_new<half>: add one to EVERY_KERNEL"):
        report.check_kernels([code], [])
    launch = launches.Launch("softmax_new", (1, 1, 1), 32, 0)
    unknown = binaries.KernelCode("softmax_new", "s", 87, 1, 0, 0, Counter())
    with pytest.raises(FastmmoeError, match="kernel softmax_new belongs to no phase"):
        report.check_kernels([unknown], [[launch]])


def test_all_kernels_in_the_sources_have_a_phase_and_are_in_the_document() -> None:
    text = "".join(path.read_text("utf-8") for path in (REPOSITORY / "plugins").glob("*/cuda/*.cu*"))
    names = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text)
    assert len(names) > 8
    assert {roofline.phase_of(name) for name in names} == {
        *roofline.MOE_PHASES,
        *roofline.ATTENTION_PHASES,
        roofline.PRUNE,
        roofline.LINEAR,
    }
    tables = (REPOSITORY / "docs" / "kernel-report.md").read_text("utf-8").partition(BEGIN)[2]
    assert set(re.findall(r"^\| `(\w+)", tables, re.MULTILINE)) == set(names)


def sample(spilled_bytes: int) -> tuple[list[Any], list[Any]]:
    """A report on one kernel and one device."""
    code = binaries.KernelCode("down_few<half>", "s", 87, 92, spilled_bytes, 0, Counter({"HMMA.16816.F32": 4}))
    time = roofline.Estimate("down", 20.0, 1.0)
    layer_time = tables.LayerTime(roofline.LAYERS[0], FP16, 1, DEVICES[report.PHASES_ON], (time,))
    return [tables.KernelRow(code, 128, 29184, banks.Conflicts(3, 2))], [layer_time]


@pytest.mark.parametrize("spilled_bytes", [0, 8])
def test_spills_are_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, spilled_bytes: int
) -> None:
    rows, times = sample(spilled_bytes)
    for name in ("compile_all", "read_kernels", "record_launches", "check_kernels"):
        monkeypatch.setattr(report, name, lambda *arguments: {87: []})
    monkeypatch.setattr(report, "kernel_rows", lambda *arguments: rows)
    monkeypatch.setattr(report, "layer_times", lambda *arguments: times)
    monkeypatch.setattr(report, "linear_times", lambda *arguments: "a table of linear layers")
    monkeypatch.setattr(report, "attention_times", lambda *arguments: "a table of attention")
    document = tmp_path / "kernels.md"
    document.write_text(f"before\n{BEGIN}\nthe former table\n{END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sass_report.py", "--arch", "87", "--write", str(document)])
    assert report.main() == (1 if spilled_bytes else 0)
    assert ("spills: down_few<half> on sm_87" in capsys.readouterr().err) == bool(spilled_bytes)
    text = document.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert "the former table" not in text
    assert "| `down_few<F>` | 128 | 29184 | 92, 5 (42%) | 4 | 0 | 0 | 0 | 0 | 1.50 |" in text
    assert "| DeepSeek-VL2-small | fp16 | 1 | 20 |" in text
    assert "a table of linear layers" in text and "a table of attention" in text
    assert "Memory decides 1 of the 1 estimates, computing 0." in text
    document.write_text("no markers", encoding="utf-8")
    assert report.main() == 2
    assert "put the two lines where the tables belong" in capsys.readouterr().err


def test_token_prune_from_source_to_bank_conflicts(tmp_path: Path) -> None:
    """What ptxas, cuobjdump, the host code and the emulator say of real kernels fits together."""
    home = os.environ.get("CUDA_HOME")
    if shutil.which("nvcc", path=f"{home}/bin" if home else None) is None:
        pytest.skip("needs nvcc: set CUDA_HOME or put it in PATH")
    output = tmp_path / "token_prune.o"
    output.with_suffix(".log").write_text(binaries.compile_source(PRUNE_KERNEL, 87, output), encoding="utf-8")
    kernels = binaries.read_kernels({87: [output]})
    assert len(kernels) == 8
    assert {kernel.spilled_bytes for kernel in kernels} == {0}
    assert all(16 <= kernel.registers <= 128 and sum(kernel.instructions.values()) > 100 for kernel in kernels)
    stub = tmp_path / "stub.cpp"
    stub.write_text(OTHER_OPERATORS, encoding="utf-8")
    cases = [launches.PruneCase(100, 90, 40, 5, H, 64) for H in (64, 31)]
    found = launches.record_launches([output, stub], cases)
    names = ["score_tokens", "choose_survivors", "gather_rows<half, uint4>"]
    assert [launch.kernel for launch in found[0]] == names
    assert [launch.kernel for launch in found[1]] == [*names[:2], "gather_rows<half, half>"]
    assert [(launch.grid, launch.threads) for launch in found[0][:2]] == [((3, 1, 1), 256), ((1, 1, 1), 512)]
    conflicts = banks.trace_conflicts([PRUNE_KERNEL, stub], kernels, cases, found)
    assert conflicts.keys() == {*names, "gather_rows<half, half>"}
    assert conflicts["score_tokens"].factor == 1
    assert 1 < conflicts["choose_survivors"].factor < 3


def test_what_a_program_says_is_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(toolchain.ReportError, match=r"python.* failed .*: no such case"):
        toolchain.run([sys.executable, "-c", "import sys; sys.exit('no such case')"])
    command = [sys.executable, str(REPOSITORY / "scripts" / "sass_report.py"), "--arch", "42"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 42" in done.stderr
