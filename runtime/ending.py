# SPDX-License-Identifier: Apache-2.0
"""When a request ends before its answer does: at its deadline, or because somebody cancels it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.options import RequestOptions

DEADLINE, CANCELLED = "deadline", "cancelled"
"""Reasons, as an answer's finish_reason names them."""


class Flag(Protocol):
    """What cancels a request once it is set, by any thread: a threading.Event."""

    def is_set(self) -> bool:
        """Whether the request has been cancelled."""


@dataclass(frozen=True)
class Ending:
    """What ends a request early.

    Attributes:
        deadline: seconds of time.monotonic; None = none.
        cancel: None = nobody cancels it.
    """

    deadline: float | None = None
    cancel: Flag | None = None

    @staticmethod
    def of(options: RequestOptions, cancel: Any = None) -> Ending:
        """Of a request that starts now.

        Raises:
            InvalidRequest: cancel has no is_set.
        """
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise InvalidRequest(f"cancel is of type {type(cancel).__name__}: expected a threading.Event, or None")
        deadline = options.deadline
        if options.deadline_ms is not None:
            deadline = now() + options.deadline_ms / 1e3
        return Ending(deadline, cancel)

    def reason(self) -> str | None:
        """Why it ends now; None = it goes on."""
        if self.cancel is not None and self.cancel.is_set():
            return CANCELLED
        return DEADLINE if self.deadline is not None and now() >= self.deadline else None


NEVER = Ending()


def now() -> float:
    """The clock of deadlines."""
    return time.monotonic()
