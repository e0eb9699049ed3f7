# SPDX-License-Identifier: Apache-2.0
"""How long each node of a graph took, as told by what runs it: ONNX Runtime in a trace, TensorRT layer by layer."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_CALL, _NODE, _SUFFIX = "model_run", "Node", "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """A node in one call: its name, its operator ("" where that is not told), milliseconds."""

    name: str
    operator: str
    ms: float


Call: TypeAlias = list[NodeTime]
"""The nodes of one call of a graph, in the order in which they ran."""


@dataclass(frozen=True)
class NodeTimes:
    """A node in several calls; ms: of each of them, 0 where it did not run."""

    name: str
    operator: str
    ms: tuple[float, ...]


def read_trace(path: Path) -> list[Call]:
    """The calls that a session of ONNX Runtime was profiled in (`SessionOptions.enable_profiling`).

    What is fused is one node, whose name begins with that of a node it is made of. A node with a graph of its own, a
    loop for example, is one node with all that ran in it. Times are whole microseconds.

    Raises:
        ValueError: a node ran outside of every call, so that the trace is not whole.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    calls = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == _CALL)
    nodes = [event for event in events if event.get("cat") == _NODE and event["name"].endswith(_SUFFIX)]
    found: list[Call] = [[] for _ in calls]
    begin = end = 0
    for event in sorted(nodes, key=lambda event: (int(event["ts"]), -int(event["dur"]))):
        # What took no microsecond may have come just before.
        if begin < event["ts"] < end or (event["dur"] and event["ts"] < end):
            continue
        if event["ts"] + event["dur"] > end:
            begin, end = event["ts"], event["ts"] + event["dur"]
        number = bisect_right(calls, (event["ts"], float("inf"))) - 1
        if number < 0 or event["ts"] > calls[number][1]:
            raise ValueError(f"{path}: {event['name']} at {event['ts']} us is in no call: the trace is not whole")
        node = NodeTime(
            event["name"].removesuffix(_SUFFIX), event.get("args", {}).get("op_name", ""), event["dur"] / 1e3
        )
        found[number].append(node)
    return found


def by_node(calls: Sequence[Call]) -> list[NodeTimes]:
    """Every node with its times in all calls, in the order in which they first ran; of one name they are summed."""
    operators: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    for number, call in enumerate(calls):
        for node in call:
            operators.setdefault(node.name, node.operator)
            times.setdefault(node.name, [0.0] * len(calls))[number] += node.ms
    return [NodeTimes(name, operators[name], tuple(ms)) for name, ms in times.items()]
