# SPDX-License-Identifier: Apache-2.0
"""The check of an export: what counts as a difference, and what another prompt must decide; no graph is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.check import parity
from fastmmoe.exporter.check.parity import SEEDS, Case, Difference, Written
from fastmmoe.exporter.check.prompts import Outcome, Prompt
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from tests.support.manifests import POLICY, toy_manifest

ATOL = 1e-4
Found = list[Difference] | None
PORTABLE = toy_manifest("deepseek_vl2")


def plan(method: str = "fastmmoe", retention: float = 0.5) -> Schedule:
    return plan_request(
        PORTABLE.policy, visual_tokens=8, moe_layers=(1, 2, 3), top_k=4, method=method, retention=retention
    )


def outcome_of(*logits: float, kept: tuple[int, ...] = (0, 1)) -> Outcome:
    return Outcome([np.array(logits)], [np.array(kept, np.int32)])


def case_of(schedule: Schedule, *logits: float, kept: tuple[int, ...] = (0, 1)) -> Case:
    prompt = Prompt(np.zeros((4, 2), np.float32), np.arange(2), schedule, (np.zeros((1, 2), np.float32),))
    return Case(prompt, outcome_of(*logits, kept=kept))


def within() -> list[Difference]:
    return [Difference("x", ATOL, ATOL)]


def beyond(value: float = 2 * ATOL) -> list[Difference]:
    return [Difference("x", value, ATOL)]


class Check(parity._LanguageModelCheck):
    """A check whose graph gives what is scripted for each prompt, in turn."""

    def __init__(self, script: list[Found], atol: float | None = ATOL) -> None:
        written = Written(Path(), PORTABLE, {})
        super().__init__(None, written, np.zeros((2, 2)), lambda ids: ids, atol, lambda _: None)  # type: ignore[arg-type]
        object.__setattr__(self, "script", iter(script))

    script: Iterator[Found]

    def _torch_cases(self, schedules: Sequence[Schedule], seed: int) -> tuple[list[Case], list[Difference]]:
        return [case_of(schedule) for schedule in schedules], [Difference("body", 0.0, ATOL)]

    def _run_graph(self, cases: Sequence[Case]) -> list[Found]:
        return [next(self.script) for _ in cases]


@pytest.fixture
def clear(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Function (whether noise leaves every choice of torch as it is), for the rest of the test."""

    def choose(is_clear: bool) -> None:
        monkeypatch.setattr(Check, "_are_clear", lambda self, cases, seed: [is_clear] * len(cases))

    return choose


@pytest.mark.parametrize(
    ("value", "is_ok"), [(0.0, True), (ATOL, True), (1.01 * ATOL, False), (math.inf, False), (math.nan, False)]
)
def test_a_difference_within_the_tolerance(value: float, is_ok: bool) -> None:
    assert Difference("logits", value, ATOL).is_ok == is_ok


def test_what_computes_is_named() -> None:
    assert Written(Path(), PORTABLE, {}).label == "onnxruntime"
    assert Written(Path(), PORTABLE, {}, name="read as float32").label == "onnxruntime, read as float32"


def test_a_graph_that_agrees_settles_a_prompt(clear: Callable[[bool], None]) -> None:
    """What the bodies of the portable graph compute is reported once."""
    clear(False)
    assert len(Check([within(), within()]).run([plan("none", 1.0), plan()])) == 3


def test_a_clear_difference_is_reported(clear: Callable[[bool], None]) -> None:
    """All that was found for the prompt, what is within the tolerance too."""
    clear(True)
    found = Check([within() + beyond()]).run([plan()])
    assert [d.is_ok for d in found] == [True, False, True]


def test_nan_is_no_near_tie(clear: Callable[[bool], None]) -> None:
    clear(True)
    found = Check([beyond(math.nan)]).run([plan()])
    assert [d.is_ok for d in found] == [False, True]


def test_other_survivors_where_all_is_clear_fail(clear: Callable[[bool], None]) -> None:
    clear(True)
    with pytest.raises(CheckFailed) as raised:
        Check([None]).run([plan()])
    assert str(raised.value) == "fastmmoe, retention 0.5: onnxruntime and torch keep different tokens"


@pytest.mark.parametrize("first", [beyond(), None])
def test_near_ties_are_left_to_another_prompt(clear: Callable[[bool], None], first: Found) -> None:
    """The schedule that is settled is not run again: one more answer is scripted."""
    clear(False)
    check = Check([within(), first, within()])
    found = check.run([plan("none", 1.0), plan()])
    assert all(d.is_ok for d in found) and len(found) == 3
    assert not list(check.script)


def test_near_ties_in_every_prompt_fail(clear: Callable[[bool], None]) -> None:
    clear(False)
    check = Check([within(), *[beyond()] * SEEDS])
    with pytest.raises(CheckFailed) as raised:
        check.run([plan("none", 1.0), plan()])
    message = f"fastmmoe, retention 0.5: near ties decide about the tokens of {SEEDS} random prompts"
    assert str(raised.value) == message
    assert not list(check.script)


