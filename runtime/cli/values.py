# SPDX-License-Identifier: Apache-2.0
"""Values of arguments: shares as numbers or in per cent, pictures by their files' names or from stdin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastmmoe.runtime.errors import InvalidRequest

STDIN = "-"
IMAGE_HELP = f"a picture, {STDIN} = standard input; may be given again"
DIGITS = 12
LEAST_PERCENTAGE = 5
"""A number from there to 100 is more likely meant in per cent than as a share that is far out of its range."""
_EXAMPLE = "expected a share such as 0.5, or 50%"


def share(text: str) -> float:
    """The number that a word means, 50% being 0.5; the type of an argument. Its range is for who uses it."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {_EXAMPLE}") from error
    if text.endswith("%"):
        # 55.3 / 100 is not 0.553.
        return round(value / 100, DIGITS)
    if LEAST_PERCENTAGE <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: {_EXAMPLE}; did you mean {text}%?")
    return value


def shares(text: str) -> tuple[float, ...]:
    """Those of words with commas between them; the type of an argument."""
    return tuple(share(part.strip()) for part in text.split(","))


def read_pictures(names: Sequence[str]) -> list[str | bytes]:
    """What `--image` names, for messages: files stay names, `-` is what comes from standard input.

    Raises:
        InvalidRequest: `-` twice, or where a terminal is standard input.
    """
    if names.count(STDIN) > 1:
        raise InvalidRequest("--image - twice: standard input is read once; give the other pictures by their files")
    return [_read_stdin() if name == STDIN else name for name in names]


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidRequest("--image - reads a picture from standard input, which is a terminal: add < picture.png")
    from fastmmoe.runtime.request.image_reader import MAX_FILE_BYTES

    return sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
