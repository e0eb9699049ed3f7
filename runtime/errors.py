# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. The commands print them as one line and exit with code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks and what else moves a terminal's cursor: file names and damaged files may hold it."""


def without_breaks(text: str) -> str:
    """The text with such characters as escapes."""
    return _BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: the one that is closest to it, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


class FastmmoeError(Exception):
    """Base of every error the commands print without a traceback. What it says is one line."""

    def __str__(self) -> str:
        return without_breaks(super().__str__())


class InvalidRequest(FastmmoeError, ValueError):
    """An argument or an input is outside what the model or the method allows."""


class UnsupportedModel(FastmmoeError):
    """A checkpoint or its configuration holds something this version does not implement, or is damaged."""


class BundleMismatch(FastmmoeError):
    """A bundle, a native library and this version do not belong together, or a bundle is damaged."""


class NotFinite(FastmmoeError, ArithmeticError):
    """The model has computed NaN or infinity, of which no answer can be made."""


class RunFailed(FastmmoeError):
    """ONNX Runtime has ended the run of a graph with an error."""


class BackendMissing(FastmmoeError, ImportError):
    """A library that runs the graphs is not installed, or not as it should be."""
