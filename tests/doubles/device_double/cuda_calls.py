# SPDX-License-Identifier: Apache-2.0
"""What every call of the CUDA runtime has in common: the device, its lock, errors, and captures that forbid calls."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from device_double.cuda_types import cudaError_t, cudaStreamCaptureMode
from device_double.device import NO_DEVICE, OLD_DRIVER, Device, current
from device_double.streams import Capture

Result = tuple[Any, ...]
OK = cudaError_t.cudaSuccess
NOT_IN_CAPTURE = cudaError_t.cudaErrorStreamCaptureUnsupported
_MISSING = {NO_DEVICE: cudaError_t.cudaErrorNoDevice, OLD_DRIVER: cudaError_t.cudaErrorInsufficientDriver}


def call(values: int, *, in_capture: bool = True) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a function with the device as its first argument a call of the runtime.

    Args:
        values: how many values it returns after the error; with an error they are None.
        in_capture: whether a thread that captures may call it. Else it answers with an error, and what is being
            captured is lost.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Result:
            sim = current()
            with sim.lock:
                error = _MISSING.get(sim.gpu.state)
                if error is None and not in_capture and invalidate(sim):
                    error = NOT_IN_CAPTURE
                result = (error,) if error is not None else function(sim, *arguments, **named)
            return result if result[0] == OK else (result[0], *[None] * values)

        signature = inspect.signature(function)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=list(signature.parameters.values())[1:]
        )
        return run

    return decorate


def invalidate(sim: Device, capture: Capture | None = None) -> bool:
    """Make captures worthless that a forbidden call meets: one, or those which forbid it to this thread.

    Returns:
        Whether there are any.
    """
    here = threading.get_ident()

    def forbids(other: Capture) -> bool:
        is_own = other.mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal and other.thread == here
        return is_own or other.mode == cudaStreamCaptureMode.cudaStreamCaptureModeGlobal

    met = [other for other in sim.captures if other is capture or (capture is None and forbids(other))]
    for one in met:
        one.is_invalid = True
    return bool(met)
