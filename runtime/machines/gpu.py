# SPDX-License-Identifier: Apache-2.0
"""The GPU of this machine, asked of NVIDIA's driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU. sm: compute capability, 87 for 8.7."""

    name: str
    sm: int


def find_gpu() -> Gpu | None:
    """The first GPU, in the order of $CUDA_VISIBLE_DEVICES; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failures = (
        driver.cuDeviceGetName(name, NAME_BYTES, device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device),
    )
    if any(failures):
        return None
    return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value)
