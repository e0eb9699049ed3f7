# SPDX-License-Identifier: Apache-2.0
"""Times in trtexec's form: its keys, and what its own tools compute from them."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.bench.measuring import Bench
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.bench.trtexec import export_times
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
