# SPDX-License-Identifier: Apache-2.0
"""What tests ask and set."""

from __future__ import annotations

from device_double.device import Counters, Device, current, reset
from device_double.memory import Live
from device_double.misuse import Misuse

__all__ = ["Counters", "Device", "Live", "Misuse", "counters", "current", "live", "no_op", "reset", "reset_counters"]


def counters() -> Counters:
    """Calls since the device was made or the counters were reset; the object goes on counting."""
    return current().counters


def reset_counters() -> None:
    """Count from 0."""
    current().counters = Counters()


def live() -> tuple[Live, Live]:
    """Device memory and pinned memory in use."""
    memory = current().memory
    return memory.device, memory.pinned


def no_op(is_on: bool = True) -> None:
    """Have engines check everything and compute nothing, to time host code; outputs become 0."""
    current().is_no_op = is_on
