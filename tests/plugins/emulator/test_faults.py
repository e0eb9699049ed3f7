# SPDX-License-Identifier: Apache-2.0
"""Each way in which a kernel can be wrong is seen, and the message says where."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Emulated = Callable[[str], Any]

SHARED_BYTES = 1024
POISON = 0xFFE5FFE5
LOCAL_POISON = 0xFEFEFEFE
AT = r"faults\.cu:\d+"
OUT = np.zeros(256, np.int32)
FULL = "mask 0xffffffff"


def aligned(dtype: Any, count: int) -> npt.NDArray[Any]:
    """Zeros at an address that is a multiple of 16."""
    data = np.zeros(count * np.dtype(dtype).itemsize + 16, np.uint8)
    start = -data.ctypes.data % 16
    return data[start : start + count * np.dtype(dtype).itemsize].view(dtype)


FAULTS = [
    (
        "two_functions",
        (OUT,),
        rf"thread \(16,0,0\): divergent collective: lane 16 reached __shfl_sync with {FULL} at {AT} "
        rf"while lane 0 waits in __ballot_sync with {FULL} at {AT}",
    ),
    (
        "two_masks",
        (OUT,),
        rf"thread \(16,0,0\): divergent collective: lane 16 reached __any_sync with {FULL} at {AT} "
        rf"while lane 0 waits in __any_sync with mask 0x00ffffff at {AT}",
    ),
    (
        "mask_without_caller",
        (OUT,),
        rf"thread \(8,0,0\): __any_sync with mask 0x000000ff at {AT} does not name the calling lane 8",
    ),
    (
        "warp_waits_for_barrier",
        (OUT,),
        rf"deadlock: 32 threads from \(0,0,0\) on wait in __syncthreads at {AT}; "
        rf"16 threads from \(16,0,0\) on wait in __syncwarp with {FULL} at {AT}; "
        rf"16 threads from \(48,0,0\) on wait in __syncwarp with {FULL} at {AT}; 0 of 64 threads have exited",
    ),
    (
        "two_barriers",
        (OUT,),
        rf"thread \(16,0,0\): divergent barrier: reached __syncthreads at {AT} while 16 threads wait in "
        rf"__syncthreads at {AT}",
    ),
    ("read_exited_lane", (OUT,), r"__shfl_sync reads lane 5, which is out of range, has exited or is not in the mask"),
    ("read_unnamed_lane", (OUT,), r"thread \(7,0,0\): __shfl_down_sync reads lane 8, which is out of range"),
    ("bad_width", (OUT,), r"__shfl_sync has width 12, expected 1, 2, 4, 8, 16 or 32"),
    (
        "write_at",
        (SHARED_BYTES // 4 + 1,),
        r"byte 4 behind the 1024 bytes of dynamic shared memory was written",
    ),
    ("write_at", (-1,), r"byte 1 before dynamic shared memory was written"),
    (
        "copy_without_wait",
        (aligned(np.float32, 4),),
        r"thread \(0,0,0\): exits while 1 cp\.async copies are not waited for",
    ),
    (
        "copy_misaligned",
        (aligned(np.float32, 4),),
        rf"cp\.async at {AT}: address 0x\w+ is not a multiple of 16 bytes",
    ),
    (
        "copy_to_global",
        (aligned(np.float32, 4), aligned(np.float32, 4)),
        rf"cp\.async at {AT}: address 0x\w+ is outside of shared memory",
    ),
    ("load_from_global", (aligned(np.float32, 4),), rf"ldmatrix at {AT}: address 0x\w+ is outside of shared memory"),
    (
        "multiply_without_lane",
        (OUT.view(np.float32),),
        rf"thread \(31,0,0\): exits while lanes of its warp wait in mma\.m16n8k16\.f16 at {AT}, which needs all 32",
    ),
    ("large_locals", (OUT, 135_000), r"local variables take more than the \d+ bytes of a stack"),
    ("throwing", (), r"thread \(0,0,0\): threw no room"),
]


@pytest.mark.parametrize(("kernel", "arguments", "message"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_faults(
    emulated: Emulated, kernel_fault: type[Exception], kernel: str, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(kernel_fault) as raised:
        emulated("faults")(f"run_{kernel}", *arguments)
    assert re.match(rf"kernel '{kernel}', block \(0,0,0\)(, thread \(\d+,0,0\))?: ", str(raised.value))
    assert re.search(message, str(raised.value))


def test_the_block_and_thread_are_named(emulated: Emulated, kernel_fault: type[Exception]) -> None:
    for seed in range(3):
        emulated("faults").set(seed=seed)
        with pytest.raises(kernel_fault, match=r"^kernel 'last_block', block \(2,1,0\), thread \(0,1,0\): __any_sync"):
            emulated("faults")("run_last_block")


def test_any_schedule_finds_the_fault(emulated: Emulated, kernel_fault: type[Exception]) -> None:
    library = emulated("faults")
    for seed in range(1, 6):
        library.set(seed=seed)
        with pytest.raises(kernel_fault, match="divergent collective"):
            library("run_two_functions", OUT)
        with pytest.raises(kernel_fault, match="deadlock"):
            library("run_warp_waits_for_barrier", OUT)


def test_a_fault_leaves_the_emulator_usable(emulated: Emulated, kernel_fault: type[Exception]) -> None:
    library = emulated("faults")
    for _ in range(20):
        with pytest.raises(kernel_fault):
            library("run_two_functions", OUT)
        library("run_empty", 1, 1, 64, 1, 1, 0)


def test_missing_barrier_gives_a_wrong_result(emulated: Emulated) -> None:
    library = emulated("faults")
    expected = np.arange(255, -1, -1, dtype=np.float32)
    wrong = []
    for seed in range(4):
        library.set(seed=seed)
        out = np.zeros(256, np.float32)
        library("run_missing_barrier", out)
        wrong.append((out != expected).any())
    assert any(wrong)


def test_seeds_run_different_schedules(emulated: Emulated) -> None:
    library = emulated("faults")
    results: dict[int, bytes] = {}
    for seed in (1, 1, 2, 3, 4, 5, 6, 7, 8):
        library.set(seed=seed)
        out = np.zeros(256, np.float32)
        library("run_missing_barrier", out)
        assert results.setdefault(seed, out.tobytes()) == out.tobytes()
    assert len(set(results.values())) >= 4


def test_missing_copy_wait_gives_poison(emulated: Emulated) -> None:
    a = np.ones((64, 32), np.float16)
    b = np.ones((32, 64), np.float16)
    c = np.zeros((64, 64), np.float32)
    emulated("gemm")("gemm_f16_without_wait", a, b, c, 64, 64, 32)
    assert np.isnan(c).all()


def test_copies_land_with_their_group(emulated: Emulated) -> None:
    source, out = aligned(np.float32, 4), np.zeros((3, 8), np.float32)
    source[:] = [1, 2, 3, 4]
    emulated("faults")("run_copy_late", source, out)
    poison = [POISON] * 4
    first, second = source.view(np.uint32).tolist(), [0] * 4
    assert out.view(np.uint32).tolist() == [poison + poison, first + poison, first + second]


def test_shared_memory_is_poisoned_for_each_block(emulated: Emulated) -> None:
    library = emulated("faults")
    library.set(threads=1)
    out = np.zeros((5, 2), np.float32)
    library("run_unwritten_shared", out, 5)
    assert (out.view(np.uint32) == POISON).all()


def test_local_variables_are_poisoned(emulated: Emulated) -> None:
    out = np.zeros(1, np.int32)
    emulated("faults")("run_unwritten_local", out, 7)
    assert out.view(np.uint32)[0] == LOCAL_POISON


# grid x, grid y, block x, y, z, bytes of dynamic shared memory
LAUNCHES = [
    ((1, 1, 1025, 1, 1, 0), r"block x is 1025, expected 1 to 1024"),
    ((1, 1, 32, 33, 1, 0), r"the number of threads in a block is 1056, expected 1 to 1024"),
    ((1, 1, 1, 1, 65, 0), r"block z is 65, expected 1 to 64"),
    ((0, 1, 32, 1, 1, 0), r"grid x is 0, expected 1 to 2147483647"),
    ((1, 65536, 32, 1, 1, 0), r"grid y is 65536, expected 1 to 65535"),
    ((1, 1, 32, 1, 1, 163 * 1024 + 1), r"dynamic shared memory in bytes on sm_80 is 166913, expected 0 to 166912"),
]


@pytest.mark.parametrize(("shape", "message"), LAUNCHES)
def test_bad_launches(emulated: Emulated, kernel_fault: type[Exception], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(kernel_fault, match=f"kernel 'empty' cannot be launched: {message}"):
        emulated("faults")("run_empty", *shape)


def test_limits_of_an_architecture(
    emulated: Emulated, kernel_fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = emulated("faults")
    launch = ("run_empty", 1, 1, 32, 1, 1, 100 * 1024)
    library(*launch)
    library.set(architecture=120)
    with pytest.raises(kernel_fault, match=r"sm_120 is 102400, expected 0 to 101376"):
        library(*launch)
    library.set(architecture=-1)
    monkeypatch.setenv("FASTMMOE_EMULATOR_ARCH", "86")
    with pytest.raises(kernel_fault, match="sm_86 is 102400"):
        library(*launch)
    monkeypatch.setenv("FASTMMOE_EMULATOR_ARCH", "85")
    with pytest.raises(kernel_fault, match="architecture 85 is not known, expected one of 75 80 86"):
        library(*launch)


def test_seed_from_the_environment(
    emulated: Emulated, kernel_fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = emulated("faults")
    by_call, by_environment = np.zeros(256, np.float32), np.zeros(256, np.float32)
    library.set(seed=7)
    library("run_missing_barrier", by_call)
    library.set(seed=-1)
    monkeypatch.setenv("FASTMMOE_EMULATOR_SEED", "7")
    library("run_missing_barrier", by_environment)
    np.testing.assert_array_equal(by_call, by_environment)
    monkeypatch.setenv("FASTMMOE_EMULATOR_SEED", "seven")
    with pytest.raises(kernel_fault, match="FASTMMOE_EMULATOR_SEED is 'seven', expected a whole number"):
        library("run_missing_barrier", by_environment)
