# SPDX-License-Identifier: Apache-2.0
"""Measurements beside each other: what is told, what is not, and what is not compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bench.comparison import NO_DIFFERENCE, TOO_FEW, compare
from fastmmoe.runtime.bench.result import Result
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.bench_results import BUNDLE, MACHINE, SAMPLES, SETTINGS, make_result, make_row


def times(factor: float, count: int = 5) -> tuple[float, ...]:
    return tuple(factor * one for one in SAMPLES[:count])


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Function (first, second) -> their files."""

    def write(*results: Result) -> list[Path]:
        paths = [tmp_path / f"{number}.json" for number in range(len(results))]
        for path, result in zip(paths, results, strict=True):
            path.write_text(json.dumps(msgspec.to_builtins(result)))
        return paths

    return write


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (times(1.2), "20.0% slower"),
        (times(0.5), "50.0% faster"),
        (times(1.01), NO_DIFFERENCE),
        (times(3.0, 3), TOO_FEW),
    ],
)
def test_what_a_row_tells(after: tuple[float, ...], verdict: str, written: Any) -> None:
    before = make_row(times(1.0, len(after)))
    (row,) = compare(*written(make_result(before), make_result(make_row(after)))).rows
    assert row.verdict == verdict
    assert row.ratio == pytest.approx(after[len(after) // 2] / before.median_ms)
    if row.low is not None and row.high is not None:
        assert row.low <= row.ratio <= row.high


def test_medians_that_say_the_opposite_tell_nothing(written: Any) -> None:
    """The median of B is smaller, though most of its samples are greater than most of A's: among many it may be."""
    a, b = make_row((10.0,) * 9 + (19.0,) * 11), make_row((18.9,) * 11 + (30.0,) * 9)
    (row,) = compare(*written(make_result(a), make_result(b))).rows
    assert row.low is not None and row.low > 1 > row.ratio and row.verdict == NO_DIFFERENCE


def test_rows_of_one_alone_are_named(written: Any) -> None:
    both, first, second = make_row(), make_row(retention=1.0), make_row(batch=2)
    paths = written(make_result(both, first), make_result(second, both))
    found = compare(*paths)
    assert len(found.rows) == 1
    assert found.only == (f"prefill 74 r1: only in {paths[0]}", f"prefill 37 r0.5 b2: only in {paths[1]}")


def test_what_else_differs_is_said(written: Any) -> None:
    machine = MACHINE | {"device": "Another", "power_mode": "15W", "versions": {"fastmmoe": "0.1.0"}}
    other = make_result(make_row(), machine=machine, settings=SETTINGS | {"warmup": 0})
    assert compare(*written(make_result(make_row()), other)).differences == (
        "device: A A processor, B Another",
        "power mode: A none, B 15W",
        "onnxruntime: A 1.32.0, B none",
        "warmup: A 1, B 0",
    )
    assert compare(*written(make_result(make_row()), make_result(make_row()))).differences == ()


def test_other_bundles_are_refused(written: Any) -> None:
    other = make_result(make_row(), bundle=BUNDLE | {"model": "other", "sha256": "cd" * 32})
    said = r"are of different bundles, demo for cpu \(abababababab\) and other for cpu \(cdcdcdcdcdcd\): compare"
    with pytest.raises(InvalidRequest, match=said):
        compare(*written(make_result(make_row()), other))


def test_nothing_in_common_is_refused(written: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"have no row in common: measure with the same pictures, prompt, -r"):
        compare(*written(make_result(make_row()), make_result(make_row(tokens=75))))


def test_what_is_meant_for_a_terminal_is_shown(written: Any) -> None:
    """A prompt may have had several lines, a file that somebody sent escapes."""
    settings = SETTINGS | {"prompt": "What\nis it?"}
    machine = MACHINE | {"device": "\x1b[2J"}
    found = compare(*written(make_result(make_row()), make_result(make_row(), machine=machine, settings=settings)))
    assert found.differences == (
        "device: A A processor, B '\\x1b[2J'",
        "prompt: A What is it?, B What is it?",
    )
