# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decode steps: how deep its caches are, and its table; the backend computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.bundle import graph_io
from tests.support.echo import Echo
from tests.support.manifests import toy_manifest
from tests.support.scripts import script

benchmark = script("benchmark_decode")


def echo() -> Echo:
    manifest = toy_manifest("deepseek_vl2")
    return Echo(manifest.language_model, manifest.policy)


def test_a_step_follows_a_cache_of_the_depth() -> None:
    """The prompt comes in calls of 512 rows, the caches have room for all steps at once."""
    backend = echo()
    decoding = benchmark.Decoding(backend, 1100, steps=3)
    assert [len(call[graph_io.POSITION_IDS]) for call in backend.calls] == [512, 512, 76]
    assert all(decoding.step() > 0 for _ in range(3))
    assert [call["past_lengths.0"].tolist() for call in backend.calls[3:]] == [[1100], [1101], [1102]]
    assert len(backend.made) == 1


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    backend, times = echo(), {64: 2.0, 700: 3.0}
    monkeypatch.setattr(benchmark, "read_manifest", lambda bundle: None)
    monkeypatch.setattr(benchmark, "OnnxRuntime", lambda *args, **options: backend)

    class Timed:
        def __init__(self, _: Any, depth: int, steps: int) -> None:
            self.depth = depth

        def step(self) -> float:
            return times[self.depth]

    monkeypatch.setattr(benchmark, "Decoding", Timed)
    assert benchmark.measure(Path("toy"), [64, 700], 5, portable=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "toy, native; 5 repeats" in lines[0]
    assert lines[-2:] == ["| 64 | 2.0 ms | 1.00 |", "| 700 | 3.0 ms | 1.50 |"]
