# SPDX-License-Identifier: Apache-2.0
"""A bound on what should take no time: other work on the machine does not count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded_seconds(most: float) -> Iterator[None]:
    """Fails where the block takes this thread so many seconds of a processor, or more."""
    before = time.thread_time()
    yield
    taken = time.thread_time() - before
    assert taken < most, f"{taken:.1f} s of a processor"
