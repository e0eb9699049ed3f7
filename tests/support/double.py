# SPDX-License-Identifier: Apache-2.0
"""The host double of CUDA and TensorRT (docs/device-double.md) for tests: in this process and in others."""

from __future__ import annotations

import importlib
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

DOUBLES = Path(__file__).resolve().parents[1] / "doubles"
TENSORRT = "FASTMMOE_DOUBLE_TENSORRT"
BACKEND = "fastmmoe.runtime.backends.tensorrt"
PACKAGES = ("cuda", "tensorrt", "tensorrt_rtx")
"""What the double takes the place of."""


class Modules(NamedTuple):
    """The packages over a fresh device, and `device_double.control` to ask and set it."""

    trt: Any
    cudart: Any
    control: Any


class Double:
    """The double while it is installed in this process.

    Arguments of its functions: seed of the schedule, bytes of device memory, and the GPU as FASTMMOE_DOUBLE_GPU
    describes it ("none", "old", "sm=87,name=Orin"), the version of tensorrt ("10.3.0", "10.16.2.10", "11.4.0.106");
    None = the double's default.
    """

    def environment(self, seed: int | None = None, memory: int | None = None, gpu: str | None = None) -> dict[str, str]:
        """The environment in which a process finds the double in the place of the packages."""
        given = {"FASTMMOE_DOUBLE_SEED": seed, "FASTMMOE_DOUBLE_MEMORY": memory, "FASTMMOE_DOUBLE_GPU": gpu}
        path = os.pathsep.join([str(DOUBLES), *filter(None, [os.environ.get("PYTHONPATH")])])
        rest = {name: value for name, value in os.environ.items() if name not in given}
        return rest | {name: str(value) for name, value in given.items() if value is not None} | {"PYTHONPATH": path}

    def control(self) -> Any:
        """`device_double.control` of the device as it is."""
        return importlib.import_module("device_double.control")

    def modules(
        self,
        module: str = "tensorrt_rtx",
        seed: int = 0,
        memory: int | None = None,
        gpu: str | None = None,
        tensorrt: str | None = None,
    ) -> Modules:
        """The packages over a fresh device; `module` is "tensorrt" or "tensorrt_rtx"."""
        control = self.control()
        _forget_what_is_held()
        control.reset(seed, memory, gpu)
        if tensorrt is not None:
            sys.modules.pop("tensorrt", None)
            os.environ[TENSORRT] = tensorrt
        return Modules(importlib.import_module(module), importlib.import_module("cuda.bindings.runtime"), control)


def _forget_what_is_held() -> None:
    """Have nobody give anything back to a device that is gone: a test that failed may still hold some of it."""
    held = [one for one in list(weakref.finalize._registry) if BACKEND in one.peek()[1].__module__]  # type: ignore[attr-defined]
    for one in held:
        one.detach()


@contextmanager
def installed() -> Iterator[Double]:
    """Have imports find the double; what was imported of the real packages comes back at the end."""

    def take_away() -> dict[str, Any]:
        names = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
        return {name: sys.modules.pop(name) for name in names}

    real, named = take_away(), os.environ.get(TENSORRT)
    sys.path.insert(0, str(DOUBLES))
    importlib.invalidate_caches()
    try:
        yield Double()
    finally:
        _forget_what_is_held()
        take_away()
        sys.path.remove(str(DOUBLES))
        os.environ.pop(TENSORRT, None)
        os.environ.update({} if named is None else {TENSORRT: named})
        sys.modules.update(real)
