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
    times = {"toy": {64: 2.0, 700: 3.0}, "other": {64: 1.0, 700: 1.5}}
    monkeypatch.setattr(benchmark, "read_manifest", lambda bundle: None)
    monkeypatch.setattr(benchmark, "OnnxRuntime", lambda bundle, *_, **__: bundle.name)

    class Timed:
        def __init__(self, name: Any, depth: int, steps: int) -> None:
            self.name, self.depth = name, depth

        def step(self) -> float:
            return times[self.name][self.depth]

    monkeypatch.setattr(benchmark, "Decoding", Timed)
    assert benchmark.measure([Path("toy"), Path("other")], [64, 700], 5, portable=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "native; 5 repeats" in lines[0]
    assert lines[-4:-2] == ["| toy | 64 | 2.0 ms | 1.00 |", "| toy | 700 | 3.0 ms | 1.50 |"]
    assert lines[-2:] == ["| other | 64 | 1.0 ms | 1.00 |", "| other | 700 | 1.5 ms | 1.50 |"]
