# SPDX-License-Identifier: Apache-2.0
"""Report on the CUDA kernels without a GPU: what the compiler made of them, and the least time a layer takes.

    python scripts/sass_report.py [--arch 87 ...] [--write FILE]

Needs g++, cmake and binutils; nvcc 13 and cuobjdump come from pip where they are not installed. Prints every kernel on
every architecture, then estimates for every device; --write puts shorter tables between the markers
`<!-- sass_report -->` and `<!-- end of sass_report -->` of FILE instead. The exit code is 1 if a kernel spills.
Where every number comes from: docs/kernels.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from markers import write_part
from sass_tools import attention, linear
from sass_tools.banks import trace_conflicts
from sass_tools.binaries import KernelCode, compile_all, cuda_sources, read_kernels
from sass_tools.launches import (
    AttentionCase,
    Case,
    Launch,
    LinearCase,
    MoeCase,
    PruneCase,
    block_shapes,
    record_launches,
)
from sass_tools.occupancy import LIMITS
from sass_tools.roofline import LAYERS, WEIGHTS, case_of, estimate, phase_of, work_of
from sass_tools.tables import (
    KernelRow,
    LayerTime,
    bound_line,
    compact_kernel_table,
    device_table,
    full_kernel_table,
    phase_table,
    roofline_table,
)
from sass_tools.toolchain import ReportError

from fastmmoe.runtime.errors import FastmmoeError
from fastmmoe.runtime.machines.devices import DEVICES

TOKENS = (1, 64, 512, 2048)
ROOFLINE_DEVICES = ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb", "a100-sxm-80gb", "l4", "h100-sxm")
PHASES_ON = "agx-orin-64gb"  # the device whose phases --write shows
MARKER = "sass_report"

CODE_CAPTION = (
    "F is float16 or bfloat16; where they differ, the one with more registers is shown. threads, shared: of a block, "
    "shared memory in bytes. sm_80 and so on: registers of a thread, blocks that a multiprocessor holds (share of its "
    "warps). Then how often an instruction is in the code; a range where types or architectures differ. conflicts: "
    "steps that shared memory needs over the least number, an estimate."
)
TIME_CAPTION = (
    "In parentheses: the routed experts of the whole model do not fit into the device's memory. "
    "c: computing takes longer than memory. "
)
LINEAR_TITLE = "## ESTIMATE: the least time of a call's linear layers in microseconds (never run on a GPU)"
LINEAR_CAPTION = (
    "Those of the language model, int8 and int4 by FmmLinear, fp16 by TensorRT's own products; the head for one row, "
    "int8 beside int4. c: computing takes longer than memory."
)
ATTENTION_TITLE = "## ESTIMATE: the least time of one layer's FmmAttention in microseconds (never run on a GPU)"
ATTENTION_CAPTION = (
    "One sequence, layers without a window, float16, capacity rounded up to 256. c: computing takes longer than memory."
)

# Small cases that together launch every kernel: few tokens, then little, some and many for each of the experts.
KINDS = [("float", 0, 0)] + [
    (f, group, zero)
    for f, zeros in (("int8", (0, 1)), ("int4", (0, 1)), ("fp8", (0,)))
    for group in (32, 64, 128)
    for zero in zeros
]
SIZES = ((5, 16, 6), (16, 16, 6), (64, 16, 6), (256, 2, 2))
EVERY_KERNEL: list[Case] = [
    MoeCase(T, 128, 128, E, top_k, weight_format, group_size, zero_points, dtype)
    for dtype in ("half", "bfloat16")
    for weight_format, group_size, zero_points in KINDS
    for T, E, top_k in SIZES
]
EVERY_KERNEL += [
    LinearCase(T, 64, 130, weight_format, group_size, zero_points, dtype)
    for dtype in ("half", "bfloat16")
    for weight_format, group_size, zero_points in KINDS
    if weight_format in ("int8", "int4")
    for T in (5, 16, 1024)
]
EVERY_KERNEL += [PruneCase(100, 90, 40, 5, H, 64, dtype) for dtype in ("float", "half", "bfloat16") for H in (64, 31)]
EVERY_KERNEL += [
    AttentionCase(T, past, 256, 8, K, D, value_width, window, dtype, arch)
    for dtype in ("half", "bfloat16")
    for arch in (80, 89)
    for K, D, value_width in ((2, 64, 0), (2, 128, 0), (1, 576, 512))
    for T, past, window in ((1, 200, 128), (100, 0, 0))
]


def check_kernels(kernels: list[KernelCode], launches: list[list[Launch]]) -> None:
    """ReportError for a kernel in the binaries that no case launches or no phase knows."""
    launched = {launch.kernel for case in launches for launch in case}
    unknown = sorted({kernel.name for kernel in kernels} - launched)
    if unknown:
        raise ReportError(f"no case of scripts/sass_report.py launches {', '.join(unknown)}: add one to EVERY_KERNEL")
    for kernel in kernels:
        phase_of(kernel.name)


def kernel_rows(kernels: list[KernelCode], launches: list[list[Launch]]) -> list[KernelRow]:
    """All that is known of every kernel."""
    shapes = block_shapes(launch for case in launches for launch in case)
    conflicts = trace_conflicts(cuda_sources(), kernels, EVERY_KERNEL, launches)
    return [KernelRow(kernel, *shapes[kernel.name], conflicts.get(kernel.name)) for kernel in kernels]


def layer_times(kernels: list[KernelCode], objects: list[Path]) -> list[LayerTime]:
    """Estimates of all layers, weights and numbers of tokens on all devices."""
    with_tensor_cores = {kernel.name for kernel in kernels if kernel.count("HMMA")}
    combinations = [(layer, weights, tokens) for layer in LAYERS for weights in WEIGHTS for tokens in TOKENS]
    cases = [case_of(layer, tokens, weights) for layer, weights, tokens in combinations]
    times: list[LayerTime] = []
    for combination, case, launches in zip(combinations, cases, record_launches(objects, list(cases)), strict=True):
        layer, weights, tokens = combination
        works = [
            work_of(launch, case, weights, uses_tensor_cores=launch.kernel in with_tensor_cores) for launch in launches
        ]
        times += [
            LayerTime(layer, weights, tokens, device, tuple(estimate(work, device) for work in works))
            for device in map(DEVICES.__getitem__, ROOFLINE_DEVICES)
        ]
    return times


def attention_times(objects: list[Path]) -> str:
    """Estimates of all attention layers and calls on all devices, as a table."""
    devices = [DEVICES[name] for name in ROOFLINE_DEVICES]
    cases = [
        layer.case(*call, arch)
        for layer in attention.LAYERS
        for call in attention.CALLS
        for arch in sorted({device.sm for device in devices})
    ]
    launches = dict(zip(cases, record_launches(objects, [*cases]), strict=True))
    return attention.attention_table(launches, devices)


def linear_times(objects: list[Path]) -> str:
    """Estimates of all linear layers of calls on all devices, as a table."""
    cases = linear.cases()
    launches = dict(zip(cases, record_launches(objects, [*cases]), strict=True))
    return linear.linear_table(launches, [DEVICES[name] for name in ROOFLINE_DEVICES])


def spilling(rows: list[KernelRow]) -> list[str]:
    """The kernels that spill registers, each with its architecture."""
    return [f"{row.code.name} on sm_{row.code.arch}" for row in rows if row.code.spilled_bytes]


def write(document: Path, rows: list[KernelRow], times: list[LayerTime], of_linears: str, attending: str) -> None:
    """Put the short tables between the markers of the document."""
    shown = [time for time in times if time.device == DEVICES[PHASES_ON]]
    parts = [
        f"## Code (compiled; spills: {', '.join(spilling(rows)) or 'none'})",
        CODE_CAPTION,
        compact_kernel_table(rows),
        "## ESTIMATE: the least time of one layer's FmmSparseMoE in microseconds (never run on a GPU)",
        TIME_CAPTION + bound_line(times),
        roofline_table(times),
        f"## ESTIMATE: the same by phase on {DEVICES[PHASES_ON].name} (never run on a GPU)",
        phase_table(shown),
        LINEAR_TITLE,
        LINEAR_CAPTION,
        of_linears,
        ATTENTION_TITLE,
        ATTENTION_CAPTION,
        attending,
        "## Devices (from data sheets, not measured)",
        device_table(DEVICES[name] for name in ROOFLINE_DEVICES),
    ]
    write_part(document, MARKER, "\n\n".join(parts))


def show(rows: list[KernelRow], times: list[LayerTime], of_linears: str, attending: str) -> None:
    """Print everything."""
    print("Kernels as compiled. Bank conflicts are an estimate: steps that shared memory needs, 1 without conflicts.\n")
    print(full_kernel_table(rows))
    print("\nESTIMATE: the least time of one layer's FmmSparseMoE in microseconds (never run on a GPU).\n")
    print(TIME_CAPTION + bound_line(times), end="\n\n")
    print(roofline_table(times))
    for device in map(DEVICES.__getitem__, ROOFLINE_DEVICES):
        print(f"\nESTIMATE by phase, {device.name} (never run on a GPU):\n")
        print(phase_table([time for time in times if time.device == device]))
    print(f"\n{LINEAR_TITLE.removeprefix('## ')}.\n\n{LINEAR_CAPTION}\n\n{of_linears}")
    print(f"\n{ATTENTION_TITLE.removeprefix('## ')}.\n\n{ATTENTION_CAPTION}\n\n{attending}")


def main() -> int:
    """0, 1 if a kernel spills, 2 if there is no report."""
    parser = argparse.ArgumentParser(description="Report on the CUDA kernels without a GPU.")
    parser.add_argument("--arch", type=int, nargs="+", choices=LIMITS, default=list(LIMITS), metavar="N")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put short tables into a document")
    arguments = parser.parse_args()
    try:
        objects = compile_all(arguments.arch)
        launches = record_launches(objects[arguments.arch[0]], EVERY_KERNEL)
        kernels = read_kernels(objects)
        check_kernels(kernels, launches)
        rows = kernel_rows(kernels, launches)
        times = layer_times(kernels, objects[arguments.arch[0]])
        of_linears = linear_times(objects[arguments.arch[0]])
        attending = attention_times(objects[arguments.arch[0]])
        if arguments.write:
            write(arguments.write, rows, times, of_linears, attending)
        else:
            show(rows, times, of_linears, attending)
    except FastmmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for kernel in spilling(rows):
        print(f"spills: {kernel}", file=sys.stderr)
    return 1 if spilling(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
