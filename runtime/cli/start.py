# SPDX-License-Identifier: Apache-2.0
"""Where processes start: there are three streams, and an interrupt ends them. Imports nothing that takes time."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

INTERRUPTED = 130
NOTHING = "nothing was written"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What interrupts a command; the last is that of a terminal that was closed."""


def main() -> int:
    """The command fastmmoe, from its first moment on: import it and run it."""
    end_at_interrupts("fastmmoe")
    from fastmmoe.runtime.cli.main import main as command

    return finished(command())


def finished(code: int) -> int:
    """Spare Python's search for cycles at its end, which takes seconds over what tracing leaves.

    Args:
        code: of the exit, which is returned.
    """
    gc.freeze()
    return code


def end_at_interrupts(name: str) -> None:
    """Have signals end the process at once until the command takes them, which has modules to import before."""
    for number in SIGNALS:
        # What a shell starts in the background ignores interrupts, what nohup starts the end of its terminal.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ending(name))


def ending(name: str, left: str = "") -> Callable[..., NoReturn]:
    """A signal handler that ends the process at once; left: what there is, "" = nothing was written."""

    def end(*_: object) -> NoReturn:
        # A terminal that was closed takes no line.
        with suppress(OSError):
            os.write(2, f"{name}: interrupted; {left or NOTHING}\n".encode())
        os._exit(INTERRUPTED)

    return end


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
