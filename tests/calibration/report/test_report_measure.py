# SPDX-License-Identifier: Apache-2.0
"""What was measured is kept, read again, and never mistaken for something else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.calibration.report.latency import Latency, measure_latency
from fastmmoe.calibration.report.measure import Measurement, Outcomes, Store
from fastmmoe.calibration.report.settings import Planner, Setting
from fastmmoe.runtime.errors import InvalidRequest

SETTINGS = [Setting("none"), Setting("fastmmoe", 0.5), Setting("random", 0.5)]
EXPECTED = ("red", "cube", "3", "yes")


class FakeQuestions:
    """Four questions; the full model is always right, fastmmoe on the first two, random where the seed says."""

    identity, max_new_tokens = "d" * 64, 3
    items = tuple(SimpleNamespace(sample=SimpleNamespace(answer=answer)) for answer in EXPECTED)

    def __init__(self) -> None:
        self.asked: list[tuple[Setting, int]] = []
        self.fails_at: Setting | None = None

    def packs(self, size: int) -> Iterator[range]:
        yield from (range(i, i + size) for i in range(0, 4, size))

    def ask(self, graphs: Any, planner: Any, setting: Setting, numbers: range, seed: int) -> list[str]:
        if setting == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append((setting, seed))
        right = {"none": 4, "fastmmoe": 2, "random": seed + 1}[setting.variant]
        return [EXPECTED[n] if n < right else "?" for n in numbers]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    return tmp_path / "bundle"


def measurement(questions: Any, store: Store, lines: list[str], seeds: tuple[int, ...] = (0, 1)) -> Measurement:
    nothing: Any = None
    return Measurement(nothing, nothing, questions, store, seeds=seeds, jobs=2, say=lines.append)


def test_right_answers_are_counted_and_random_seeds_averaged(bundle: Path, tmp_path: Path) -> None:
    questions: Any = FakeQuestions()
    lines: list[str] = []
    right = measurement(questions, Store(tmp_path, bundle, questions), lines).run(SETTINGS)
    assert right[SETTINGS[0]].tolist() == [1, 1, 1, 1]
    assert right[SETTINGS[1]].tolist() == [1, 1, 0, 0]
    assert right[SETTINGS[2]].tolist() == [1, 0.5, 0, 0]
    assert [line.split("]")[0] for line in lines] == [f"[{i}/4" for i in range(1, 5)]
    assert lines[-1] == "[4/4] random at retention 0.5, seed 1: 50.0% right, 0 s left"
    assert lines[1].startswith("[2/4] FastMMoE at retention 0.5: 50.0% right, ")


def test_a_second_run_asks_nothing(bundle: Path, tmp_path: Path) -> None:
    first, second = FakeQuestions(), FakeQuestions()
    questions: Any = first
    right = measurement(questions, Store(tmp_path, bundle, questions), []).run(SETTINGS)
    questions = second
    lines: list[str] = []
    again = measurement(questions, Store(tmp_path, bundle, questions), lines).run(SETTINGS)
    assert (len(first.asked), second.asked) == (8, [])
    assert all(np.array_equal(right[s], again[s]) for s in SETTINGS)
    assert lines[0].startswith("4 of 4 runs are in ")


def test_what_the_same_command_measured_is_no_news(bundle: Path, tmp_path: Path) -> None:
    """Of a first run nothing is there already; of a second all is."""
    questions: Any = FakeQuestions()
    lines: list[str] = []
    first = measurement(questions, Store(tmp_path, bundle, questions), lines)
    first.run(SETTINGS[:1])
    first.run(SETTINGS)
    assert len(questions.asked) == 8 and not [line for line in lines if "already" in line]
    again = measurement(questions, Store(tmp_path, bundle, questions), lines)
    again.run(SETTINGS[:1])
    assert lines[-1].startswith("1 of 1 runs are in ")


def test_an_interrupted_run_goes_on(bundle: Path, tmp_path: Path) -> None:
    cut, rest = FakeQuestions(), FakeQuestions()
    cut.fails_at = SETTINGS[1]
    questions: Any = cut
    store = Store(tmp_path, bundle, questions)
    with pytest.raises(KeyboardInterrupt):
        measurement(questions, store, []).run(SETTINGS)
    assert [path.name for path in store.folder.iterdir()] == ["none-1.0000-seed0.json"]
    questions = rest
    right = measurement(questions, store, []).run(SETTINGS)
    assert {setting for setting, _ in rest.asked} == set(SETTINGS[1:])
    assert right[SETTINGS[1]].tolist() == [1, 1, 0, 0]


def test_another_bundle_or_data_set_has_a_folder_of_its_own(bundle: Path, tmp_path: Path) -> None:
    questions: Any = FakeQuestions()
    one = Store(tmp_path, bundle, questions)
    questions.identity = "e" * 64
    other_data = Store(tmp_path, bundle, questions)
    (bundle / "manifest.json").write_text("{} ")
    other_bundle = Store(tmp_path, bundle, questions)
    assert len({one.folder, other_data.folder, other_bundle.folder}) == 3


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b'{"identity": "', b'{"identity": "a", "x": 1}', b"\xff"])
def test_a_damaged_file_is_measured_again(bundle: Path, tmp_path: Path, data: bytes) -> None:
    first, second = FakeQuestions(), FakeQuestions()
    questions: Any = first
    store = Store(tmp_path, bundle, questions)
    right = measurement(questions, store, []).run(SETTINGS)
    (store.folder / "fastmmoe-0.5000-seed0.json").write_bytes(data)
    questions = second
    lines: list[str] = []
    again = measurement(questions, store, lines).run(SETTINGS)
    assert {setting for setting, _ in second.asked} == {SETTINGS[1]}
    assert all(np.array_equal(right[s], again[s]) for s in SETTINGS)
    assert "fastmmoe-0.5000-seed0.json: damaged (" in lines[0]
    assert lines[0].endswith("): measured again")


def test_a_file_of_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    questions: Any = FakeQuestions()
    store = Store(tmp_path, bundle, questions)
    store.write(Outcomes(identity="f" * 64, setting=SETTINGS[0], seed=0, answers=("a",)))
    with pytest.raises(InvalidRequest, match=r"holds none-1\.0000 of another bundle or data set"):
        store.read(SETTINGS[0], 0, lambda _: None)


def test_times_are_taken_in_turn_and_kept(
    bundle: Path, tmp_path: Path, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Setting, int]] = []

    def request(vlm: Any, planner: Any, questions: Any, setting: Setting, number: int) -> tuple[float, float]:
        calls.append((setting, number))
        return float(len(calls)), float(1000 + len(calls))

    monkeypatch.setattr("fastmmoe.calibration.report.latency._request", request)
    questions: Any = FakeQuestions()
    store = Store(tmp_path, bundle, questions)
    lines: list[str] = []

    def measure(requests: int) -> Latency:
        nothing: Any = None
        return measure_latency(nothing, planner, questions, store, SETTINGS, requests=requests, say=lines.append)

    found = measure(3)
    a, b, c = SETTINGS
    assert [setting for setting, _ in calls] == [a, b, c, b, c, a, c, a, b, a, b, c]
    assert [number for _, number in calls[::3]] == [0, 0, 2, 3]
    # The first three calls warm up.
    assert found.of(a).prefill_ms == (6, 8, 10)
    assert found.of(c).ttft_ms == (1005, 1007, 1012)
    assert measure(3) == found
    assert len(calls) == 12
    measure(2)
    assert len(calls) == 12 + 9
