# SPDX-License-Identifier: Apache-2.0
"""How many blocks of a kernel a multiprocessor holds, by the rules of NVIDIA's cuda_occupancy.h."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor of one compute capability has.

    Attributes:
        shared_bytes: shared memory of a multiprocessor; a block can have all of it but the reserved part.
        float32_lanes: float32 multiply-adds outside of tensor cores that it starts in a clock cycle.
    """

    threads: int
    blocks: int
    shared_bytes: int
    float32_lanes: int

    @property
    def warps(self) -> int:
        """Warps that can be resident."""
        return self.threads // WARP


_KIB = 1024
LIMITS = {
    80: Limits(2048, 32, 164 * _KIB, 64),
    87: Limits(1536, 16, 164 * _KIB, 128),
    89: Limits(1536, 24, 100 * _KIB, 128),
    90: Limits(2048, 32, 228 * _KIB, 128),
    100: Limits(2048, 32, 228 * _KIB, 128),
    110: Limits(1536, 24, 228 * _KIB, 128),
    120: Limits(1536, 24, 100 * _KIB, 128),
}
"""By compute capability: CUDA C++ Programming Guide, table of technical specifications."""

REGISTERS = 64 * _KIB
PARTITIONS = 4
REGISTER_UNIT = 256  # of a warp
MOST_REGISTERS = 255  # of a thread
SHARED_UNIT = 128
RESERVED_SHARED = 1024  # of every block
MOST_THREADS = 1024  # of a block


def round_up(value: int, unit: int) -> int:
    """The least multiple of unit that is not below value."""
    return -(-value // unit) * unit


def blocks_per_multiprocessor(arch: int, registers: int, threads: int, shared_bytes: int) -> int:
    """Blocks that are resident at once; 0 where a block does not fit.

    Args:
        arch: key of `LIMITS`.
        registers: of a thread.
        threads, shared_bytes: of a block; static and dynamic shared memory.
    """
    limits = LIMITS[arch]
    warps = -(-threads // WARP)
    warp_registers = round_up(registers * WARP, REGISTER_UNIT)
    block_shared = round_up(shared_bytes + RESERVED_SHARED, SHARED_UNIT)
    if threads > MOST_THREADS or registers > MOST_REGISTERS:
        return 0
    by_warps = limits.warps // warps
    by_shared = limits.shared_bytes // block_shared
    # Warps are spread over the partitions, each with registers of its own.
    warps_with_registers = REGISTERS // PARTITIONS // warp_registers * PARTITIONS if registers else limits.warps
    return min(limits.blocks, by_warps, by_shared, warps_with_registers // warps)


def occupancy(arch: int, registers: int, threads: int, shared_bytes: int) -> float:
    """Resident warps over the most that can be resident, 0 to 1; arguments as `blocks_per_multiprocessor`."""
    blocks = blocks_per_multiprocessor(arch, registers, threads, shared_bytes)
    return blocks * -(-threads // WARP) / LIMITS[arch].warps
