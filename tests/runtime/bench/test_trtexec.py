# SPDX-License-Identifier: Apache-2.0
"""Times in trtexec's forms: their keys, and what its own tools compute from them."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.backends.node_times import NodeTime
from fastmmoe.runtime.bench.measuring import Bench
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.bench.trtexec import export_profile, export_times
from fastmmoe.runtime.errors import RunFailed
from tests.support.echo import echo_vlm
from tests.support.processors import MakeProcessor

PHASES = ("Enq", "H2d", "Compute", "D2h")
SPANS = ("h2dMs", "computeMs", "d2hMs", "latencyMs")
KEYS = [*(f"{edge}{phase}Ms" for phase in PHASES for edge in ("start", "end")), *SPANS]
"""Those that exportJSONTrace of TensorRT's samples/common/sampleReporting.cpp writes, in its order (10.x, 11.x)."""


def test_a_request_is_an_inference(processor: MakeProcessor) -> None:
    vlm, _ = echo_vlm(processor("dsvl2-mha"))
    rounds = Bench(vlm, BenchOptions((0.5, 1.0), repetitions=2, warmup=1, new_tokens=2)).run()
    found = export_times(rounds)
    assert [one["name"] for one in found] == ["request r0.5", "request r1", "request r1", "request r0.5"]
    for one, of_round in zip(found, rounds, strict=True):
        assert list(one)[:-1] == KEYS
        times = [one[key] for key in KEYS[:8]]
        assert times == sorted(times)
        assert one["latencyMs"] == one["h2dMs"] + one["computeMs"] + one["d2hMs"]
        assert one["endD2hMs"] - one["startEnqMs"] == pytest.approx(of_round.requests[0].whole_ms)
        assert one["endEnqMs"] - one["startEnqMs"] == pytest.approx(of_round.requests[0].preprocess_ms)


def test_a_profile_has_every_node_of_a_request() -> None:
    """Keys as exportJSONProfile of the same file writes them. The first of three requests warms up."""
    calls = {
        "vision": [[NodeTime("a", "MatMul", ms)] for ms in (90.0, 2.0, 4.0)],
        "language_model": [
            [NodeTime("b", "", ms), NodeTime("c", "", 1.0)] for ms in (90.0, 90.0, 90.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
        ],
        "embedding": [],
    }
    assert export_profile(calls, 2, 1) == [
        {"count": 2},
        {"name": "vision/a", "timeMs": 6.0, "averageMs": 3.0, "medianMs": 3.0, "percentage": pytest.approx(600 / 33)},
        {
            "name": "language_model/b",
            "timeMs": 21.0,
            "averageMs": 10.5,
            "medianMs": 10.5,
            "percentage": pytest.approx(2100 / 33),
        },
        {
            "name": "language_model/c",
            "timeMs": 6.0,
            "averageMs": 3.0,
            "medianMs": 3.0,
            "percentage": pytest.approx(600 / 33),
        },
    ]


def test_a_profile_that_lacks_calls() -> None:
    with pytest.raises(RunFailed, match=r"^vision: 5 calls were noted of 3 equal requests: lower -n$"):
        export_profile({"vision": [[NodeTime("a", "", 1.0)]] * 5}, 2, 1)
