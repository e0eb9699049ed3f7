# SPDX-License-Identifier: Apache-2.0
"""What is kept, what is taken again, and what is freed when; caches and features are such things."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.backends.tensorrt.device import OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.pool import Pool


class Maker:
    """Makes numbers while there is room, of which those that are freed make more."""

    def __init__(self, room: int = 100) -> None:
        self.room, self.freed = room, list[int]()
        self.pool = Pool[int](2, self._free)

    def take(self, number: int) -> int:
        return self.pool.take(lambda kept: kept == number, lambda: self._make(number))

    def _make(self, number: int) -> int:
        if not self.room:
            raise OutOfDeviceMemory("no room")
        self.room -= 1
        return number

    def _free(self, number: int) -> None:
        self.room += 1
        self.freed.append(number)


def test_what_fits_is_taken_again_and_the_longest_idle_goes_first() -> None:
    maker = Maker()
    for number in (1, 2, 3):
        maker.take(number)
    for number in (1, 2, 3):
        maker.pool.give(number)
    assert maker.take(2) == 2 and maker.freed == []
    maker.take(4)
    assert maker.freed == [1] and list(maker.pool.idle) == [3]


def test_memory_that_runs_out_takes_what_is_idle() -> None:
    maker = Maker(room=2)
    for number in (1, 2):
        maker.take(number)
    with pytest.raises(OutOfDeviceMemory):
        maker.take(3)
    maker.pool.give(1)
    assert maker.take(3) == 3 and maker.freed == [1]


def test_at_the_end_everything_is_freed_once() -> None:
    maker = Maker()
    for number in (1, 2, 3):
        maker.take(number)
    maker.pool.give(2)
    maker.pool.close()
    assert sorted(maker.freed) == [1, 2, 3] and not maker.pool.idle
