# SPDX-License-Identifier: Apache-2.0
"""CUDA's calls: what they answer, and their errors as ours, with their names."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.tensorrt.device import Device, OutOfDeviceMemory, Properties
from fastmmoe.runtime.errors import RunFailed
from tests.support.double import Double
from tests.support.toy_engines import Gpu, gpu_of


def test_the_gpu_says_what_it_is(double: Double) -> None:
    gpu = gpu_of(double.modules(memory=1 << 20, gpu="sm=87,name=Orin,integrated=1"))
    assert gpu.device.properties() == Properties("Orin", 87, is_integrated=True)
    assert gpu.device.memory() == (1 << 20, 1 << 20)
    gpu.device.allocate(1000)
    assert gpu.device.memory() == ((1 << 20) - 1024, 1 << 20)


def test_an_interrupt_leaves_no_work_behind(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the event was not recorded, nobody could wait for what is queued."""
    cuda, device = gpu.modules.cudart, gpu.device
    event, target, pinned = device.make_event(), device.allocate(256), device.allocate_pinned(256)
    waited: list[Any] = []
    wait = device.synchronize

    def synchronize(stream: Any) -> None:
        waited.append(stream)
        wait(stream)

    monkeypatch.setattr(device, "synchronize", synchronize)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("cudaMemcpyAsync", "cudaEventRecord"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(cuda, name, interrupt)
            with device.marked(event, gpu.stream):
                device.copy(target, pinned, 256, gpu.stream)
    assert waited == [gpu.stream] * 2
    with device.marked(event, gpu.stream):
        device.copy(target, pinned, 256, gpu.stream)
    device.wait_on_host(event)
    assert len(waited) == 2


def test_an_interrupt_as_a_capture_begins_ends_the_capture(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = gpu.modules.cudart.cudaStreamBeginCapture

    def interrupt(*arguments: Any) -> None:
        begin(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gpu.modules.cudart, "cudaStreamBeginCapture", interrupt)
        with gpu.device.capturing(gpu.stream):
            pass
    gpu.device.synchronize(gpu.stream)
    with gpu.device.capturing(gpu.stream) as graphs:
        gpu.device.record(gpu.device.make_event(), gpu.stream)
    assert len(graphs) == 1


def test_names_that_are_text_already(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of cuda-bindings differ in it."""
    cuda = gpu.modules.cudart
    answer = cuda.cudaGetDeviceProperties(0)
    answer[1].name = "L4"
    monkeypatch.setattr(cuda, "cudaGetDeviceProperties", lambda _: answer)
    monkeypatch.setattr(cuda, "cudaGetErrorString", lambda _: (cuda.cudaError_t.cudaSuccess, "in words"))
    assert Device(cuda).properties().name == "L4"
    with pytest.raises(RunFailed, match=r"^CUDA: cudaStreamWaitEvent: in words \(cudaErrorCapturedEvent\)$"):
        with gpu.device.capturing(gpu.stream):
            gpu.device.record(event := gpu.device.make_event(), gpu.stream)
        gpu.device.wait(gpu.stream, event)


def test_memory_that_there_is_not(double: Double) -> None:
    device = gpu_of(double.modules(memory=3 << 20)).device
    address = device.allocate(2 << 20)
    with pytest.raises(OutOfDeviceMemory, match=r"^CUDA: cudaMalloc of 2\.1 MB: out of memory$"):
        device.allocate(2 << 20)
    device.free(address)
    assert device.allocate(2 << 20) % 256 == 0


def test_pinned_memory_that_there_is_not(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = gpu.modules.cudart
    monkeypatch.setattr(cuda, "cudaHostAlloc", lambda *_: (cuda.cudaError_t.cudaErrorMemoryAllocation, None))
    with pytest.raises(OutOfDeviceMemory, match=r"^CUDA: cudaHostAlloc of 5\.0 MB: out of memory$"):
        gpu.device.allocate_pinned(5_000_000)


def test_other_errors_have_their_name(gpu: Gpu) -> None:
    first, last = gpu.device.make_event(), gpu.device.make_event()
    words = "CUDA: cudaEventElapsedTime: invalid resource handle (cudaErrorInvalidResourceHandle)"
    with pytest.raises(RunFailed, match=f"^{re.escape(words)}$") as failure:
        gpu.device.milliseconds(first, last)
    assert not isinstance(failure.value, OutOfDeviceMemory)


def test_time_between_events(gpu: Gpu) -> None:
    first, last = gpu.device.make_event(is_timed=True), gpu.device.make_event(is_timed=True)
    gpu.device.record(first, gpu.stream)
    gpu.device.wait_on_host(first)
    time.sleep(0.01)
    gpu.device.record(last, gpu.stream)
    gpu.device.wait_on_host(last)
    assert 10 <= gpu.device.milliseconds(first, last) < 10_000
    gpu.device.destroy_event(first)
    with pytest.raises(gpu.modules.control.Misuse, match="unknown-handle"):
        gpu.device.record(first, gpu.stream)


def test_copies_go_in_every_direction(gpu: Gpu) -> None:
    a, b = gpu.device.allocate(600), gpu.device.allocate(600)
    values = np.arange(600, dtype=np.uint16).view(np.uint8)[:600]
    gpu.write(a, values)
    gpu.device.copy(b, a, 600, gpu.stream)
    gpu.device.copy_rows(b + 300, 60, a, 20, 10, 5, gpu.stream)
    expected = values.copy()
    for row in range(5):
        expected[300 + 60 * row : 310 + 60 * row] = values[20 * row : 20 * row + 10]
    assert gpu.read(b, 600).tolist() == expected.tolist()


def test_the_second_stream_waits_for_nothing_of_the_first(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """High priority first; neither is one that waits for the default stream. Without the second there is none."""
    cuda = gpu.modules.cudart
    make, asked = cuda.cudaStreamCreateWithPriority, []

    def record(flags: int, priority: int) -> Any:
        asked.append((flags, priority))
        return make(flags, priority) if len(asked) < 4 else (cuda.cudaError_t.cudaErrorMemoryAllocation, None)

    monkeypatch.setattr(cuda, "cudaStreamCreateWithPriority", record)
    for stream in gpu.device.make_streams():
        gpu.device.destroy_stream(stream)
    assert asked == [(cuda.cudaStreamNonBlocking, -5), (cuda.cudaStreamNonBlocking, 0)]
    before = len(gpu.modules.control.current().streams)
    with pytest.raises(OutOfDeviceMemory):
        gpu.device.make_streams()
    assert len(gpu.modules.control.current().streams) == before


def test_what_is_captured_runs_when_it_is_launched(gpu: Gpu) -> None:
    a, b = gpu.device.allocate(8), gpu.device.allocate(8)
    gpu.write(a, np.arange(8, dtype=np.uint8))
    gpu.write(b, np.zeros(8, np.uint8))
    with gpu.device.capturing(gpu.stream) as graphs:
        gpu.device.copy(b, a, 8, gpu.stream)
    assert gpu.read(b, 8).tolist() == [0] * 8
    gpu.device.launch(graphs[0], gpu.stream)
    assert gpu.read(b, 8).tolist() == list(range(8))
    gpu.device.synchronize(gpu.stream)
    gpu.device.destroy_graph(graphs[0])
    sim = gpu.modules.control.current()
    assert (sim.graphs, sim.executables) == ({}, {})


def test_a_capture_that_fails_is_ended(gpu: Gpu) -> None:
    """By a call that no capture allows, or by anything else; the stream can be used again."""
    a = gpu.device.allocate(8)
    with (
        pytest.raises(RunFailed, match=r"cudaMalloc: .*cudaErrorStreamCaptureUnsupported"),
        gpu.device.capturing(gpu.stream),
    ):
        gpu.device.allocate(8)
    with pytest.raises(KeyError), gpu.device.capturing(gpu.stream):
        raise KeyError
    sim = gpu.modules.control.current()
    assert (sim.captures, sim.executables) == ([], {})
    gpu.write(a, np.ones(8, np.uint8))
    assert gpu.read(a, 8).tolist() == [1] * 8


def test_a_graph_that_cannot_be_made_leaves_nothing(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = gpu.modules.cudart
    monkeypatch.setattr(cuda, "cudaGraphInstantiate", lambda *_: (cuda.cudaError_t.cudaErrorMemoryAllocation, None))
    a, b = gpu.device.allocate(8), gpu.device.allocate(8)
    with (
        pytest.raises(OutOfDeviceMemory, match=r"^CUDA: cudaGraphInstantiate: out of memory$"),
        gpu.device.capturing(gpu.stream) as found,
    ):
        gpu.device.copy(a, b, 8, gpu.stream)
    assert found == [] and gpu.modules.control.current().graphs == {}
