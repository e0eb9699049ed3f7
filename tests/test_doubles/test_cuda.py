# SPDX-License-Identifier: Apache-2.0
"""The double's CUDA: errors, captures, events and memory as the real runtime answers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.support.double import Double, Modules

SCHEDULES = range(30)
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED, ISOLATION, CAPTURED = 900, 901, 902, 903, 904, 905, 907
SIZE = 1024


def values(result: tuple[Any, ...]) -> Any:
    """The values of a call that must succeed: one, or a tuple."""
    assert result[0] == 0, result
    return result[1] if len(result) == 2 else result[1:]


class Device:
    """Two streams, two events and memory on a fresh device."""

    def __init__(self, modules: Modules) -> None:
        self.rt, self.control = modules.cudart, modules.control
        self.a, self.b = (values(self.rt.cudaStreamCreateWithPriority(1, 0)) for _ in range(2))
        self.e, self.f = (values(self.rt.cudaEventCreateWithFlags(0)) for _ in range(2))
        self.x, self.y = (values(self.rt.cudaMalloc(SIZE)) for _ in range(2))
        self.host = values(self.rt.cudaHostAlloc(SIZE, 2))

    def fill(self, address: int, value: int, stream: Any) -> None:
        """Set memory."""
        values(self.rt.cudaMemsetAsync(address, value, SIZE, stream))

    def copy(self, target: int, source: int, kind: int, stream: Any) -> None:
        """Copy all of it."""
        values(self.rt.cudaMemcpyAsync(target, source, SIZE, kind, stream))

    def host_bytes(self) -> set[int]:
        """The values in pinned memory."""
        return set(ctypes.string_at(self.host, SIZE))


@pytest.fixture
def device(double: Double) -> Device:
    return Device(double.modules())


@pytest.fixture
def misuse(device: Device) -> Callable[[str], Any]:
    """A context in which the rule of that name must be broken."""
    return lambda rule: pytest.raises(device.control.Misuse, match=f"^{rule}: ")


@pytest.mark.parametrize(("gpu", "error", "version"), [("none", 100, 13000), ("old", 35, 12020)])
def test_no_gpu(double: Double, gpu: str, error: int, version: int) -> None:
    rt = double.modules(gpu=gpu).cudart
    assert rt.cudaGetDeviceCount() == (error, None)
    assert rt.cudaMalloc(SIZE) == (error, None) and rt.cudaMemGetInfo() == (error, None, None)
    assert values(rt.cudaDriverGetVersion()) == version and values(rt.cudaRuntimeGetVersion()) == 13000
    name, text = values(rt.cudaGetErrorName(error)), values(rt.cudaGetErrorString(error))
    assert name == rt.cudaError_t(error).name.encode() and text


def test_gpu_is_as_described(double: Double) -> None:
    rt = double.modules(gpu="sm=87,name=Orin,integrated=1", memory=1 << 20).cudart
    properties = values(rt.cudaGetDeviceProperties(0))
    assert (properties.name, properties.major, properties.minor, properties.integrated) == (b"Orin", 8, 7, 1)
    assert properties.totalGlobalMem == 1 << 20
    assert values(rt.cudaDeviceGetAttribute(rt.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor, 0)) == 7
    assert values(rt.cudaGetDeviceCount()) == 1
    assert rt.cudaSetDevice(0) == (0,) and rt.cudaSetDevice(1) == (101,)
    assert values(rt.cudaDeviceGetStreamPriorityRange()) == (0, -5)


def test_unknown_description_is_refused(double: Double) -> None:
    with pytest.raises(ValueError, match="cores unknown"):
        double.modules(gpu="cores=3")


def test_memory_runs_out(double: Double) -> None:
    modules = double.modules(memory=8192)
    rt = modules.cudart
    first = values(rt.cudaMalloc(4097))
    assert values(rt.cudaMemGetInfo()) == (8192 - 4608, 8192)
    assert rt.cudaMalloc(4096) == (2, None)
    assert rt.cudaFree(first) == (0,)
    assert values(rt.cudaMalloc(8192))
    on_device, pinned = modules.control.live()
    assert (on_device.bytes, on_device.allocations, on_device.most_bytes, pinned.bytes) == (8192, 1, 8192, 0)


@pytest.mark.parametrize(("gpu", "left"), [("sm=87,integrated=1", 4096), ("sm=87", 8192)])
def test_pinned_memory_is_of_the_device_where_it_is_integrated(double: Double, gpu: str, left: int) -> None:
    rt = double.modules(memory=8192, gpu=gpu).cudart
    assert values(rt.cudaHostAlloc(4096, 0))
    assert values(rt.cudaMemGetInfo())[0] == left
    assert (rt.cudaHostAlloc(8192, 0)[0] == 2) == (left == 4096)


def test_fresh_memory_is_poison_and_aligned(device: Device) -> None:
    assert device.x % 256 == 0
    device.copy(device.host, device.x, TO_HOST, device.a)
    values(device.rt.cudaStreamSynchronize(device.a))
    assert device.host_bytes() == {0xFF}
    assert np.isnan(np.frombuffer(ctypes.string_at(device.host, 4), np.float32)).all()


def test_events_order_streams(double: Double) -> None:
    for seed in SCHEDULES:
        d = Device(double.modules(seed=seed))
        for step in range(5):
            d.fill(d.x, step, d.a)
            values(d.rt.cudaEventRecord(d.e, d.a))
            values(d.rt.cudaStreamWaitEvent(d.b, d.e, 0))
            d.copy(d.host, d.x, TO_HOST, d.b)
            values(d.rt.cudaEventRecord(d.f, d.b))
            values(d.rt.cudaStreamWaitEvent(d.a, d.f, 0))
        values(d.rt.cudaEventSynchronize(d.f))
        assert d.host_bytes() == {4}, seed
        values(d.rt.cudaEventRecord(d.e, d.a))
        while d.rt.cudaEventQuery(d.e) == (600,):
            pass
        assert values(d.rt.cudaEventElapsedTime(d.e, d.e)) == 0
        # What the host has waited for is ordered before all that it queues next.
        values(d.rt.cudaStreamSynchronize(d.b))
        d.fill(d.x, 9, d.a)
        values(d.rt.cudaDeviceSynchronize())
        d.copy(d.host, d.x, TO_HOST, d.b)


def test_work_happens_late(double: Double) -> None:
    """In some schedules nothing happens before the host waits, in others something."""
    early = []
    for seed in SCHEDULES:
        d = Device(double.modules(seed=seed))
        for _ in range(5):
            values(d.rt.cudaEventRecord(d.e, d.a))
            d.fill(d.x, 1, d.a)
        early.append(d.control.current().scheduler._lanes[1].queue.__len__() < 10)
    assert any(early) and not all(early)


def test_what_the_host_reads_too_early_is_poison(double: Double) -> None:
    """Not what was there before, which may look right."""
    seen = set()
    for seed in SCHEDULES:
        d = Device(double.modules(seed=seed))
        d.fill(d.x, 1, d.a)
        d.copy(d.host, d.x, TO_HOST, d.a)
        values(d.rt.cudaStreamSynchronize(d.a))
        d.fill(d.x, 2, d.a)
        d.copy(d.host, d.x, TO_HOST, d.a)
        seen |= d.host_bytes()
    assert seen == {0xFF, 2}


def test_memory_that_is_no_more(device: Device, misuse: Callable[[str], Any]) -> None:
    values(device.rt.cudaFree(device.x))
    with misuse("freed-memory"):
        device.fill(device.x, 0, device.a)
    with misuse("freed-memory"):
        device.rt.cudaFree(device.x)
    device.fill(device.y, 0, device.a)
    if list(device.control.current().scheduler.pending()):
        with misuse("freed-while-queued"):
            device.rt.cudaFree(device.y)
    values(device.rt.cudaStreamSynchronize(device.a))
    values(device.rt.cudaFree(device.y))


def test_copies_of_wrong_memory(device: Device, misuse: Callable[[str], Any]) -> None:
    pageable = ctypes.create_string_buffer(SIZE)
    with misuse("pageable-copy"):
        device.copy(device.x, ctypes.addressof(pageable), TO_DEVICE, device.a)
    with misuse("out-of-bounds"):
        device.copy(device.x + 256, device.y, ON_DEVICE, device.a)
    with misuse("copy-direction"):
        device.copy(device.x, device.host, TO_HOST, device.a)
    with misuse("overlap"):
        device.copy(device.x, device.x, ON_DEVICE, device.a)
    with misuse("default-stream"):
        device.fill(device.x, 0, 0)
    values(device.rt.cudaStreamDestroy(device.b))
    with misuse("unknown-handle"):
        device.fill(device.x, 0, device.b)
    with misuse("unknown-memory"):
        device.rt.cudaFree(device.x + 256)


def test_host_memory_is_a_device_address_too(device: Device) -> None:
    assert values(device.rt.cudaHostGetDevicePointer(device.host, 0)) == device.host
    assert device.rt.cudaHostGetDevicePointer(device.x, 0) == (1, None)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_bytes_beyond_an_allocation_are_guarded(device: Device, kind: str) -> None:
    block = device.control.current().memory.block_at(device.host if kind == "host" else device.x)
    assert block.end == block.past and block.ptr % 256 == 0


def begin(device: Device, mode: int = THREAD_LOCAL) -> None:
    values(device.rt.cudaStreamBeginCapture(device.a, mode))


FORBIDDEN: dict[str, Callable[[Device], tuple[Any, ...]]] = {
    "synchronize": lambda d: d.rt.cudaStreamSynchronize(d.a),
    "synchronize another": lambda d: d.rt.cudaStreamSynchronize(d.b),
    "synchronize the device": lambda d: d.rt.cudaDeviceSynchronize(),
    "synchronize an event": lambda d: d.rt.cudaEventSynchronize(d.e),
    "query": lambda d: d.rt.cudaEventQuery(d.e),
    "allocate": lambda d: d.rt.cudaMalloc(SIZE)[:1],
    "free": lambda d: d.rt.cudaFree(d.y),
    "allocate pinned": lambda d: d.rt.cudaHostAlloc(SIZE, 0)[:1],
    "pageable": lambda d: d.rt.cudaMemcpyAsync(d.x, id(d), SIZE, TO_DEVICE, d.a),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_call_that_no_capture_allows(device: Device, name: str) -> None:
    begin(device)
    assert FORBIDDEN[name](device) == (UNSUPPORTED,)
    assert values(device.rt.cudaStreamIsCapturing(device.a)) == 2
    assert device.rt.cudaMemsetAsync(device.x, 0, SIZE, device.a) == (INVALIDATED,)
    assert device.rt.cudaStreamEndCapture(device.a) == (INVALIDATED, None)
    # The stream is as before.
    device.fill(device.x, 0, device.a)
    assert values(device.rt.cudaMalloc(SIZE))


def test_relaxed_capture_allows_allocation(device: Device) -> None:
    begin(device, RELAXED)
    assert values(device.rt.cudaMalloc(SIZE))
    assert device.rt.cudaStreamSynchronize(device.b) == (0,)
    device.fill(device.x, 0, device.a)
    assert int(values(device.rt.cudaStreamEndCapture(device.a)))


@pytest.mark.parametrize(("mode", "is_allowed"), [(GLOBAL, False), (THREAD_LOCAL, True)])
def test_capture_and_calls_of_another_thread(device: Device, mode: int, is_allowed: bool) -> None:
    begin(device, mode)
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(device.rt.cudaMalloc, SIZE).result()[0]
    assert error == (0 if is_allowed else UNSUPPORTED)
    assert device.rt.cudaStreamEndCapture(device.a)[0] == (0 if is_allowed else INVALIDATED)


def test_graph_replays_what_was_captured(double: Double) -> None:
    """Two streams within a graph; its launches add up in order, in every schedule."""
    for seed in SCHEDULES:
        d = Device(double.modules(seed=seed))
        d.fill(d.x, 1, d.a)
        d.fill(d.y, 2, d.a)
        begin(d)
        values(d.rt.cudaEventRecord(d.e, d.a))
        values(d.rt.cudaStreamWaitEvent(d.b, d.e, 0))
        d.copy(d.host, d.x, TO_HOST, d.b)
        values(d.rt.cudaEventRecord(d.f, d.b))
        values(d.rt.cudaStreamWaitEvent(d.a, d.f, 0))
        d.copy(d.x, d.y, ON_DEVICE, d.a)
        graph = values(d.rt.cudaStreamEndCapture(d.a))
        executable = values(d.rt.cudaGraphInstantiate(graph, 0))
        values(d.rt.cudaGraphDestroy(graph))
        assert values(d.rt.cudaStreamIsCapturing(d.b)) == 0
        values(d.rt.cudaGraphLaunch(executable, d.a))
        values(d.rt.cudaStreamSynchronize(d.a))
        assert d.host_bytes() == {1}, seed
        values(d.rt.cudaGraphLaunch(executable, d.b))
        values(d.rt.cudaStreamSynchronize(d.b))
        assert d.host_bytes() == {2}, seed
        assert (d.control.counters().graph_launches, d.control.counters().captures) == (2, 1)
        values(d.rt.cudaGraphExecDestroy(executable))
        with pytest.raises(d.control.Misuse, match=r"^unknown-handle"):
            d.rt.cudaGraphLaunch(executable, d.a)


def test_launches_of_a_graph_follow_each_other(device: Device) -> None:
    """In two streams, too: a graph that can be launched runs once at a time."""
    begin(device)
    device.fill(device.x, 3, device.a)
    executable = values(device.rt.cudaGraphInstantiate(values(device.rt.cudaStreamEndCapture(device.a)), 0))
    values(device.rt.cudaGraphLaunch(executable, device.a))
    values(device.rt.cudaGraphLaunch(executable, device.b))
    device.copy(device.host, device.x, TO_HOST, device.b)
    values(device.rt.cudaStreamSynchronize(device.b))
    assert device.host_bytes() == {3}


def test_capture_joins_and_borders(device: Device) -> None:
    rt = device.rt
    values(rt.cudaEventRecord(device.f, device.b))
    begin(device)
    assert rt.cudaStreamWaitEvent(device.a, device.f, 0) == (ISOLATION,)
    assert rt.cudaStreamEndCapture(device.a) == (INVALIDATED, None)
    begin(device)
    values(rt.cudaEventRecord(device.e, device.a))
    values(rt.cudaStreamWaitEvent(device.b, device.e, 0))
    device.fill(device.y, 0, device.b)
    assert rt.cudaStreamEndCapture(device.b) == (UNMATCHED, None)
    assert rt.cudaStreamEndCapture(device.a) == (INVALIDATED, None)
    begin(device)
    values(rt.cudaEventRecord(device.e, device.a))
    values(rt.cudaStreamWaitEvent(device.b, device.e, 0))
    device.fill(device.y, 0, device.b)
    assert rt.cudaStreamEndCapture(device.a) == (UNJOINED, None)
    assert rt.cudaEventSynchronize(device.e) == (CAPTURED,)
    assert rt.cudaStreamWaitEvent(device.b, device.e, 0) == (CAPTURED,)


def test_two_captures_do_not_merge(device: Device) -> None:
    rt = device.rt
    begin(device)
    values(rt.cudaStreamBeginCapture(device.b, THREAD_LOCAL))
    values(rt.cudaEventRecord(device.e, device.a))
    assert rt.cudaStreamWaitEvent(device.b, device.e, 0) == (MERGE,)


def test_host_waits_for_nothing(device: Device, misuse: Callable[[str], Any]) -> None:
    """Two streams that wait for each other, which real events cannot say; the double names it."""
    sim = device.control.current()
    event = sim.event(device.e, "")
    event.recorded = 1
    sim.scheduler.wait(sim.stream(device.a, ""), event)
    with misuse("deadlock"):
        device.rt.cudaStreamSynchronize(device.a)
