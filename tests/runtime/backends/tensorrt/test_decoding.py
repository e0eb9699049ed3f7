# SPDX-License-Identifier: Apache-2.0
"""Decode steps as a captured graph: what is asked of the device, in which order, and how many steps ahead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.base import Steps
from fastmmoe.runtime.backends.tensorrt.backend import TensorRT
from fastmmoe.runtime.backends.tensorrt.caches import DeviceCaches
from fastmmoe.runtime.backends.tensorrt.decoding import found_for_next
from fastmmoe.runtime.backends.tensorrt.memory import Layout
from fastmmoe.runtime.errors import RunFailed
from tests.support.double import Double, Modules
from tests.support.toy_engines import load_toy

AHEAD = ["launch", "copy", "record"]
SCHEDULES = 10


class Told:
    """A device that writes down what is asked of it."""

    def __init__(self, device: Any) -> None:
        self.device, self.calls = device, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            # Which asks CUDA nothing.
            if name != "check_open":
                self.calls.append(name)
            return getattr(self.device, name)(*arguments)

        return call


class Case:
    """A backend, and requests of it without caches' rows: tokens at position 5."""

    def __init__(self, modules: Modules, directory: Path) -> None:
        self.modules = modules
        self.backend: TensorRT = load_toy(directory, modules)

    def caches(self, sequences: int = 1) -> DeviceCaches:
        return self.backend.new_caches(sequences, [256] * 3)

    def feeds(self, *tokens: int, sequences: int | None = None) -> dict[str, Any]:
        """A step of these sequences, the first of the caches."""
        count, groups = len(tokens), 3
        offsets, nothing = np.zeros(count + 1, np.int32), np.zeros(0, np.int32)
        of_sites = {
            f"{what}_{part}.{s}": offsets if part == "offsets" else np.zeros(0, np.int8)
            for s in range(2)
            for what in ("keep", "merge")
            for part in ("slots", "offsets")
        }
        return {
            "inputs_embeds": [self.backend.embed(np.array([token])) for token in tokens],
            "position_ids": np.full(count, 5),
            "sequence_ids": np.arange(count),
            "sequence_offsets": np.arange(count + 1),
            "visual_index": nothing,
            "visual_offsets": offsets,
            "visual_top_k": np.ones(3),
            "alpha": np.zeros(2),
            **of_sites,
            **{f"past_lengths.{g}": np.full(sequences or count, 5 + g) for g in range(groups)},
        }

    def decode(self, feeds: dict[str, Any], caches: DeviceCaches, steps: int) -> Steps:
        """Steps of a captured graph."""
        found = self.backend.decode(feeds, caches, steps)
        assert found is not None
        return found

    def tell(self) -> Told:
        """The device's calls from now on."""
        told = Told(self.backend._own.device)
        self.backend._own.device = told  # type: ignore[assignment]
        return told


@pytest.fixture
def make(double: Double, tmp_path: Path) -> Callable[..., Case]:
    return lambda **settings: Case(double.modules(**settings), tmp_path / f"bundle{settings.get('seed', '')}")


@pytest.fixture
def case(make: Callable[..., Case]) -> Case:
    return make()


def test_what_a_step_finds_for_the_next() -> None:
    assert found_for_next(2) == {
        "input_ids": "next_ids",
        "position_ids": "next_position_ids",
        "past_lengths.0": "present_lengths.0",
        "past_lengths.1": "present_lengths.1",
    }


def test_what_it_finds_comes_first(case: Case) -> None:
    """So one copy puts it where the next step reads it."""
    steps = case.backend._steps
    first = [*found_for_next(3)]
    assert list(steps.state.offsets)[: len(first)] == first
    assert steps.first_bytes == Layout.of(dict.fromkeys(first, 8)).size
    assert all(steps.state.offsets[name] < steps.first_bytes for name in first)
    rest = {name: offset for name, offset in steps.state.offsets.items() if name not in first}
    assert min(rest.values()) == steps.first_bytes and {"alpha", "sequence_offsets"} < rest.keys()


@pytest.mark.parametrize("tokens", [(4,), (4, 9)])
def test_tokens_follow_each_other(tokens: tuple[int, ...], make: Callable[..., Case]) -> None:
    """In every schedule; positions and lengths count up with them."""
    for seed in range(SCHEDULES):
        case = make(seed=seed)
        caches = case.caches(len(tokens))
        found = [ids.tolist() for ids in case.decode(case.feeds(*tokens), caches, 6)]
        assert found == [[(token + 3 * step) % 10 for token in tokens] for step in range(1, 7)], seed
        state, steps = case.backend._own.results, case.backend._steps
        at = caches.storage.state
        shape = (len(tokens),)
        names = ("input_ids", "position_ids", "past_lengths.0", "past_lengths.2")
        left = state.fetch([(n, at + steps.state.offsets[n], shape, "int32") for n in names], case.backend._own.stream)
        assert {name: {*values.tolist()} for name, values in left.items() if name != "input_ids"} == {
            "position_ids": {11},
            "past_lengths.0": {11},
            "past_lengths.2": {13},
        }
        assert left["input_ids"].tolist() == found[-1]


