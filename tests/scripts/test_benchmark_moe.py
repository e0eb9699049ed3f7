# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from tests.support.scripts import script

layers, turns = script("benchmark_tools.moe_layers"), script("benchmark_tools.turns")
SMALL = layers.Layer("small", 128, 128, 4, 2)


def sleeper(seconds: float) -> object:
    def run(size: int, call: int) -> None:
        time.sleep(seconds * size)

    return run


def failing() -> object:
    raise ValueError("no such thing\nsecond line")


def test_subjects_take_turns() -> None:
    subjects = {"slow": turns.Subject(sleeper, 0.02), "fast": turns.Subject(sleeper, 0.001)}
    found = turns.by_turns(subjects, 2, 3, 2, patience=0.0)
    for subject in subjects.values():
        assert not subject.error
        subject.close()
    assert min(found["slow"].every) >= 0.04 > max(found["fast"].every) >= 0.002
    assert all(len(samples.every) >= 6 and samples.used for samples in found.values())


def test_what_cannot_run_says_why() -> None:
    subject = turns.Subject(failing)
    assert subject.error == "ValueError: no such thing"
    subject.close()


def test_clean_samples_come_first() -> None:
    assert turns.Samples(clean=[1.0], every=[1.0, 2.0]).best == [1.0]
    assert turns.Samples(every=[2.0]).best == [2.0]


@pytest.mark.parametrize("name", [name for name in layers.WEIGHT_BYTES if not name.startswith("vLLM")])
def test_every_subject_runs(name: str) -> None:
    run = layers.make(name, SMALL, 1, None)
    for T in (1, 3):
        run(T, 0)
