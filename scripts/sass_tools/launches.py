# SPDX-License-Identifier: Apache-2.0
"""With which grids, blocks and dynamic shared memory the host code launches its kernels, by running it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from sass_tools.binaries import demangle
from sass_tools.toolchain import BUILD, PLUGINS, REPOSITORY, ReportError, find_tool, run

FOLDER = Path(__file__).parent
FLOAT_TYPES = ("float", "half", "bfloat16")  # in the order of FloatType
WEIGHT_FORMATS = SPARSE_MOE.attribute("weight_format").choices  # in the order of WeightFormat
LINEAR_FORMATS = LINEAR.attribute("weight_format").choices


@dataclass(frozen=True)
class MoeCase:
    """Sizes of one call of FmmSparseMoE; letters as in docs/operators.md. Every visual token is a text token."""

    T: int
    H: int
    I: int  # noqa: E741
    E: int
    top_k: int
    weight_format: str = "float"
    group_size: int = 0
    zero_points: int = 0
    dtype: str = "half"

    def line(self) -> str:
        """The case as launches.cpp reads it."""
        kinds = FLOAT_TYPES.index(self.dtype), WEIGHT_FORMATS.index(self.weight_format)
        numbers = (*kinds, self.group_size, self.zero_points, self.T, self.H, self.I, self.E, self.top_k)
        return f"moe {' '.join(map(str, numbers))}"


@dataclass(frozen=True)
class LinearCase:
    """Sizes of one call of FmmLinear with integers."""

    T: int
    K: int
    N: int
    weight_format: str
    group_size: int
    zero_points: int = 0
    dtype: str = "half"

    def line(self) -> str:
        """The case as launches.cpp reads it."""
        kinds = FLOAT_TYPES.index(self.dtype), LINEAR_FORMATS.index(self.weight_format)
        numbers = (*kinds, self.group_size, self.zero_points, self.T, self.K, self.N)
        return f"linear {' '.join(map(str, numbers))}"


@dataclass(frozen=True)
class PruneCase:
    """Sizes of one call of FmmTokenPrune."""

    T: int
    V: int
    K: int
    M: int
    H: int
    E: int
    dtype: str = "half"

    def line(self) -> str:
        """The case as launches.cpp reads it."""
        numbers = (FLOAT_TYPES.index(self.dtype), self.T, self.V, self.K, self.M, self.H, self.E)
        return f"prune {' '.join(map(str, numbers))}"


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of one call of FmmAttention: T rows of one sequence that has `past` in its cache, on a device."""

    T: int
    past: int
    C: int
    N: int
    K: int
    D: int
    value_width: int = 0
    window: int = 0
    dtype: str = "half"
    arch: int = 80

    @property
    def W(self) -> int:  # noqa: N802
        """Width of a value."""
        return self.value_width or self.D

    def line(self) -> str:
        """The case as launches.cpp reads it."""
        numbers = (self.T, self.past, self.C, self.N, self.K, self.D, self.value_width, self.window)
        return f"attention {' '.join(map(str, (self.arch, FLOAT_TYPES.index(self.dtype), *numbers)))}"


Case = MoeCase | LinearCase | PruneCase | AttentionCase


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; shared_bytes is the dynamic shared memory."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int


def cuda_include() -> str:
    """The folder of the CUDA headers."""
    script = REPOSITORY / "scripts" / "build_emulator.sh"
    return run(["bash", script, "--cuda-include"])[0].strip()


def compiler() -> list[str]:
    """The host compiler with the flags that all programs of this folder share."""
    cxx = find_tool("g++", "install g++")
    return [cxx, "-std=c++17", "-O1", "-pthread", f"-I{PLUGINS}", f"-I{FOLDER}", "-isystem", cuda_include()]


@contextmanager
def build_folder() -> Iterator[Path]:
    """A folder in .build that is removed again: two reports may run at the same time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        yield Path(folder)


def run_cases(program: Path, lines: list[str], environment: dict[str, str] | None = None) -> list[list[str]]:
    """What a program made from launches.cpp prints for its input, lines by case."""
    output, _ = run([program], text="\n".join(lines), environment=environment)
    return [part.splitlines() for part in output.split("case\n")[1:]]


def record_launches(objects: list[Path], cases: list[Case]) -> list[list[Launch]]:
    """The launches of each case, in order.

    Args:
        objects: files that nvcc wrote, of any one architecture. Their host code is linked with a CUDA runtime that
            writes down launches (record.cpp), so that nothing about them is written twice.
    """
    with build_folder() as folder:
        program = folder / "record"
        run([*compiler(), FOLDER / "launches.cpp", FOLDER / "record.cpp", *objects, "-o", program])
        found = [[line.split() for line in lines] for lines in run_cases(program, [case.line() for case in cases])]
    symbols = list({words[1] for launches in found for words in launches})
    names = dict(zip(symbols, demangle(symbols), strict=True))
    return [
        [
            Launch(names[symbol], (int(x), int(y), int(z)), int(threads), int(shared_bytes))
            for _, symbol, x, y, z, threads, shared_bytes in launches
        ]
        for launches in found
    ]


def block_shapes(launches: Iterable[Launch]) -> dict[str, tuple[int, int]]:
    """(threads, dynamic shared memory) by kernel; ReportError where they are not the same in all launches."""
    shapes: dict[str, tuple[int, int]] = {}
    for launch in launches:
        shape = launch.threads, launch.shared_bytes
        if shapes.setdefault(launch.kernel, shape) != shape:
            raise ReportError(
                f"{launch.kernel} is launched with {shape} and with {shapes[launch.kernel]} threads and dynamic shared "
                "bytes: the report needs one shape for each kernel"
            )
    return shapes
