# SPDX-License-Identifier: Apache-2.0
"""The newest frame of a source, which a thread reads: whoever takes frames slowly misses some, and waits for none."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from fastmmoe.runtime.errors import InvalidRequest

Clock: TypeAlias = Callable[[], float]
"""Seconds, from any start."""

CLOSE_SECONDS = 1.0
"""How long `close` waits for a source that gives no frame."""
AHEAD_SECONDS, BEHIND_SECONDS = 1.0, 3600.0
"""A stamp that is further off is one of another clock."""


@dataclass(frozen=True)
class Frame:
    """A frame of a source.

    Attributes:
        stamp: when it was seen, in seconds of the reader's clock.
        image: as the source gave it.
        dropped: frames that came before it and that nobody took, since the one that was taken before.
    """

    stamp: float
    image: Any
    dropped: int = 0


class NewestFrame:
    """Reads a source to its end, in a thread of its own, and keeps its newest frame alone.

    The source is closed by that thread, if it can be closed, once it ends or after the first frame behind `close`.

    Args:
        source: gives pairs (stamp, frame), and waits for the next frame itself. A stamp is in seconds of `clock`; None
            = when the frame arrives here. A frame is kept as it is: the source may not write over it.
        clock: what stamps are compared with.
    Raises:
        InvalidRequest: the source gives nothing one by one.
    """

    def __init__(self, source: Iterable[tuple[float | None, Any]], *, clock: Clock = time.monotonic) -> None:
        if not isinstance(source, Iterable):
            raise InvalidRequest(
                f"source is of type {type(source).__name__}: expected an iterator of pairs (stamp, frame)"
            )
        self._clock, self._changed = clock, threading.Condition()
        self._newest: Frame | None = None
        self._dropped = 0
        self._is_closed = self._has_ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, args=(iter(source),), name="fastmmoe-camera", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """The newest frame that has not been taken, once there is one; None = the source has ended.

        Raises:
            InvalidRequest: the source gave something else than (stamp, frame), or a stamp of another clock.
            BaseException: whatever the source raised, after its last frame, once.
        """
        with self._changed:
            while self._newest is None and not self._has_ended:
                self._changed.wait()
            frame, self._newest = self._newest, None
            if frame is not None:
                dropped, self._dropped = self._dropped, 0
                return Frame(frame.stamp, frame.image, dropped)
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """Read no more; frames that were not taken are gone. A source that hangs is left behind after a second."""
        with self._changed:
            self._is_closed = self._has_ended = True
            self._newest = None
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> NewestFrame:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, source: Iterator[Any]) -> None:
        error: BaseException | None = None
        try:
            try:
                for item in source:
                    if not self._keep(self._checked(item)):
                        break
            finally:
                if hasattr(source, "close"):
                    source.close()
        # It is raised again where frames are taken.
        except BaseException as found:  # noqa: BLE001
            error = found
        with self._changed:
            self._error, self._has_ended = error, True
            self._changed.notify_all()

    def _keep(self, frame: Frame) -> bool:
        """Whether anybody may still take it."""
        with self._changed:
            if self._is_closed:
                return False
            self._dropped += self._newest is not None
            self._newest = frame
            self._changed.notify_all()
        return True

    def _checked(self, item: Any) -> Frame:
        now = self._clock()
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InvalidRequest(
                f"the source gave a value of type {type(item).__name__}: expected pairs (stamp, frame); the stamp may "
                "be None"
            )
        stamp, image = item
        if stamp is None:
            return Frame(now, image)
        if not isinstance(stamp, Real) or isinstance(stamp, bool) or not math.isfinite(stamp):
            raise InvalidRequest(f"the source gave the stamp {stamp!r:.60}: expected seconds, or None")
        age = now - float(stamp)
        if not -AHEAD_SECONDS <= age <= BEHIND_SECONDS:
            raise InvalidRequest(
                f"the source gave the stamp {float(stamp):.3f}, {abs(age):.0f} s {'before' if age > 0 else 'after'} "
                f"the clock's {now:.3f}: expected seconds of time.monotonic, or give clock=, the clock of the stamps"
            )
        return Frame(float(stamp), image)
