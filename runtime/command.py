# SPDX-License-Identifier: Apache-2.0
"""What the commands share: one-line errors with exit code 2, clean ends on signals."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from fastmmoe.runtime.errors import FastmmoeError

USER_ERROR = 2
INTERRUPTED = 130


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
    try:
        return command()
    except FastmmoeError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: error: {where}{error.strerror or error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