@pytest.mark.parametrize(
    ("moved", "is_clear"),
    [
        # Logits that move by a quarter of the difference or less are no explanation of it.
        ((outcome_of(1.0), outcome_of(1.0)), True),
        ((outcome_of(1.25), outcome_of(0.75)), True),
        ((outcome_of(1.3), outcome_of(1.0)), False),
        ((outcome_of(1.0), outcome_of(0.7)), False),
        ((outcome_of(1.0, kept=(0, 2)), outcome_of(1.0)), False),
        ((outcome_of(1.0), outcome_of(1.0, kept=(0, 2))), False),
    ],
)
def test_noise_tells_whether_a_choice_is_clear(
    monkeypatch: pytest.MonkeyPatch, moved: tuple[Outcome, Outcome], is_clear: bool
) -> None:
    """Noise and its opposite, small against every embedding, of the decode steps too, in one pass."""
    given: list[Prompt] = []

    def run(self: Check, prompts: list[tuple[Prompt, str]]) -> list[Outcome]:
        given.extend(prompt for prompt, _ in prompts)
        return list(moved)

    monkeypatch.setattr(Check, "_in_torch", run)
    check, difference = Check([]), [Difference("x", 1.0, ATOL)]
    object.__setattr__(check, "model", SimpleNamespace(precision=SimpleNamespace(cache_dtype="float32")))
    assert check._are_clear([(case_of(plan(), 1.0), difference)], 3) == [is_clear]
    assert 0 < np.abs(given[0].embeds).max() < 10 * parity.NOISE
    for one, other in ((given[0].embeds, given[1].embeds), (given[0].steps[0], given[1].steps[0])):
        np.testing.assert_array_equal(other, -one)


def test_schedules_that_are_compared() -> None:
    """The unmodified model, then each method at the stored retention, or at half of the tokens where that is 1."""

    def found(retention: float) -> list[tuple[str, float]]:
        policy = toy_manifest("deepseek_vl2", policy={**POLICY, "retention": retention}).policy
        config = SimpleNamespace(moe_layers=(1, 2, 3), moe=SimpleNamespace(top_k=4))
        model: Any = SimpleNamespace(policy=policy, config=config)
        return [(s.method, s.retention) for s in parity._schedules(model, 8)]

    assert found(0.25) == [("none", 1.0), ("fastmmoe", 0.25)]
    assert found(1.0) == [("none", 1.0), ("fastmmoe", 0.5)]


@pytest.mark.parametrize("family", ["deepseek_vl2", "internvl3_5"])
def test_the_picture_that_is_looked_at(family: str) -> None:
    """As many tiles as the family cuts a picture of one tile's size into, with a layout where it has one."""
    config = toy_manifest(family).processor
    inputs = parity._picture(config)
    side, tiles = config.tile_size, 2 if family == "deepseek_vl2" else 1
    pixels = inputs[graph_io.PIXEL_VALUES]
    assert (pixels.shape, pixels.dtype) == ((tiles, 3, side, side), np.float32)
    assert pixels.flags.c_contiguous and -1 <= pixels.min() < -0.5 and 0.5 < pixels.max() <= 1
    assert (graph_io.LAYOUT_INDEX in inputs) == (family == "deepseek_vl2")


def test_the_greatest_distance() -> None:
    assert parity._distance(np.array([1.0, -2.0]), np.array([1.5, 1.0])) == 3.0
    assert parity._distance(np.zeros(0), np.zeros(0)) == 0.0
    assert math.isnan(parity._distance(np.array([math.nan, 9.0]), np.zeros(2)))


def over_bfloat16(schedule: Schedule, moved: float, kept: tuple[int, ...], exact: tuple[int, ...]) -> Case:
    """A case whose caches moved the logits by `moved`; its first and only site leaves rows `kept`, `exact` without."""
    case = case_of(schedule, 0.0, kept=kept)
    outcome = replace(case.outcome, logits=[*case.outcome.logits, np.array([1.0])])
    of_float32 = replace(outcome_of(moved, kept=exact), logits=[np.array([moved])] * 2)
    return replace(case, outcome=outcome, exact=of_float32)


@pytest.mark.parametrize(
    ("atol", "moved", "prefill", "decode"),
    [(None, 0.25, 1.5, 4.5), (None, 0.0, ATOL, 6.0), (0.5, 0.25, 0.5, 0.5)],
)
def test_over_bfloat16_caches_torch_itself_is_the_measure(
    atol: float | None, moved: float, prefill: float, decode: float
) -> None:
    """Six times what these caches move in torch, unless a tolerance is given."""
    check = Check([], atol)
    case = over_bfloat16(plan(), moved, (0, 1), (0, 1))
    assert [check._tolerance(case, of) for of in (slice(1), slice(1, None))] == [prefill, decode]
    assert check._tolerance(replace(case, exact=None), slice(1)) == (ATOL if atol is None else atol)


def test_the_share_of_other_survivors() -> None:
    """Two sites on ten rows, of which eight are visual; the second one's rows are those of the first."""
    schedule = plan_request(PORTABLE.policy, visual_tokens=8, moe_layers=(1, 2, 3), top_k=4, retention=0.25)
    assert schedule.keep == (4, 2)

    prompt = Prompt(np.zeros((10, 2)), np.arange(1, 9), schedule, ())

    def case(*kept: list[int]) -> Outcome:
        return Outcome([], [np.array(one) for one in kept])

    ours = case([0, 1, 2, 3, 4, 9], [0, 1, 4, 5])  # 1, 2, 3, 4, then 1, 4
    assert parity._moved(ours, ours, prompt) == 0
    assert parity._moved(ours, case([0, 1, 2, 3, 5, 9], [0, 1, 2, 5]), prompt) == 0.5  # 5 for 4, then 2 for 4
    assert parity._moved(ours, case([0, 2, 3, 4, 5, 9], [0, 1, 2, 5]), prompt) == 1.0  # 5 for 1, then 2, 3 for 1, 4


def test_other_survivors_are_allowed_as_torch_itself_has_them() -> None:
    check, one_site = Check([]), plan("fastmmoe")
    one_site = replace(one_site, keep=(4,))
    few, many = over_bfloat16(one_site, 0.1, (0, 1), (0, 1)), over_bfloat16(one_site, 0.1, (0, 1), (0, 2))
    assert check._most_moved(few) == 0.1
    assert check._most_moved(replace(few, exact=None)) == 0
    assert check._most_moved(many) == 6 * 1 / 4
