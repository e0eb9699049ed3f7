# SPDX-License-Identifier: Apache-2.0
"""CUDA's runtime API: one function is one call, and every error is raised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastmmoe.runtime.backends.base import CLOSED
from fastmmoe.runtime.errors import InvalidRequest, RunFailed
from fastmmoe.runtime.machines.gpu import of_properties

Address: TypeAlias = int
Stream: TypeAlias = Any
Event: TypeAlias = Any
Graph: TypeAlias = Any


class OutOfDeviceMemory(RunFailed):
    """The device, or the host for memory that a device reads, has no such block left."""


@dataclass(frozen=True)
class Properties:
    """The GPU. sm: compute capability, 87 for 8.7. is_integrated: it shares the host's memory, as on Jetson."""

    name: str
    sm: int
    is_integrated: bool


class Device:
    """The first GPU, in the order of $CUDA_VISIBLE_DEVICES.

    Args:
        cudart: the module `cuda.bindings.runtime`.
    """

    def __init__(self, cudart: Any) -> None:
        self._cuda = cudart
        self._success = cudart.cudaError_t.cudaSuccess
        self._out_of_memory = cudart.cudaError_t.cudaErrorMemoryAllocation
        self._any_direction = cudart.cudaMemcpyKind.cudaMemcpyDefault
        self._own_thread = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._blocking = cudart.cudaEventBlockingSync
        self._is_open = True

    def retire(self) -> None:
        """Have nobody begin anything more: what is on the device goes back."""
        self._is_open = False

    def check_open(self) -> None:
        """Raise InvalidRequest once it has been retired. Asked under the lock that guards what is used next."""
        if not self._is_open:
            raise InvalidRequest(CLOSED)

    def properties(self) -> Properties:
        """What the driver says of the GPU."""
        (found,) = self._call("cudaGetDeviceProperties", 0)
        gpu = of_properties(found)
        return Properties(gpu.name, gpu.sm, bool(found.integrated))

    def memory(self) -> tuple[int, int]:
        """Free bytes, and all of them."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> Address:
        """Device memory, aligned to 256 bytes, with anything in it."""
        (address,) = self._call("cudaMalloc", size)
        return int(address)

    def free(self, address: Address) -> None:
        """Give device memory back; nothing that is queued may use it."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> Address:
        """Host memory that copies run from and to while the host goes on."""
        (address,) = self._call("cudaHostAlloc", size, 0)
        return int(address)

    def free_pinned(self, address: Address) -> None:
        """Give pinned memory back."""
        self._call("cudaFreeHost", address)

    def copy(self, target: Address, source: Address, size: int, stream: Stream) -> None:
        """Queue a copy, in whichever direction the addresses say."""
        self._call("cudaMemcpyAsync", target, source, size, self._any_direction, stream)

    def copy_rows(
        self, target: Address, target_pitch: int, source: Address, source_pitch: int, width: int, rows: int, stream: Any
    ) -> None:
        """Queue a copy of rows of `width` bytes that lie so many bytes apart."""
        self._call(
            "cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, self._any_direction, stream
        )

    def make_streams(self) -> tuple[Stream, Stream]:
        """One of high priority and one of low. The default stream would make TensorRT synchronise."""
        least, greatest = self._call("cudaDeviceGetStreamPriorityRange")
        high = self._make_stream(greatest)
        try:
            return high, self._make_stream(least)
        except RunFailed:
            self.destroy_stream(high)
            raise

    def _make_stream(self, priority: int) -> Stream:
        return self._call("cudaStreamCreateWithPriority", self._cuda.cudaStreamNonBlocking, priority)[0]

    def destroy_stream(self, stream: Stream) -> None:
        """Let it go when its work is done."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Stream) -> None:
        """Wait for all that is queued."""
        self._call("cudaStreamSynchronize", stream)

    def make_event(self, *, is_timed: bool = False) -> Event:
        """An event; who waits for it sleeps."""
        flags = self._blocking if is_timed else self._blocking | self._cuda.cudaEventDisableTiming
        return self._call("cudaEventCreateWithFlags", flags)[0]

    def destroy_event(self, event: Event) -> None:
        """Let it go."""
        self._call("cudaEventDestroy", event)

    def record(self, event: Event, stream: Stream) -> None:
        """Mark this place of the stream."""
        self._call("cudaEventRecord", event, stream)

    @contextlib.contextmanager
    def marked(self, event: Event, stream: Stream) -> Iterator[None]:
        """What is queued inside has run once the event has passed; where it is interrupted, it has run at the end."""
        try:
            yield
            self.record(event, stream)
        except BaseException:
            # Nobody will know of an event that was not recorded, Ctrl-C included.
            with contextlib.suppress(RunFailed):
                self.synchronize(stream)
            raise

    def wait(self, stream: Stream, event: Event) -> None:
        """Have the stream go on only after the event."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def wait_on_host(self, event: Event) -> None:
        """Go on only after the event."""
        self._call("cudaEventSynchronize", event)

    def milliseconds(self, first: Event, second: Event) -> float:
        """Between two timed events that have passed."""
        return float(self._call("cudaEventElapsedTime", first, second)[0])

    @contextlib.contextmanager
    def capturing(self, stream: Stream) -> Iterator[list[Graph]]:
        """What is queued inside becomes a graph, the one element of the list afterwards; nothing of it runs."""
        found: list[Graph] = []
        try:
            self._call("cudaStreamBeginCapture", stream, self._own_thread)
            yield found
        except BaseException:
            # A capture that fails must be ended too; what it gives is no graph.
            with contextlib.suppress(RunFailed):
                self._call("cudaStreamEndCapture", stream)
            raise
        (graph,) = self._call("cudaStreamEndCapture", stream)
        try:
            found.append(self._call("cudaGraphInstantiate", graph, 0)[0])
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Queue a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Graph) -> None:
        """Let a captured graph go."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._success:
            raise self._failure(name, error, arguments)
        return tuple(values)

    def _failure(self, name: str, error: Any, arguments: tuple[Any, ...]) -> RunFailed:
        what = self._cuda.cudaGetErrorString(error)[1]
        text = what.decode(errors="replace") if isinstance(what, bytes) else what
        if error == self._out_of_memory:
            size = next((f" of {value / 1e6:.1f} MB" for value in arguments[:1] if isinstance(value, int)), "")
            return OutOfDeviceMemory(f"CUDA: {name}{size}: {text}")
        return RunFailed(f"CUDA: {name}: {text} ({error.name})")
