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
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
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


def make_search(journal: Path, lines: list[str] | None = None, **identity: Any) -> Search:
    said: list[str] = [] if lines is None else lines
    space = Space(LAYERS, resolve_policy(PolicyOptions(), family="deepseek_vl2", layers=LAYERS))
    first = [space.default_params(R) for R in (0.5, 0.25, 0.1)]
    return Search(journal, IDENTITY | identity, space, lambda options: options.retention, first, said.append)


def run(journal: Path, *stops: int, **identity: Any) -> list[Trial]:
    for stop in stops:
        search = make_search(journal, **identity)
        search.run(stop, evaluate, 5)
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
        search.run(16, interrupt, 5)
    assert len(search.trials) == 8
    assert run(tmp_path / "trials", 16) == run(tmp_path / "whole", 16)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "trials", 3)
    with pytest.raises(
        InvalidRequest, match="trials: its trials were made with seed 3, this run has 4; give another --out"
    ):
        make_search(tmp_path / "trials", seed=4)


@pytest.mark.parametrize("left", [0, 1, 2, 3, 5, 10, 11, 16])
def test_a_batch_of_which_a_part_was_kept_becomes_the_same(tmp_path: Path, left: int) -> None:
    whole = run(tmp_path / "whole", 16)
    records = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "part").write_bytes(b"".join(records[: 2 + left]))
    assert run(tmp_path / "part", 16) == whole


@pytest.mark.parametrize(
    "tail",
    [b'{"op_code":4,"wor', b"\0" * 4096, b'{"op_code":4,' + b"\0" * 512, b"\0\n\0\n", b"\n\n", b"[1]\n", b"\xff\xfe\n"],
)
def test_a_partial_last_record_is_dropped_with_a_word(tmp_path: Path, tail: bytes) -> None:
    whole = run(tmp_path / "whole", 16)
    run(tmp_path / "torn", 8)
    with (tmp_path / "torn").open("ab") as file:
        file.write(tail)
    lines: list[str] = []
    assert len(make_search(tmp_path / "torn", lines).trials) == 8
    assert lines == [
        f"{tmp_path / 'torn'}: dropped a partial last record of {len(tail)} bytes; the 10 records before it are used"
    ]
    assert run(tmp_path / "torn", 16) == whole


@pytest.mark.parametrize("cut", range(1, 400, 57))
def test_a_journal_cut_off_anywhere_is_gone_on_with(tmp_path: Path, cut: int) -> None:
    whole = run(tmp_path / "journal", 8)
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data[: len(data) * cut // 400])
    assert run(tmp_path / "journal", 8) == whole


def test_a_record_damaged_before_whole_ones_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "trials", 8)
    lines = (tmp_path / "trials").read_bytes().split(b"\n")
    for number, damaged in ((0, b""), (1, b"{"), (4, lines[4][:-9])):
        (tmp_path / "trials").write_bytes(b"\n".join([*lines[:number], damaged, *lines[number + 1 :]]))
        with pytest.raises(InvalidRequest, match=f"trials:{number + 1}: damaged, and whole records follow"):
            make_search(tmp_path / "trials")


@pytest.mark.parametrize(
    "record", [b'{"op_code":4}', b'{"op_code":99}', b'{"op_code":0,"study_name":7}', b'{"op_code":4,"study_id":5}']
)
def test_records_that_do_not_replay_are_refused(tmp_path: Path, record: bytes) -> None:
    run(tmp_path / "trials", 3)
    with (tmp_path / "trials").open("ab") as file:
        file.write(record + b"\n")
    with pytest.raises(InvalidRequest, match=r"trials: damaged \(.*\); remove the file"):
        make_search(tmp_path / "trials")


def test_trials_without_an_identity_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "trials", 3)
    lines = (tmp_path / "trials").read_bytes().split(b"\n")
    (tmp_path / "trials").write_bytes(b"\n".join([lines[0], *lines[2:]]))
    with pytest.raises(InvalidRequest, match="its trials were made with checkpoint None, this run has abc"):
        make_search(tmp_path / "trials")
