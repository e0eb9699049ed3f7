# SPDX-License-Identifier: Apache-2.0
"""The calls of cuda.bindings.runtime about the device, its memory and errors: names, arguments, (error, values...)."""

from __future__ import annotations

from types import SimpleNamespace

from device_double.cuda_calls import NOT_IN_CAPTURE, OK, Result, call, invalidate
from device_double.cuda_types import ERROR_TEXTS, cudaDeviceAttr, cudaError_t, cudaMemcpyKind
from device_double.device import OLD_DRIVER, Device, current
from device_double.memory import Block, Region
from device_double.misuse import Misuse
from device_double.streams import Lane, Work

RUNTIME_VERSION = 13000
OLD_DRIVER_VERSION = 12020
_INVALID_VALUE = cudaError_t.cudaErrorInvalidValue
_INVALID_DEVICE = cudaError_t.cudaErrorInvalidDevice
_FROM_DEVICE = (cudaMemcpyKind.cudaMemcpyDeviceToHost, cudaMemcpyKind.cudaMemcpyDeviceToDevice)
_TO_DEVICE = (cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToDevice)


@call(1)
def cudaGetDeviceCount(sim: Device) -> Result:
    return OK, 1


@call(0)
def cudaSetDevice(sim: Device, device: int) -> Result:
    return (OK if device == 0 else _INVALID_DEVICE,)


@call(1)
def cudaGetDevice(sim: Device) -> Result:
    return OK, 0


@call(1)
def cudaGetDeviceProperties(sim: Device, device: int) -> Result:
    if device != 0:
        return (_INVALID_DEVICE,)
    gpu = sim.gpu
    return OK, SimpleNamespace(
        name=gpu.name.encode(),
        major=gpu.sm // 10,
        minor=gpu.sm % 10,
        totalGlobalMem=sim.memory.total,
        integrated=gpu.integrated,
        multiProcessorCount=gpu.multiprocessors,
        canMapHostMemory=1,
        concurrentKernels=1,
        unifiedAddressing=1,
        warpSize=32,
    )


@call(1)
def cudaDeviceGetAttribute(sim: Device, attr: cudaDeviceAttr, device: int) -> Result:
    if device != 0:
        return (_INVALID_DEVICE,)
    gpu = sim.gpu
    known = {
        cudaDeviceAttr.cudaDevAttrMultiProcessorCount: gpu.multiprocessors,
        cudaDeviceAttr.cudaDevAttrIntegrated: gpu.integrated,
        cudaDeviceAttr.cudaDevAttrCanMapHostMemory: 1,
        cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: gpu.sm // 10,
        cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: gpu.sm % 10,
        cudaDeviceAttr.cudaDevAttrStreamPrioritiesSupported: 1,
    }
    return OK, known[cudaDeviceAttr(attr)]


def cudaDriverGetVersion() -> Result:
    return OK, OLD_DRIVER_VERSION if current().gpu.state == OLD_DRIVER else RUNTIME_VERSION


def cudaRuntimeGetVersion() -> Result:
    return OK, RUNTIME_VERSION


def cudaGetErrorName(error: cudaError_t) -> Result:
    return OK, cudaError_t(error).name.encode()


def cudaGetErrorString(error: cudaError_t) -> Result:
    return OK, ERROR_TEXTS[int(error)].encode()


@call(2)
def cudaMemGetInfo(sim: Device) -> Result:
    return OK, sim.memory.free_bytes, sim.memory.total


@call(1, in_capture=False)
def cudaMalloc(sim: Device, size: int) -> Result:
    return _allocate(sim, size, is_device=True)


@call(0, in_capture=False)
def cudaFree(sim: Device, devPtr: int) -> Result:
    return _free(sim, int(devPtr), "cudaFree", is_device=True)


@call(1, in_capture=False)
def cudaHostAlloc(sim: Device, size: int, flags: int) -> Result:
    return _allocate(sim, size, is_device=False)


@call(0, in_capture=False)
def cudaFreeHost(sim: Device, ptr: int) -> Result:
    return _free(sim, int(ptr), "cudaFreeHost", is_device=False)


def _allocate(sim: Device, size: int, *, is_device: bool) -> Result:
    sim.counters.allocations += 1
    if size == 0:
        return OK, 0
    block = sim.memory.allocate(size, is_device=is_device)
    return (cudaError_t.cudaErrorMemoryAllocation,) if block is None else (OK, block.ptr)


