# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA sources: registers, spills and shared memory as ptxas says them, instructions as
cuobjdump shows them."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sass_tools.toolchain import BUILD, PLUGINS, ReportError, find_cuobjdump, find_nvcc, find_tool, run

JOBS = 2

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_FUNCTION = re.compile(r"^\s*Function : (\w+)$", re.MULTILINE)
# Address, predicate, operation. An instruction whose predicate is never true is a gap that the compiler leaves.
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?!@!U?PT\b)(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_WIDE = re.compile(r"\.(64|128)\b")


@dataclass(frozen=True)
class KernelCode:
    """One kernel for one architecture.

    Attributes:
        name: as in the source, without namespaces: "down_tiles<half, Tile<16,1,4,4>>".
        symbol: the mangled name.
        arch: 87 for sm_87.
        spilled_bytes: of stores and loads that registers did not suffice for.
        shared_bytes: static ones.
        instructions: how often each operation is in the code, with all that follows its dots: "LDS.64".
    """

    name: str
    symbol: str
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: Counter[str]

    def count(self, operation: str) -> int:
        """How often an operation is in the code, whatever follows its first dot."""
        return sum(n for name, n in self.instructions.items() if name.partition(".")[0] == operation)

    def width(self, operation: str) -> int:
        """The most bytes a lane that an operation loads or stores: 4, or what its name says."""
        names = [name for name in self.instructions if name.partition(".")[0] == operation]
        return max([4, *(int(wide[1]) // 8 for name in names if (wide := _WIDE.search(name)))])


def cuda_sources() -> list[Path]:
    """The sources of all kernels."""
    return sorted(PLUGINS.glob("*/cuda/*.cu"))


def object_name(source: Path) -> str:
    """The name of a source's object file, without its end: sparse_moe-kernel."""
    return f"{source.parents[1].name}-{source.stem}"


def compile_source(source: Path, arch: int, output: Path) -> str:
    """Compile for one architecture, host code included; what ptxas says."""
    flags = ["-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "-I", str(PLUGINS)]
    return run([find_nvcc(), *flags, "-c", source, "-o", output])[1]


def _digest() -> str:
    """Of everything that a compilation reads, but for the toolkit."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + find_nvcc().encode())
    for path in sorted(p for p in PLUGINS.rglob("*") if p.suffix in (".cu", ".cuh", ".h")):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_all(archs: list[int]) -> dict[int, list[Path]]:
    """Object files of all sources by architecture, in .build; those of an earlier run with the same sources stay."""
    digest = _digest()
    folder = BUILD / f"objects-{digest}"
    for outdated in BUILD.glob("objects-*"):
        if outdated != folder:
            shutil.rmtree(outdated)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(source, arch) for arch in archs for source in cuda_sources()]

    def compile_one(task: tuple[Path, int]) -> Path:
        source, arch = task
        output = folder / f"{object_name(source)}-{arch}.o"
        log = output.with_suffix(".log")
        if not log.exists():
            said = compile_source(source, arch, output)
            log.write_text(said, encoding="utf-8")
        return output

    with ThreadPoolExecutor(JOBS) as pool:
        outputs = list(pool.map(compile_one, tasks))
    if _digest() != digest:
        shutil.rmtree(folder)
        raise ReportError("a file in plugins changed while it was being compiled: run the report again")
    return {arch: [o for o, task in zip(outputs, tasks, strict=True) if task[1] == arch] for arch in archs}


def parse_ptxas(log: str) -> dict[str, dict[str, int]]:
    """registers, spilled_bytes and shared_bytes by symbol, from what `ptxas -v` says."""
    starts = [*_ENTRY.finditer(log)]
    ends = [*(match.start() for match in starts), len(log)][1:]
    kernels = {}
    for entry, end in zip(starts, ends, strict=True):
        part = log[entry.start() : end]
        stack, used, shared = _STACK.search(part), _USED.search(part), _SHARED.search(part)
        if stack is None or used is None:
            raise ReportError(f"ptxas says no registers or spills of {entry[1]}: expected the output of ptxas -v")
        kernels[entry[1]] = {
            "registers": int(used[1]),
            "spilled_bytes": int(stack[2]) + int(stack[3]),
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    return kernels


def parse_sass(text: str) -> dict[str, Counter[str]]:
    """Instructions by symbol, from what `cuobjdump -sass` prints."""
    parts = _FUNCTION.split(text)
    return {symbol: Counter(_INSTRUCTION.findall(code)) for symbol, code in zip(parts[1::2], parts[2::2], strict=True)}


def short_name(demangled: str) -> str:
    """The name of a kernel without return type, namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::", "", demangled)
    name = re.sub(r"\b\w+::", "", name)
    name = name.replace("__nv_bfloat16", "bfloat16").replace("__half", "half").replace("(int)", "")
    depth = 0
    for end, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:end]
            break
    name = name.removeprefix("void ")
    return re.sub(r"\s+(?=>)", "", re.sub(r"\b(\d+), (?=\d)", r"\1,", name))


def demangle(symbols: list[str]) -> list[str]:
    """Short names of mangled ones."""
    filt = find_tool("c++filt", "install GNU binutils")
    return [short_name(line) for line in run([filt], text="\n".join(symbols))[0].splitlines()]


def read_kernels(objects: dict[int, list[Path]]) -> list[KernelCode]:
    """All kernels in the object files of `compile_all`, by name, then architecture."""
    kernels = []
    for arch, paths in objects.items():
        for path in paths:
            resources = parse_ptxas(path.with_suffix(".log").read_text(encoding="utf-8"))
            instructions = parse_sass(run([find_cuobjdump(), "-sass", path])[0])
            if resources.keys() != instructions.keys():
                raise ReportError(f"{path.name}: ptxas compiled {len(resources)} kernels, cuobjdump shows others")
            names = demangle(list(resources))
            kernels += [
                KernelCode(name, symbol, arch, instructions=instructions[symbol], **resources[symbol])
                for name, symbol in zip(names, resources, strict=True)
            ]
    if len({(kernel.name, kernel.arch) for kernel in kernels}) < len(kernels):
        raise ReportError("two kernels have the same name without namespaces: rename one of them")
    return sorted(kernels, key=lambda kernel: (kernel.name, kernel.arch))
