# SPDX-License-Identifier: Apache-2.0
"""The requests that are profiled: those of the benchmark, first without a profiler, then with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fastmmoe.runtime.backends.base import profilable
from fastmmoe.runtime.backends.node_times import Call
from fastmmoe.runtime.bench.measuring import Bench, Request
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest
from fastmmoe.runtime.cost.demands import HEAD, Demand, head_demand, layer_demands, sum_of, vision_demands
from fastmmoe.runtime.cost.rates import matrix_bytes
from fastmmoe.runtime.cost.roofline import Rates, block
from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.profiling.result import Phase, Sample, make_phase
from fastmmoe.runtime.types import Say
from fastmmoe.runtime.vlm import VLM

VISION, EMBEDDING, LANGUAGE_MODEL = GRAPHS
Open = Callable[[bool], VLM]
"""Loads the bundle; True: with a profiler."""


class Measured:
    """Requests without a profiler, requests with one, and the calls of the graphs in the latter."""

    def __init__(
        self,
        manifest: Manifest,
        plain: Sequence[Request],
        profiled: Sequence[Request],
        calls: Mapping[str, list[Call]],
    ) -> None:
        self.manifest, self.plain, self.profiled = manifest, plain, profiled
        self._calls, self._steps = calls, len(profiled[0].steps_ms)

    def vision(self) -> list[Sample]:
        """Of every request with pictures; none of others."""
        calls = self._last(VISION, 1) if self.profiled[0].stats.tiles else []
        return [Sample({VISION: call}, one.vision_ms) for (call,), one in zip(calls, self.profiled, strict=bool(calls))]

    def prefill(self) -> list[Sample]:
        """Of every request, the prompt's embedding among it."""
        return [Sample(nodes, one.prefill_ms) for (nodes, *_), one in self._of_requests()]

    def steps(self) -> list[Sample]:
        """Of every decode step of every request."""
        return [
            Sample(nodes, ms)
            for (_, *steps), one in self._of_requests()
            for nodes, ms in zip(steps, one.steps_ms, strict=True)
        ]

    def _of_requests(self) -> Iterator[tuple[list[dict[str, Call]], Request]]:
        """A request's calls of the language model, the prefill first, each with the embedding before it."""
        by_graph = {graph: self._last(graph, 1 + self._steps) for graph in (EMBEDDING, LANGUAGE_MODEL)}
        for number, request in enumerate(self.profiled):
            own = (by_graph[graph][number] for graph in by_graph)
            yield [dict(zip(by_graph, calls, strict=True)) for calls in zip(*own, strict=True)], request

    def _last(self, graph: str, each: int) -> list[list[Call]]:
        """A graph's calls, request by request, `each` of them; those before were there to warm up.

        Raises:
            RunFailed: there are fewer.
        """
        count = each * len(self.profiled)
        calls = self._calls[graph][-count:]
        if len(calls) < count:
            raise RunFailed(f"{graph}: the profiler noted {len(calls)} calls, expected {count}: lower --repetitions")
        return [calls[start : start + each] for start in range(0, count, each)]


def measure(open_bundle: Open, options: BenchOptions, say: Say) -> Measured:
    """Load the bundle, measure it, and the same again with a profiler.

    Args:
        options: of one setting.
    Raises:
        InvalidRequest: what runs it cannot tell how long nodes took, or see `Bench.run`.
        RunFailed: see `Backend`.
    """
    say("without a profiler")
    with open_bundle(False) as vlm:
        profilable(vlm.backend)
        plain = _requests(vlm, options, say)
    say("with a profiler")
    with open_bundle(True) as vlm:
        profiled = _requests(vlm, options, say)
        return Measured(vlm.manifest, plain, profiled, profilable(vlm.backend).end_profiling())


def _requests(vlm: VLM, options: BenchOptions, say: Say) -> list[Request]:
    return [request for one in Bench(vlm, options, say=say).run() for request in one.requests]


Blocks = list[dict[str, Demand]]
"""What follows one another in a call, by part; each takes its own time."""


def _step_blocks(measured: Measured) -> Blocks:
    """What a decode step demands in the middle of the answer."""
    first = measured.profiled[0]
    middle = len(first.steps_ms) // 2
    return _blocks(measured.manifest, first.schedule.for_text(), 1, [n + middle for n in first.stats.cache_lengths])


def _blocks(manifest: Manifest, schedule: Schedule, tokens: int, past: Sequence[int] | None = None) -> Blocks:
    weights = matrix_bytes(manifest)
    return [*layer_demands(manifest, weights, schedule, tokens, past), {HEAD: head_demand(manifest, weights)}]


def make_phases(measured: Measured, rates: Rates | None) -> list[Phase]:
    """Vision where there are pictures, the prefill, and a decode step.

    Args:
        rates: of what computed; None = not known.
    """
    first, plain, phases = measured.profiled[0], measured.plain, []
    if vision := measured.vision():
        blocks = [vision_demands(measured.manifest, first.stats.tiles)]
        phases.append(_phase("vision", vision, [one.vision_ms for one in plain], blocks, rates))
    prompt = _blocks(measured.manifest, first.schedule, first.stats.text_tokens + first.stats.visual_tokens)
    phases.append(_phase("prefill", measured.prefill(), [one.prefill_ms for one in plain], prompt, rates))
    steps = [ms for one in plain for ms in one.steps_ms]
    phases.append(_phase("decode", measured.steps(), steps, _step_blocks(measured), rates))
    return phases


def _phase(
    name: str, samples: Sequence[Sample], unprofiled: Sequence[float], blocks: Blocks, rates: Rates | None
) -> Phase:
    parts = {part: [one[part] for one in blocks if part in one] for one in blocks for part in one}
    demands = {part: sum_of(of_part) for part, of_part in parts.items()}
    least = None
    if rates is not None:
        least = {part: sum(block(rates, demand).ms for demand in of_part) for part, of_part in parts.items()}
    return make_phase(name, samples, unprofiled, demands, least)
