# SPDX-License-Identifier: Apache-2.0
"""What the commands share: one-line errors with exit code 2, clean ends on signals."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fastmmoe.runtime.errors import FastmmoeError

USER_ERROR = 2
INTERRUPTED = 130
REPEAT_SECONDS = 0.05


class ArgumentParser(argparse.ArgumentParser):
    """Argument errors are one line that names the help, without the usage block."""

    def error(self, message: str) -> NoReturn:
        # A subcommand's parser is called "fastmmoe run"; every error line starts with the command alone.
        command = self.prog.split()[0]
        self.exit(USER_ERROR, f"{command}: error: {message} (see {self.prog} --help)\n")


def run_command(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; what the user can mend is printed as one line."""
    # A termination unwinds like an interrupt, so that scratch directories are removed.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_again
    # What Pillow warns of is either an error here or changes nothing; its lines would stand among the command's own.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        return command()
    except FastmmoeError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: error: {where}{error.strerror or error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"{name}: interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def resumable(directory: Path) -> Iterator[None]:
    """Have an interrupt of what is done inside say that the same command goes on with what is in the directory."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command goes on with what is in {directory}") from None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that landed in a destructor or the callback of a weak reference, where Python drops it."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    # Later and from another thread: raised at once, it would end this hook and be lost again.
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(REPEAT_SECONDS, signal.pthread_kill, (main_thread, signal.SIGTERM))
    timer.daemon = True
    timer.start()
