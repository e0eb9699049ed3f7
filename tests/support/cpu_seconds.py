# SPDX-License-Identifier: Apache-2.0
"""A bound on what should take no time, far above it: other work on the machine does not count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 60.0
"""What is bounded takes a second at most, and would take minutes."""


@contextmanager
def bounded_seconds() -> Iterator[None]:
    """Fails where the block takes this thread more than MANY seconds of a processor."""
    before = time.thread_time()
    yield
    taken = time.thread_time() - before
    assert taken < MANY, f"{taken:.0f} s of a processor"
