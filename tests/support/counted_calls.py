# SPDX-License-Identifier: Apache-2.0
"""How much Python does, in calls: the same on a busy machine and an idle one, which times are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Calls:
    """Calls of functions so far, in Python and C.

    Attributes:
        count: of this thread, while `counted` goes on.
    """

    count = 0


@contextmanager
def counted() -> Iterator[Calls]:
    """Counts calls of this thread to the end of the block."""
    calls = Calls()

    def note(frame: Any, event: str, argument: Any) -> None:
        calls.count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
