# SPDX-License-Identifier: Apache-2.0
"""The calls of cuda.bindings.runtime about streams, events, captures and graphs."""

from __future__ import annotations

import threading

from device_double.cuda_calls import NOT_IN_CAPTURE, OK, Result, call, invalidate
from device_double.cuda_types import (
    cudaError_t,
    cudaEvent_t,
    cudaEventDisableTiming,
    cudaGraph_t,
    cudaGraphExec_t,
    cudaStream_t,
    cudaStreamCaptureMode,
    cudaStreamCaptureStatus,
)
from device_double.device import Device
from device_double.misuse import Misuse
from device_double.streams import Capture, Event, Graph

LEAST_PRIORITY, GREATEST_PRIORITY = 0, -5
_INVALIDATED = cudaError_t.cudaErrorStreamCaptureInvalidated
_INVALID_HANDLE = cudaError_t.cudaErrorInvalidResourceHandle


@call(2)
def cudaDeviceGetStreamPriorityRange(sim: Device) -> Result:
    return OK, LEAST_PRIORITY, GREATEST_PRIORITY


@call(1)
def cudaStreamCreateWithPriority(sim: Device, flags: int, priority: int) -> Result:
    handle = sim.new_handle()
    sim.streams[handle] = sim.scheduler.new_lane()
    return OK, cudaStream_t(handle)


@call(0, in_capture=False)
def cudaStreamSynchronize(sim: Device, stream: object) -> Result:
    lane = sim.stream(stream, "cudaStreamSynchronize")
    if lane.capture is not None:
        invalidate(sim, lane.capture)
        return (NOT_IN_CAPTURE,)
    sim.counters.synchronizations += 1
    sim.scheduler.synchronize(lane)
    return (OK,)


@call(0)
def cudaStreamDestroy(sim: Device, stream: object) -> Result:
    lane = sim.stream(stream, "cudaStreamDestroy")
    if lane.capture is not None:
        invalidate(sim, lane.capture)
        return (NOT_IN_CAPTURE,)
    # What is queued still happens.
    lane.is_stream = False
    del sim.streams[int(stream)]  # type: ignore[call-overload]
    return (OK,)


@call(0, in_capture=False)
def cudaDeviceSynchronize(sim: Device) -> Result:
    if sim.captures:
        for capture in sim.captures:
            capture.is_invalid = True
        return (NOT_IN_CAPTURE,)
    sim.counters.synchronizations += 1
    sim.scheduler.synchronize_all()
    return (OK,)


@call(1)
def cudaEventCreateWithFlags(sim: Device, flags: int) -> Result:
    handle = sim.new_handle()
    sim.events[handle] = Event(has_timing=not flags & cudaEventDisableTiming)
    return OK, cudaEvent_t(handle)


@call(0)
def cudaEventRecord(sim: Device, event: object, stream: object) -> Result:
    lane, known = sim.stream(stream, "cudaEventRecord"), sim.event(event, "cudaEventRecord")
    if lane.capture is not None and lane.capture.is_invalid:
        return (_INVALIDATED,)
    sim.counters.events += 1
    sim.scheduler.record(lane, known)
    return (OK,)


@call(0, in_capture=False)
def cudaEventSynchronize(sim: Device, event: object) -> Result:
    known = sim.event(event, "cudaEventSynchronize")
    if known.captured is not None:
        return (cudaError_t.cudaErrorCapturedEvent,)
    sim.counters.synchronizations += 1
    sim.scheduler.synchronize_event(known)
    return (OK,)


@call(0, in_capture=False)
def cudaEventQuery(sim: Device, event: object) -> Result:
    known = sim.event(event, "cudaEventQuery")
    if known.captured is not None:
        return (cudaError_t.cudaErrorCapturedEvent,)
    return (OK if sim.scheduler.is_over(known) else cudaError_t.cudaErrorNotReady,)


@call(1)
def cudaEventElapsedTime(sim: Device, start: object, end: object) -> Result:
    first, last = sim.event(start, "cudaEventElapsedTime"), sim.event(end, "cudaEventElapsedTime")
    if not (first.has_timing and last.has_timing and first.recorded and last.recorded):
        return (_INVALID_HANDLE,)
    if first.done < first.recorded or last.done < last.recorded:
        return (cudaError_t.cudaErrorNotReady,)
    return OK, 1000 * (last.done_at - first.done_at)


@call(0)
def cudaEventDestroy(sim: Device, event: object) -> Result:
    sim.event(event, "cudaEventDestroy")
    del sim.events[int(event)]  # type: ignore[call-overload]
    return (OK,)


