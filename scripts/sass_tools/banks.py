# SPDX-License-Identifier: Apache-2.0
"""Bank conflicts of shared memory, counted on the addresses that the kernels access when the emulator runs them.

An estimate: the addresses are those that g++'s code for the source accesses, and which of them one instruction of
nvcc's code accesses is inferred (trace.cpp). Accesses of 16 bytes a lane are taken to need four steps of 8 lanes, those
of 8 two steps of 16, smaller ones one step, and a step is repeated as often as the busiest bank has different words.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sass_tools.binaries import KernelCode, object_name
from sass_tools.launches import FOLDER, Case, Launch, build_folder, compiler, run_cases
from sass_tools.toolchain import REPOSITORY, ReportError, run

LANES = 32
BANKS = 32
WORD = 4
ABSENT = -1

# What trace.cpp stands between: the three functions of the emulator by their mangled names.
WRAPPED = (
    "_ZN8fastmmoe8emulator6launchEPKc4dim3S3_mRKSt8functionIFvvEE",
    "_ZN8fastmmoe8emulator10copy_asyncEPvPKvbNS0_4SiteE",
    "_ZN8fastmmoe8emulator11load_matrixEPjjbPKvNS0_4SiteE",
)


@dataclass(frozen=True)
class Conflicts:
    """Steps that the accesses of a kernel's run take, and how many they would without conflicts."""

    steps: int
    least: int

    @property
    def factor(self) -> float:
        """1 without conflicts."""
        return self.steps / self.least


def count_steps(offsets: list[int], size: int) -> tuple[int, int]:
    """(steps, least steps) of one access of a warp.

    Args:
        offsets: byte offset of each of the 32 lanes, `ABSENT` for lanes that do not take part.
        size: bytes a lane, 1 to 16.
    """
    lanes_at_once = LANES * WORD // max(size, WORD)
    steps = least = 0
    for first in range(0, LANES, lanes_at_once):
        words = {
            word
            for offset in offsets[first : first + lanes_at_once]
            if offset != ABSENT
            for word in range(offset // WORD, (offset + size - 1) // WORD + 1)
        }
        by_bank: dict[int, int] = defaultdict(int)
        for word in words:
            by_bank[word % BANKS] += 1
        steps += max(by_bank.values(), default=0)
        least += bool(words)
    return steps, least


def _build(sources: list[Path], folder: Path) -> Path:
    run(["bash", REPOSITORY / "scripts" / "build_emulator.sh"])
    emulated = [*compiler(), "-DFASTMMOE_EMULATOR", "-fno-tree-vectorize", "-ffp-contract=off"]
    objects = [folder / f"{object_name(source)}.o" for source in sources]
    for source, output in zip(sources, objects, strict=True):
        run([*emulated, "-fsanitize=thread", "-x", "c++", "-c", source, "-o", output])
    program = folder / "trace"
    wraps = [f"-Wl,--wrap={symbol}" for symbol in WRAPPED]
    archive = REPOSITORY / ".build" / "emulator" / "libfastmmoe_emulator.a"
    run([*emulated, FOLDER / "launches.cpp", FOLDER / "trace.cpp", *objects, *wraps, archive, "-o", program])
    return program


def _add_case(totals: dict[str, list[int]], lines: list[str], launches: list[Launch]) -> None:
    """Add the accesses of one case, as trace.cpp prints them."""
    names = iter(launches)
    total = [0, 0]
    for words in map(str.split, lines):
        if words[0] == "launch":
            kernel = next(names).kernel
            if kernel.partition("<")[0] not in words[1]:
                raise ReportError(f"the emulator launched {words[1]} where nvcc's host code launches {kernel}")
            total = totals[kernel]
            continue
        _, _, size, count, *offsets = words
        steps, least = count_steps([int(offset) for offset in offsets], int(size))
        total[0] += steps * int(count)
        total[1] += least * int(count)


def trace_conflicts(
    sources: list[Path], kernels: list[KernelCode], cases: list[Case], launches: list[list[Launch]]
) -> dict[str, Conflicts]:
    """Conflicts by kernel, for those that access shared memory.

    Args:
        sources: of the kernels, to be compiled against the emulator.
        kernels: what nvcc made of them.
        cases: only those that launch a kernel which none before them launches are run.
        launches: of the same cases, from `record_launches`, which knows the kernels' whole names.
    """
    widths = {kernel.name: f"{kernel.width('LDS')} {kernel.width('STS')}" for kernel in kernels}
    known: set[str] = set()
    lines, their_launches = [], []
    for case, of_case in zip(cases, launches, strict=True):
        if not known.issuperset(launch.kernel for launch in of_case):
            lines += [f"widths {' '.join(widths[launch.kernel] for launch in of_case)}", case.line()]
            their_launches.append(of_case)
            known.update(launch.kernel for launch in of_case)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with build_folder() as folder:
        settings = {"FASTMMOE_EMULATOR_THREADS": "1", "FASTMMOE_EMULATOR_SEED": "0"}
        outputs = run_cases(_build(sources, folder), lines, settings)
    for output, of_case in zip(outputs, their_launches, strict=True):
        _add_case(totals, output, of_case)
    return {kernel: Conflicts(*total) for kernel, total in totals.items() if total[1]}
