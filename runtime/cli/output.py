# SPDX-License-Identifier: Apache-2.0
"""What a command prints: lines as it works, on a terminal some of them one in the other's place, or one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from typing import Any, TextIO

JSON_HELP = "one JSON object instead of text"
SECONDS, TERMINAL_SECONDS = 10.0, 2.0


def add_json(parser: argparse.ArgumentParser, what: str = JSON_HELP) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=what)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add --json and --quiet to a command that says what it does; `Lines.of` reads them."""
    add_json(parser, f"{JSON_HELP}, which goes to stderr")
    parser.add_argument("-q", "--quiet", action="store_true", help="no text but errors")


def print_json(value: Any) -> None:
    """Print one object on one line, paths as text."""
    # Other encodings' escapes of what they lack are not JSON's.
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not is_utf8, default=str), flush=True)


class Lines:
    """Prints lines. On a terminal a line of progress takes the place of the one before.

    Args:
        is_json: stdout is for one object, lines go to stderr.
        is_quiet: they go nowhere.

    Attributes: seconds: between two lines of progress.
    """

    def __init__(self, *, is_json: bool = False, is_quiet: bool = False) -> None:
        self._stream: TextIO = sys.stderr if is_json else sys.stdout
        self._is_quiet = is_quiet
        self._is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._last_is_progress = False
        self.seconds = TERMINAL_SECONDS if self._is_terminal else SECONDS

    @staticmethod
    def of(arguments: argparse.Namespace) -> Lines:
        """As the options of `add_output` ask for."""
        return Lines(is_json=arguments.json, is_quiet=arguments.quiet)

    def __call__(self, line: str) -> None:
        """Print a line."""
        self._last_is_progress = False
        self._print(line)

    def progress(self, line: str) -> None:
        """Print a line of progress."""
        if self._is_terminal:
            # A line that wraps would not be cleared as a whole.
            line = line[: max(shutil.get_terminal_size().columns - 1, 1)]
        up = "\x1b[A\x1b[2K" if self._is_terminal and self._last_is_progress else ""
        self._print(f"{up}{line}")
        self._last_is_progress = True

    def _print(self, line: str) -> None:
        if not self._is_quiet:
            print(line, file=self._stream, flush=True)