def _free(sim: Device, ptr: int, what: str, *, is_device: bool) -> Result:
    """Free a block. The real call waits for the device, which hides mistakes: here nothing may be queued on it."""
    if ptr == 0:
        return (OK,)
    block = sim.memory.region(ptr, 0, what).block
    if ptr != block.ptr or block.is_device != is_device:
        raise Misuse("unknown-memory", f"{what}: {ptr:#x} is not what the call that fits it gave")
    check_unused(sim, block, what)
    sim.memory.free(block)
    return (OK,)


def check_unused(sim: Device, block: Block, what: str) -> None:
    """Raise Misuse if queued work uses a block."""
    users = sim.scheduler.users_of([Region(block, block.ptr, block.size)])
    if users:
        raise Misuse("freed-while-queued", f"{what}: {len(users)} queued works use it, the first is {users[0].name}")


@call(1)
def cudaHostGetDevicePointer(sim: Device, pHost: int, flags: int) -> Result:
    block = sim.memory.block_at(int(pHost))
    if block is None or block.is_device or not block.is_live:
        return (_INVALID_VALUE,)
    return OK, int(pHost)


@call(0)
def cudaMemcpyAsync(sim: Device, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: object) -> Result:
    return _copy(sim, "cudaMemcpyAsync", (dst, count), (src, count), (count, 1), kind, stream)


@call(0)
def cudaMemcpy2DAsync(
    sim: Device,
    dst: int,
    dpitch: int,
    src: int,
    spitch: int,
    width: int,
    height: int,
    kind: cudaMemcpyKind,
    stream: object,
) -> Result:
    if width > min(dpitch, spitch):
        return (cudaError_t.cudaErrorInvalidPitchValue,)
    return _copy(sim, "cudaMemcpy2DAsync", (dst, dpitch), (src, spitch), (width, height), kind, stream)


def _copy(
    sim: Device,
    name: str,
    destination: tuple[int, int],
    source: tuple[int, int],
    size: tuple[int, int],
    kind: cudaMemcpyKind,
    stream: object,
) -> Result:
    """Queue a copy of rows: address and pitch of either side, bytes of a row and rows."""
    lane, (width, height) = sim.stream(stream, name), size
    if width * height == 0:
        return (OK,)
    regions = []
    for (ptr, pitch), side, to_device in (
        (destination, "destination", _TO_DEVICE),
        (source, "source", _FROM_DEVICE),
    ):
        block = sim.memory.block_at(int(ptr))
        if block is None:
            if lane.capture is not None:
                invalidate(sim, lane.capture)
                return (NOT_IN_CAPTURE,)
            raise Misuse("pageable-copy", f"{name}: the {side} is pageable, the copy would not be asynchronous")
        regions.append(sim.memory.region(int(ptr), (height - 1) * pitch + width, f"{name}, {side}"))
        # With one address space the driver takes pinned memory for either side's.
        if block.is_device and kind != cudaMemcpyKind.cudaMemcpyDefault and kind not in to_device:
            raise Misuse("copy-direction", f"{name}: {cudaMemcpyKind(kind).name}, the {side} is device memory")
    to, start = regions
    if to.overlaps(start):
        raise Misuse("overlap", f"{name}: source and destination of {width * height} bytes overlap")

    def copy() -> None:
        target, values = to.bytes(), start.bytes()
        for row in range(height):
            a, b = row * destination[1], row * source[1]
            target[a : a + width] = values[b : b + width]

    sim.counters.copies += 1
    sim.counters.copied_bytes += width * height
    return _queue(sim, lane, Work("copy", (start,), (to,), copy))


@call(0)
def cudaMemsetAsync(sim: Device, devPtr: int, value: int, count: int, stream: object) -> Result:
    lane = sim.stream(stream, "cudaMemsetAsync")
    if count == 0:
        return (OK,)
    region = sim.memory.region(int(devPtr), count, "cudaMemsetAsync")

    def fill() -> None:
        region.bytes()[:] = value & 0xFF

    sim.counters.memsets += 1
    return _queue(sim, lane, Work("memset", (), (region,), fill))


def _queue(sim: Device, lane: Lane, work: Work) -> Result:
    if lane.capture is not None and lane.capture.is_invalid:
        return (cudaError_t.cudaErrorStreamCaptureInvalidated,)
    sim.scheduler.queue(lane, work)
    return (OK,)
