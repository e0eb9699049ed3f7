# SPDX-License-Identifier: Apache-2.0
"""Memory of the simulated device: guarded, poisoned, closed to the host where it is the device's own."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from device_double.misuse import Misuse

ALIGNMENT = 256
"""What cudaMalloc promises, and TensorRT demands of every address."""
GRANULE = 512
"""cudaMalloc takes multiples of this from the device's memory."""
POISON = 0xFF
"""NaN in float16, bfloat16 and float32, -1 in integers."""

_NONE, _READ_WRITE = 0, 3
_PRIVATE_ANONYMOUS = 0x22
_DROP_PAGES = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def round_up(size: int, step: int) -> int:
    """The least multiple of step that is not below size."""
    return -(-size // step) * step


@dataclass(eq=False)
class Watch:
    """Whether some bytes are still what they were: false once work has written any of them."""

    start: int
    end: int
    is_valid: bool = True


@dataclass(eq=False)
class Access:
    """What a piece of work did to some bytes: work number `time` of a lane."""

    start: int
    end: int
    is_write: bool
    lane: int
    time: int
    name: str


@dataclass(eq=False)
class Block:
    """An allocation between two guard pages, at the end of its pages as far as its alignment allows.

    Attributes:
        is_device: the device's own memory, closed to the host but while device work runs; else pinned.
        watches: of copies that are kept of its content.
        accesses: those that may still be under way.
    """

    size: int
    is_device: bool
    is_live: bool = True
    watches: list[Watch] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._span = round_up(max(self.size, 1), mmap.PAGESIZE)
        whole = _libc.mmap(None, self._span + 2 * mmap.PAGESIZE, _NONE, _PRIVATE_ANONYMOUS, -1, 0)
        if whole == ctypes.c_void_p(-1).value:
            raise MemoryError(f"the double cannot map {self.size} bytes")
        self.base = whole + mmap.PAGESIZE
        self.ptr = self.base + self._span - round_up(max(self.size, 1), ALIGNMENT)
        self.end = self.ptr + self.size
        self._protect(_READ_WRITE)
        ctypes.memset(self.base, POISON, self._span)
        self.close()

    @property
    def past(self) -> int:
        """The address after its last page."""
        return int(self.base + self._span)

    def open(self) -> None:
        """Let device work use it."""
        if self.is_device:
            self._protect(_READ_WRITE)

    def close(self) -> None:
        """End device work."""
        if self.is_device:
            self._protect(_NONE)

    def release(self) -> None:
        """Free it: its pages are given back, its addresses are never used again."""
        self.is_live = False
        for watch in self.watches:
            watch.is_valid = False
        _libc.madvise(self.base, self._span, _DROP_PAGES)
        self._protect(_NONE)

    def _protect(self, how: int) -> None:
        if _libc.mprotect(self.base, self._span, how):
            raise MemoryError(f"mprotect of {self._span} bytes: errno {ctypes.get_errno()}")


class Region(NamedTuple):
    """Some bytes of a block."""

    block: Block
    start: int
    size: int

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.start + self.size

    def overlaps(self, other: Region) -> bool:
        """Whether both have a byte in common."""
        return bool(self.size and other.size) and self.start < other.end and other.start < self.end

    def bytes(self) -> Any:
        """Its bytes where they lie, uint8 [size]; device memory must be open."""
        if not self.size:
            return np.empty(0, np.uint8)
        return np.frombuffer(memoryview((ctypes.c_ubyte * self.size).from_address(self.start)), np.uint8)

    def poison(self) -> None:
        """Write POISON over it."""
        ctypes.memset(self.start, POISON, self.size)


@dataclass
class Live:
    """Bytes and allocations that are not freed, and the most bytes there have been."""

    bytes: int = 0
    allocations: int = 0
    most_bytes: int = 0

    def add(self, size: int) -> None:
        """Count an allocation; of negative size: its end."""
        self.bytes += size
        self.allocations += 1 if size >= 0 else -1
        self.most_bytes = max(self.most_bytes, self.bytes)


class Memory:
    """All blocks there ever were. Addresses are not used twice, so a freed one is known for good.

    Args:
        total: bytes of device memory.
        is_shared: whether pinned memory is of it, too, as on a Jetson.
    """

    def __init__(self, total: int, *, is_shared: bool = False) -> None:
        self.total, self.device, self.pinned = total, Live(), Live()
        self._is_shared = is_shared
        self._starts: list[int] = []
        self._blocks: list[Block] = []

    @property
    def free_bytes(self) -> int:
        """Device memory that is left."""
        return self.total - self.device.bytes - (self.pinned.bytes if self._is_shared else 0)

    def allocate(self, size: int, *, is_device: bool) -> Block | None:
        """A new block; None where device memory has no room for it."""
        live = self.device if is_device else self.pinned
        taken = round_up(size, GRANULE)
        if (is_device or self._is_shared) and taken > self.free_bytes:
            return None
        block = Block(size, is_device)
        at = bisect_right(self._starts, block.base)
        self._starts.insert(at, block.base)
        self._blocks.insert(at, block)
        live.add(taken)
        return block

    def free(self, block: Block) -> None:
        """End a live block."""
        (self.device if block.is_device else self.pinned).add(-round_up(block.size, GRANULE))
        block.release()

    def block_at(self, ptr: int) -> Block | None:
        """The block, live or freed, on whose pages an address is."""
        at = bisect_right(self._starts, ptr) - 1
        return self._blocks[at] if at >= 0 and ptr <= self._blocks[at].past else None

    def region(self, ptr: int, size: int, what: str) -> Region:
        """Bytes that must be within a live block.

        Raises:
            Misuse: freed, outside of its block, or pageable.
        """
        block = self.block_at(ptr)
        if block is None:
            raise Misuse("unknown-memory", f"{what}: {ptr:#x} is neither device nor pinned memory")
        if not block.is_live:
            raise Misuse("freed-memory", f"{what}: {size} bytes at {ptr:#x} were freed")
        if ptr < block.ptr or ptr + size > block.end:
            raise Misuse("out-of-bounds", f"{what}: {size} bytes at offset {ptr - block.ptr} of {block.size}")
        return Region(block, ptr, size)


@contextmanager
def opened(regions: Iterable[Region]) -> Iterator[None]:
    """Let device work use the blocks of these regions."""
    blocks = {id(region.block): region.block for region in regions}
    for block in blocks.values():
        block.open()
    try:
        yield
    finally:
        for block in blocks.values():
            block.close()


def note_writes(regions: Iterable[Region]) -> None:
    """Make copies that are kept of these bytes invalid."""
    for region in regions:
        for watch in region.block.watches:
            if watch.start < region.end and region.start < watch.end:
                watch.is_valid = False
        region.block.watches = [watch for watch in region.block.watches if watch.is_valid]


def watch(region: Region) -> Watch:
    """A watch over a region from now on."""
    made = Watch(region.start, region.end)
    region.block.watches.append(made)
    return made
