# SPDX-License-Identifier: Apache-2.0
"""Times in the forms of `trtexec --exportTimes` and `--exportProfile`, for what reads those.

trtexec has an inference where this has a request. Its enqueueing is the host's work before the first graph call, its
computing everything from there to the last token; inputs and outputs are copied on the way, so that both copies are
empty, at the beginning and at the end. `name`, which trtexec does not write, tells settings apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastmmoe.runtime.backends.node_times import Call, by_node
from fastmmoe.runtime.bench.measuring import Round
from fastmmoe.runtime.bench.result import setting_name
from fastmmoe.runtime.bench.statistics import median
from fastmmoe.runtime.errors import RunFailed


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


def export_profile(calls: Mapping[str, Sequence[Call]], requests: int, warmup: int) -> list[dict[str, Any]]:
    """How many requests counted, then every node of every graph: its time in all of them, and in one.

    Args:
        calls: of each graph, those of requests of one kind.
        warmup: so many of the first requests do not count.
    Raises:
        RunFailed: the calls are not those of so many requests.
    """
    found = []
    for graph, of_graph in calls.items():
        each, rest = divmod(len(of_graph), requests + warmup)
        if rest:
            raise RunFailed(
                f"{graph}: {len(of_graph)} calls were noted of {requests + warmup} equal requests: lower -n"
            )
        starts = range(each * warmup, len(of_graph), each) if each else ()
        together = [[node for call in of_graph[start : start + each] for node in call] for start in starts]
        found += [(f"{graph}/{node.name}", node.ms) for node in by_node(together)]
    whole = sum(sum(times) for _, times in found)
    layers = [
        {
            "name": name,
            "timeMs": sum(times),
            "averageMs": sum(times) / requests,
            "medianMs": median(times),
            "percentage": 100 * sum(times) / whole if whole > 0 else 0.0,
        }
        for name, times in found
    ]
    return [{"count": requests}, *layers]