@call(0)
def cudaStreamWaitEvent(sim: Device, stream: object, event: object, flags: int) -> Result:
    lane, known = sim.stream(stream, "cudaStreamWaitEvent"), sim.event(event, "cudaStreamWaitEvent")
    capture, other = lane.capture, known.captured
    if other is not None and other not in sim.captures:
        return (cudaError_t.cudaErrorCapturedEvent,)
    met = capture or other
    if met is None:
        sim.scheduler.wait(lane, known)
        return (OK,)
    if met.is_invalid:
        return (_INVALIDATED,)
    if other is None:
        # A recording that is over is still work outside of the capture.
        invalidate(sim, met)
        return (cudaError_t.cudaErrorStreamCaptureIsolation,)
    if capture is not None and capture is not other:
        invalidate(sim, capture)
        invalidate(sim, other)
        return (cudaError_t.cudaErrorStreamCaptureMerge,)
    sim.scheduler.join(lane, known, other)
    return (OK,)


@call(0)
def cudaStreamBeginCapture(sim: Device, stream: object, mode: cudaStreamCaptureMode) -> Result:
    lane = sim.stream(stream, "cudaStreamBeginCapture")
    if lane.capture is not None:
        invalidate(sim, lane.capture)
        return (NOT_IN_CAPTURE,)
    capture = Capture(lane, int(cudaStreamCaptureMode(mode)), threading.get_ident())
    capture.clocks[lane.number] = type(lane.clock)()
    lane.capture = capture
    sim.captures.append(capture)
    sim.counters.captures += 1
    return (OK,)


@call(1)
def cudaStreamIsCapturing(sim: Device, stream: object) -> Result:
    capture = sim.stream(stream, "cudaStreamIsCapturing").capture
    if capture is None:
        return OK, cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
    if capture.is_invalid:
        return OK, cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
    return OK, cudaStreamCaptureStatus.cudaStreamCaptureStatusActive


@call(1)
def cudaStreamEndCapture(sim: Device, stream: object) -> Result:
    lane = sim.stream(stream, "cudaStreamEndCapture")
    capture = lane.capture
    if capture is None:
        return (cudaError_t.cudaErrorInvalidValue,)
    if capture.origin is not lane:
        invalidate(sim, capture)
        return (cudaError_t.cudaErrorStreamCaptureUnmatched,)
    for other in sim.streams.values():
        if other.capture is capture:
            other.capture = None
    sim.captures.remove(capture)
    if capture.is_invalid:
        return (_INVALIDATED,)
    if capture.has_unjoined_work():
        return (cudaError_t.cudaErrorStreamCaptureUnjoined,)
    handle = sim.new_handle()
    sim.graphs[handle] = Graph(tuple(capture.nodes), lane.number)
    return OK, cudaGraph_t(handle)


@call(1)
def cudaGraphInstantiate(sim: Device, graph: object, flags: int) -> Result:
    captured = sim.graphs.get(int(graph))  # type: ignore[call-overload]
    if captured is None:
        raise Misuse("unknown-handle", f"cudaGraphInstantiate: no graph has the handle {graph!r}; was it destroyed?")
    handle = sim.new_handle()
    sim.executables[handle] = Graph(captured.nodes, captured.origin)
    return OK, cudaGraphExec_t(handle)


@call(0)
def cudaGraphLaunch(sim: Device, graphExec: object, stream: object) -> Result:
    lane = sim.stream(stream, "cudaGraphLaunch")
    executable = sim.executables.get(int(graphExec))  # type: ignore[call-overload]
    if executable is None:
        raise Misuse("unknown-handle", f"cudaGraphLaunch: no graph has the handle {graphExec!r}; was it destroyed?")
    if lane.capture is not None:
        raise Misuse("unsupported", "cudaGraphLaunch while its stream captures: the double has no graphs in graphs")
    sim.counters.graph_launches += 1
    sim.scheduler.launch(executable, lane)
    return (OK,)


@call(0)
def cudaGraphDestroy(sim: Device, graph: object) -> Result:
    return _destroy(sim.graphs, graph, "cudaGraphDestroy")


@call(0)
def cudaGraphExecDestroy(sim: Device, graphExec: object) -> Result:
    return _destroy(sim.executables, graphExec, "cudaGraphExecDestroy")


def _destroy(graphs: dict[int, Graph], handle: object, what: str) -> Result:
    if graphs.pop(int(handle), None) is None:  # type: ignore[call-overload]
        raise Misuse("unknown-handle", f"{what}: no graph has the handle {handle!r}; was it destroyed before?")
    return (OK,)
