# SPDX-License-Identifier: Apache-2.0
"""Which calls belong to which request, and what cannot be profiled; real requests are in tests/end_to_end."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from fastmmoe.runtime.backends.node_times import Call, NodeTime
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.cost.rates import matrix_bytes
from fastmmoe.runtime.cost.roofline import Rates, decode_work, prefill_work, vision_work
from fastmmoe.runtime.errors import InvalidRequest, RunFailed
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.profiling.measuring import Measured, make_phases, measure
from tests.support.manifests import toy_manifest

MANIFEST = toy_manifest("deepseek_vl2")
INFO = MANIFEST.language_model
SCHEDULE = plan_request(MANIFEST.policy, visual_tokens=12, moe_layers=INFO.moe_layers, top_k=INFO.top_k, retention=0.5)
STEPS = 2


def request(number: int, tiles: int = 1) -> Any:
    """A request whose times tell its number."""
    stats = SimpleNamespace(
        tiles=tiles, provider="cpu", text_tokens=8, visual_tokens=12, cache_lengths=[14 + i for i in range(INFO.layers)]
    )
    return SimpleNamespace(
        stats=stats,
        schedule=SCHEDULE,
        vision_ms=100.0 + number,
        prefill_ms=200.0 + number,
        steps_ms=(300.0 + number, 400.0 + number),
    )


def calls(graph: str, values: Sequence[float]) -> list[Call]:
    return [[NodeTime(f"{graph}/Add", "Add", value)] for value in values]


def measured(tiles: int = 1, missing: int = 0) -> Measured:
    """Two requests behind one that warmed up, whose calls took 9 ms."""
    found = {
        "vision": calls("patches", [9, 10, 11] if tiles else []),
        "embedding": calls("embedding", [9] * 3 + [1, 2, 3, 4, 5, 6]),
        "language_model": calls("head", ([9] * 3 + [20, 21, 22, 30, 31, 32])[missing:]),
    }
    requests = [request(0, tiles), request(1, tiles)]
    return Measured(MANIFEST, requests, requests, found)


def times(samples: Any) -> list[tuple[list[float], float]]:
    return [([node.ms for call in one.nodes.values() for node in call], one.ms) for one in samples]


def test_calls_of_warm_up_are_left_out() -> None:
    found = measured()
    assert times(found.vision()) == [([10], 100.0), ([11], 101.0)]
    assert times(found.prefill()) == [([1, 20], 200.0), ([4, 30], 201.0)]
    assert times(found.steps()) == [([2, 21], 300.0), ([3, 22], 400.0), ([5, 31], 301.0), ([6, 32], 401.0)]


def test_a_prompt_without_pictures_has_no_vision() -> None:
    found = measured(tiles=0)
    assert found.vision() == []
    assert [phase.phase for phase in make_phases(found, None)] == ["prefill", "decode"]


def test_a_profiler_that_noted_too_little_is_found_out() -> None:
    with pytest.raises(RunFailed, match="language_model: the profiler noted 5 calls, expected 6: lower --repetitions"):
        measured(missing=4).prefill()


def test_phases_demand_what_the_rooflines_count() -> None:
    """The step is the one in the middle of the answer."""
    rates = Rates(1e12, 1e9, "test")
    vision, prefill, step = make_phases(measured(), rates)
    weights, text = matrix_bytes(MANIFEST), SCHEDULE.for_text()
    rows = [n + STEPS // 2 for n in request(0).stats.cache_lengths]
    for phase, work in (
        (vision, vision_work(MANIFEST, weights, rates, 1)),
        (prefill, prefill_work(MANIFEST, weights, rates, SCHEDULE, 20)),
        (step, decode_work(MANIFEST, weights, rates, text, rows)),
    ):
        counted = [part for part in phase.parts if part.part not in ("pruning", "norms", "rope")]
        assert sum(part.flops or 0 for part in counted) == work.flops
        assert sum(part.bytes or 0 for part in counted) == work.bytes
        # Parts that follow one another take no less than a block that does both at once.
        assert sum(part.least_ms or 0 for part in counted) >= work.ms * (1 - 1e-9)
    assert (vision.unprofiled_ms, step.calls) == (100.5, 4)


@pytest.mark.parametrize("backend", [Mock(provider="cuda"), SimpleNamespace(provider="other")], ids=["cuda", "other"])
def test_what_cannot_tell_how_long_nodes_took_is_refused(backend: Any) -> None:
    """The CUDA provider notes launches, the other has no profile at all."""

    class Opened:
        def __enter__(self) -> Any:
            return SimpleNamespace(backend=backend)

        def __exit__(self, *_: object) -> None:
            pass

    opened: Any = lambda profiles: Opened()  # noqa: E731
    with pytest.raises(InvalidRequest, match=f"provider {backend.provider}: .* take --provider tensorrt"):
        measure(opened, BenchOptions(retentions=(0.5,)), lambda _: None)