def test_the_next_step_is_queued_before_this_ones_tokens_are_read(case: Case) -> None:
    told = case.tell()
    steps = case.decode(case.feeds(4), case.caches(), 4)
    told.calls.clear()
    assert next(steps).tolist() == [7]
    start = told.calls.index("launch")
    assert told.calls[:start].count("capturing") == 1 and told.calls[start - 3 : start] == [
        "synchronize",
        "capturing",
        "copy",
    ]
    assert told.calls[start:] == [*AHEAD, *AHEAD, "wait_on_host"]
    for expected in ([*AHEAD, "wait_on_host"], [*AHEAD, "wait_on_host"], ["wait_on_host"]):
        told.calls.clear()
        next(steps)
        assert told.calls == expected
    told.calls.clear()
    assert next(steps, None) is None and told.calls == []


def test_one_step_alone(case: Case) -> None:
    assert [ids.tolist() for ids in case.decode(case.feeds(4), case.caches(), 1)] == [[7]]
    assert case.modules.control.counters().graph_launches == 1


def test_a_graph_is_captured_once_for_each_number_of_sequences(case: Case) -> None:
    counters, caches = case.modules.control.counters(), case.caches(2)
    for tokens, captures in (((4,), 1), ((5,), 1), ((1, 2), 2), ((3,), 2), ((8, 8), 2)):
        found = [ids.tolist() for ids in case.decode(case.feeds(*tokens, sequences=2), caches, 3)]
        assert found == [[(token + 3 * step) % 10 for token in tokens] for step in (1, 2, 3)]
        assert counters.captures == captures
    # Other caches have other addresses.
    list(case.decode(case.feeds(4), case.caches(), 2))
    assert counters.captures == 3


def test_caches_that_are_used_again_keep_their_graphs(case: Case) -> None:
    caches = case.caches()
    list(case.decode(case.feeds(4), caches, 2))
    del caches
    found = [ids.tolist() for ids in case.decode(case.feeds(1), case.caches(), 2)]
    assert found == [[4], [7]] and case.modules.control.counters().captures == 1


def test_nothing_is_asked_of_cuda_for_a_step_but_its_graph(case: Case) -> None:
    """Of five steps after the first: a launch, a copy of the token, an event, and no memory."""
    caches = case.caches()
    list(case.decode(case.feeds(4), caches, 2))
    case.modules.control.reset_counters()
    list(case.decode(case.feeds(4), caches, 5))
    counters = case.modules.control.counters()
    assert (counters.graph_launches, counters.copies, counters.allocations) == (5, 6, 0)
    assert counters.copied_bytes == 5 * 4 + case.backend._steps.state.size


def test_what_is_left_early_disturbs_nothing(make: Callable[..., Case]) -> None:
    """The step ahead still runs; the next steps of the same caches begin after it."""
    for seed in range(SCHEDULES):
        case = make(seed=seed)
        caches = case.caches()
        for token in (4, 1, 2):
            steps = case.decode(case.feeds(token), caches, 6)
            assert [next(steps).tolist() for _ in range(2)] == [[(token + 3) % 10], [(token + 6) % 10]], seed
            steps.close()
        case.backend.close()


def test_requests_that_take_turns(make: Callable[..., Case]) -> None:
    """Each has its caches; the contexts are shared."""
    for seed in range(SCHEDULES):
        case = make(seed=seed)
        steps = [case.decode(case.feeds(token), case.caches(), 4) for token in (4, 1, 2)]
        found = [[ids.tolist()[0] for ids in turn] for turn in zip(*steps, strict=True)]
        assert found == [[(token + 3 * step) % 10 for token in (4, 1, 2)] for step in range(1, 5)], seed


def test_a_capture_that_fails_is_made_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, caches = case.modules.cudart, case.caches()
    with monkeypatch.context() as patch:
        failure = cuda.cudaError_t.cudaErrorMemoryAllocation
        patch.setattr(cuda, "cudaGraphInstantiate", lambda *_: (failure, None))
        with pytest.raises(RunFailed, match=r"^CUDA: cudaGraphInstantiate: out of memory$"):
            next(case.decode(case.feeds(4), caches, 3))
    assert caches.storage.graphs == {} and case.modules.control.current().captures == []
    assert [ids.tolist() for ids in case.decode(case.feeds(4), caches, 3)] == [[7], [0], [3]]
