# SPDX-License-Identifier: Apache-2.0
"""What is compared of two runs of fastmmoe bench, and what counts as overhead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.bench.settings import BenchOptions
from tests.support.bench_results import make_result, make_row
from tests.support.echo import echo_vlm
from tests.support.processors import processor_of
from tests.support.scripts import script


def test_the_row_that_differs_most_is_named() -> None:
    first = make_result(make_row((10.0, 11.0, 12.0)), make_row((5.0,), test="decode", depth=74, tokens=1))
    second = make_result(make_row((5.1,), test="decode", depth=74, tokens=1), make_row((10.0, 10.0, 12.0)))
    assert script("measure_bench").greatest_difference(first, second) == (pytest.approx(0.1), "prefill 74 r0.5")


def test_overhead_is_what_stands_around_the_requests(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0.1 s where a request takes as long: 1."""
    module, clock = script("measure_bench"), [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    vlm, echo = echo_vlm(processor_of(checkpoint("dsvl2-mha")))
    compute, run = echo.image_features, module.Bench.run

    def computed(inputs: Any) -> Any:
        clock[0] += 0.1
        return compute(inputs)

    def slowed(self: Any) -> Any:
        clock[0] += 0.1
        return run(self)

    monkeypatch.setattr(echo, "image_features", computed)
    monkeypatch.setattr(module.Bench, "run", slowed)
    options = BenchOptions((0.5,), repetitions=1, warmup=0, new_tokens=2)
    assert module.overhead_of(vlm, 3, options) == pytest.approx(1.0)
