# SPDX-License-Identifier: Apache-2.0
"""Where processes start: whatever they are given, there are three streams. Imports nothing that takes time."""

from __future__ import annotations

import os
import sys


def open_missing_streams() -> None:
    """Have input be empty, and output go nowhere, where a process was started without them (`>&-`).

    The first file that is opened would take their place, and be written to by whoever prints.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
