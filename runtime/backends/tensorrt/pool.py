# SPDX-License-Identifier: Apache-2.0
"""Things on the device that are made for a request, and kept for those to come when nobody has them any more."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Generic, TypeVar

from fastmmoe.runtime.backends.tensorrt.device import OutOfDeviceMemory

Kept = TypeVar("Kept")


class Pool(Generic[Kept]):
    """Keeps a few things that are free; `take`, `free_idle` and `close` are for one thread at a time.

    Args:
        most_idle: how many are kept.
        free: gives the memory of one back. Things are told apart by what they are, not by their values.

    Attributes:
        idle: what is free, the longest first.
    """

    def __init__(self, most_idle: int, free: Callable[[Kept], None]) -> None:
        self._most_idle, self._free = most_idle, free
        self.idle: collections.deque[Kept] = collections.deque()
        self._made: list[Kept] = []

    def take(self, fits: Callable[[Kept], bool], make: Callable[[], Kept]) -> Kept:
        """One that is free and fits, or a new one.

        Raises:
            OutOfDeviceMemory: there is not enough, even without what is kept.
        """
        for one in list(self.idle):
            if fits(one):
                self.idle.remove(one)
                return one
        while len(self.idle) >= self._most_idle:
            self._drop(self.idle.popleft())
        try:
            made = make()
        except OutOfDeviceMemory:
            if not self.idle:
                raise
            self.free_idle()
            made = make()
        self._made.append(made)
        return made

    def give(self, one: Kept) -> None:
        """Keep it for another. Called by whatever thread lets it go, so it waits for nothing."""
        self.idle.append(one)

    def free_idle(self) -> None:
        """Free what is kept."""
        while self.idle:
            self._drop(self.idle.popleft())

    def close(self) -> None:
        """Free everything, what is in use too: nobody may use it any more."""
        self.idle.clear()
        while self._made:
            self._drop(self._made[-1])

    def _drop(self, one: Kept) -> None:
        self._made.remove(one)
        self._free(one)
