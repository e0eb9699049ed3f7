# SPDX-License-Identifier: Apache-2.0
"""Errors that libtiff finds in a compressed TIFF: it prints them by itself, and Pillow takes some of such pictures."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
# TIFFErrorHandler of tiffio.h: module, format, va_list.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


@contextmanager
def collect_errors() -> Iterator[list[str]]:
    """The modules of libtiff that report an error meanwhile, on this thread; nothing is printed.

    Where Pillow's libtiff cannot be reached, the list stays empty and libtiff prints.
    """
    from PIL import _imaging

    found: list[str] = []
    thread = threading.get_ident()

    def note(module: bytes | None, _format: bytes | None, _arguments: int | None) -> None:
        if threading.get_ident() == thread:
            found.append((module or b"").decode("ascii", "replace"))

    set_handler = getattr(ctypes.CDLL(_imaging.__file__), "TIFFSetErrorHandler", None)
    if set_handler is None:
        yield found
        return
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    handler = _HANDLER(note)
    # The handler is one for the whole process.
    with _LOCK:
        before = set_handler(ctypes.cast(handler, ctypes.c_void_p))
        try:
            yield found
        finally:
            set_handler(before)
