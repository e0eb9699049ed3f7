# SPDX-License-Identifier: Apache-2.0
"""How a worker of benchmark_llm.py answers. It runs in the environment of its program, which needs not be ours.

A line of standard input is a number of rows and a number of calls: of more than 1 row a call is a prefill into a new
cache, of 1 the next step of a sequence that began with 16. The answer is a line of JSON: {"ready": true} once, then
{"seconds": [of each call], "cpu_seconds": of all of them}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

BEGINNING, LONGEST = 16, 192
"""Tokens before the first step of a sequence, and its steps."""
Call: TypeAlias = Callable[[], Any]
Load: TypeAlias = Callable[[], tuple[Callable[[int], Call], Callable[[], Callable[[], Call]]]]
"""Gives two functions: one that makes the call of a prefill of so many rows, and one that begins a sequence of
BEGINNING tokens and gives what makes the call of its next step. Calls alone are timed."""


def serve(load: Load) -> None:
    """Load the model, say so, and answer lines until there are no more."""
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prefill, begin = load()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    steps, left = begin, 0
    for line in sys.stdin:
        rows, count = map(int, line.split())
        seconds, cpu_seconds = [], 0.0
        for _ in range(count):
            if rows == 1 and not left:
                steps, left = begin(), LONGEST
            left -= rows == 1
            call = prefill(rows) if rows > 1 else steps()
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            seconds.append(time.perf_counter() - start)
            cpu_seconds += time.process_time() - cpu_start
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), file=answers, flush=True)
