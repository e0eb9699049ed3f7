# SPDX-License-Identifier: Apache-2.0
"""Products with weights in tile order in a program of their own (plugins/testing/panels_host)."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops.quantise import Packing, dequantise
from fastmmoe.exporter.ops.tiles import to_panels, to_tiles
from fastmmoe.runtime.types import Array
from tests.support.host_program import build_program

FORMATS = ("bfloat16", "int8", "int4")
ARITHMETICS = ("float", "bfloat16", "int8")


@dataclass(frozen=True)
class Weights:
    """A matrix [N, K] as a kernel takes it, and what it stands for."""

    weight_format: str
    group_size: int
    tiles: Array
    scale: Array | None
    zero: Array | None
    values: Array  # float32 [N, K]


def make_weights(values: Array, weight_format: str, group_size: int = 0, zero_points: bool = False) -> Weights:
    """float32 [N, K], rounded to the format and put into tile order."""
    if weight_format == "bfloat16":
        rounded = values.astype(ml_dtypes.bfloat16)
        return Weights(weight_format, 0, to_tiles(rounded), None, None, rounded.astype(np.float32))
    columns = values.shape[1]
    # Words of int4 have 8 columns.
    padded = np.pad(values, [(0, 0), (0, -columns % 8)]) if weight_format == "int4" else values
    packing = Packing(weight_format, group_size, zero_points)  # type: ignore[arg-type]
    packed = packing.quantise(padded)
    zero = None if packed.zero is None else to_panels(packed.zero)
    meant = dequantise(packed, weight_format, group_size)[:, :columns]
    return Weights(weight_format, group_size, to_tiles(packed.values), to_panels(packed.scale), zero, meant)


def rounded_rows(x: Array, weight_format: str, group_size: int) -> Array:
    """What float32 rows [T, K] become before they are multiplied with vectors of their own format."""
    if weight_format == "bfloat16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    padded = np.pad(x, [(0, 0), (0, -x.shape[1] % group_size)])
    groups = padded.reshape(len(x), -1, group_size)
    greatest = np.abs(groups).max(-1, keepdims=True, initial=0)
    inverse = np.float32(127) / np.where(greatest == 0, np.float32(1), greatest)
    # The kernels' multiplication is fused with the addition that rounds: its result is not rounded before.
    steps = np.rint(groups.astype(np.float64) * inverse).astype(np.float32)
    return (steps * (greatest / np.float32(127))).reshape(len(x), -1)[:, : x.shape[1]]


class PanelsHost:
    """A build of the program, and how it is run."""

    def __init__(self, build: Path, settings: list[str], emulator: tuple[str, ...] = ()) -> None:
        """settings: of CMake. emulator: the words before the program's path."""
        self.command = [*emulator, str(build_program("panels_host", build, settings))]

    def __call__(
        self,
        x: Array,
        weights: Weights,
        *,
        isa: str,
        is_exact: bool = False,
        panels: tuple[int, int] | None = None,
        more: int = 0,
        threads: int = 1,
        are_apart: bool = False,
    ) -> tuple[str, Array]:
        """Which arithmetic it was, and y [T, 16 panels].

        Args:
            panels: first panel and number of panels; None = all.
            more: floats after each row of y, which must stay as they are.
            threads: each has a range of the panels.
            are_apart: rows lie at distances that differ, else one follows the other.
        """
        outputs, columns = weights.values.shape
        first, count = panels or (0, -(-outputs // 16))
        has_zeros = weights.zero is not None
        call = (FORMATS.index(weights.weight_format), outputs, columns, weights.group_size, has_zeros, is_exact)
        stride = 16 * count + more
        sizes = (len(x), first, count, stride, threads, are_apart)
        parts = [struct.pack("12q", *call, *sizes), x.astype(np.float32).tobytes()]
        parts += [array.tobytes() for array in (weights.tiles, weights.scale, weights.zero) if array is not None]
        environment = {**os.environ, "FASTMMOE_CPU_ISA": isa}
        done = subprocess.run(self.command, input=b"".join(parts), capture_output=True, env=environment, check=False)
        assert done.returncode == 0, f"{done.returncode}: {done.stderr.decode()[-4000:]}"
        y = np.frombuffer(done.stdout[8:], np.float32).reshape(len(x), stride)
        assert (y[:, 16 * count :].view(np.uint32) == 0xCDCDCDCD).all()
        return ARITHMETICS[int.from_bytes(done.stdout[:8], "little")], y[:, : 16 * count]
