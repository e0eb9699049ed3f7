# SPDX-License-Identifier: Apache-2.0
"""Times in the form of `trtexec --exportTimes`, for what reads those: one object a request, in the order of the runs.

trtexec has an inference where this has a request. Its enqueueing is the host's work before the first graph call, its
computing everything from there to the last token; inputs and outputs are copied on the way, so that both copies are
empty, at the beginning and at the end. `name`, which trtexec does not write, tells settings apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastmmoe.runtime.bench.measuring import Round
from fastmmoe.runtime.bench.result import setting_name


def export_times(rounds: Iterable[Round]) -> list[dict[str, Any]]:
    """Every request that counts; milliseconds since the first of them."""
    found = []
    for one in rounds:
        for request in one.requests:
            start, end = request.start_ms, request.start_ms + request.whole_ms
            begun = start + request.preprocess_ms
            found.append(
                {
                    "startEnqMs": start,
                    "endEnqMs": begun,
                    "startH2dMs": begun,
                    "endH2dMs": begun,
                    "startComputeMs": begun,
                    "endComputeMs": end,
                    "startD2hMs": end,
                    "endD2hMs": end,
                    "h2dMs": 0.0,
                    "computeMs": end - begun,
                    "d2hMs": 0.0,
                    "latencyMs": end - begun,
                    "name": f"request{setting_name(one.setting)}",
                }
            )
    return found
