# SPDX-License-Identifier: Apache-2.0
"""Deadlines and cancellations: when a request ends before its answer does."""

from __future__ import annotations

import threading
import time

import pytest

from fastmmoe.runtime import ending
from fastmmoe.runtime.ending import NEVER, Ending
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.options import RequestOptions


def test_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(ending, "now", lambda: clock[0])
    relative, absolute = (Ending.of(one) for one in (RequestOptions(deadline_ms=250), RequestOptions(deadline=101)))
    assert (relative.deadline, absolute.deadline) == (100.25, 101.0)
    for clock[0], reasons in ((100.2, (None, None)), (100.25, ("deadline", None)), (101.5, ("deadline", "deadline"))):
        assert (relative.reason(), absolute.reason()) == reasons


def test_a_time_of_the_monotonic_clock() -> None:
    assert Ending.of(RequestOptions(deadline=time.monotonic() + 60)).reason() is None
    assert Ending.of(RequestOptions(deadline=time.monotonic())).reason() == "deadline"
    assert Ending.of(RequestOptions(deadline=-1)).reason() == "deadline"


def test_an_event_cancels() -> None:
    cancel = threading.Event()
    one = Ending.of(RequestOptions(deadline=0), cancel)
    assert one.reason() == "deadline"
    cancel.set()
    assert one.reason() == "cancelled"
    assert Ending.of(RequestOptions()) == NEVER and NEVER.reason() is None


@pytest.mark.parametrize("cancel", [True, "yes", 0.5])
def test_what_is_no_event(cancel: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^cancel is of type \w+: expected a threading.Event, or None$"):
        Ending.of(RequestOptions(), cancel)
