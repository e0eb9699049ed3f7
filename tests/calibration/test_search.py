# SPDX-License-Identifier: Apache-2.0
"""The search goes on where it stopped, and tries the same whatever evaluates it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.calibration.evaluate import Outcomes
from fastmmoe.calibration.search import Search, Trial
from fastmmoe.calibration.space import Space
from fastmmoe.exporter.fastmmoe.policy import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.errors import InvalidRequest

LAYERS = Layers(8, tuple(range(1, 8)), tuple(range(8)), 4)
IDENTITY = {"checkpoint": "abc", "seed": 3}


def judge(options: PolicyOptions) -> Outcomes:
    """Better the more is kept and the more experts there are."""
    assert options.visual_top_k is not None and options.alpha is not None
    value = options.retention * (1 - (options.alpha - 0.6) ** 2) + 0.01 * sum(options.visual_top_k)
    return Outcomes("kl", np.array([1 / value]), np.zeros(1), np.zeros(1, np.int64))


def evaluate(settings: Sequence[PolicyOptions], count: int | None) -> list[Outcomes]:
    assert count == 5
    return [judge(options) for options in settings]


def make_search(journal: Path, **identity: Any) -> Search:
    space = Space(LAYERS, resolve_policy(PolicyOptions(), family="deepseek_vl2", layers=LAYERS))
    first = [space.default_params(R) for R in (0.5, 0.25, 0.1)]
    return Search(journal, IDENTITY | identity, space, lambda options: options.retention, first)


def run(journal: Path, *stops: int, **identity: Any) -> list[Trial]:
    for stop in stops:
        search = make_search(journal, **identity)
        search.run(stop, evaluate, 5, lambda _: None)
    return search.trials


def test_default_schedules_come_first(tmp_path: Path) -> None:
    trials = run(tmp_path / "trials", 3)
    assert [t.options.retention for t in trials] == [0.5, 0.25, 0.1]
    assert {t.options.prune_layers for t in trials} == {(1, 2, 3)}
    assert trials[0].score == judge(trials[0].options).score
    assert trials[0].cost == 0.5


def test_an_interrupted_search_tries_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 48)
    assert run(tmp_path / "parts", 16, 40, 48) == whole
    assert len({repr(t.options) for t in whole}) == 48
    assert run(tmp_path / "other", 48, seed=4) != whole


def test_the_sampler_learns(tmp_path: Path) -> None:
    trials = run(tmp_path / "trials", 96)
    random, guided = trials[8:40], trials[64:]

    def experts(part: list[Trial]) -> float:
        return float(np.mean([sum(t.options.visual_top_k or ()) for t in part]))

    def distance(part: list[Trial]) -> float:
        return float(np.mean([abs((t.options.alpha or 0) - 0.6) for t in part]))

    # Of 28 experts a random trial has 17.5 on average.
    assert experts(guided) > experts(random) + 2
    assert distance(guided) < 0.75 * distance(random)


def test_nothing_is_left_of_a_batch_that_was_interrupted(tmp_path: Path) -> None:
    run(tmp_path / "trials", 8)

    def interrupt(settings: Sequence[PolicyOptions], count: int | None) -> list[Outcomes]:
        raise KeyboardInterrupt

    search = make_search(tmp_path / "trials")
    with pytest.raises(KeyboardInterrupt):
        search.run(16, interrupt, 5, lambda _: None)
    assert len(search.trials) == 8
    assert run(tmp_path / "trials", 16) == run(tmp_path / "whole", 16)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "trials", 3)
    with pytest.raises(
        InvalidRequest, match="trials: its trials were made with seed 3, this run has 4; give another --out"
    ):
        make_search(tmp_path / "trials", seed=4)
