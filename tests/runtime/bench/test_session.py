# SPDX-License-Identifier: Apache-2.0
"""A whole measurement on a backend that computes nothing: what is in it, and what is said once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmoe.runtime.bench import session
from fastmmoe.runtime.bench.result import SCHEMA
from fastmmoe.runtime.bench.session import measure
from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.cost.roofline import Rates
from fastmmoe.runtime.machines.power import PowerMeter
from tests.support.echo import echo_vlm
from tests.support.machine_trees import machine
from tests.support.processors import MakeProcessor

OPTIONS = BenchOptions((0.5,), repetitions=2, warmup=0, new_tokens=2)


def test_what_is_in_it(processor: MakeProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greater of the rates before and after: other work slows what measures them."""
    vlm, echo = echo_vlm(processor("dsvl2-mha"))
    echo.provider = "cpu"
    found = iter([Rates(3e9, 1e9, "made"), Rates(2e9, 2e9, "made")])
    monkeypatch.setattr(session, "rates_here", lambda *_: next(found))
    result, rounds = measure(vlm, tmp_path, OPTIONS, threads=1, host=machine(tmp_path, {}))
    assert result.schema == SCHEMA and len(rounds) == 2 and len(result.rows) == 5
    assert result.rates == {"flops": 3e9, "bytes": 2e9, "source": "made"}
    settings = result.settings
    assert (settings["repetitions"], settings["threads"], settings["tiles"] > 0) == (2, 1, True)
    assert settings["text_tokens"] + settings["visual_tokens"] == result.rows[1].tokens
    assert result.notes[0] == "no joules: there is no INA3221 power monitor to read"
    assert all(row.joules is None and row.roofline_share is not None for row in result.rows)


def test_energy_and_no_roofline(processor: MakeProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = echo_vlm(processor("dsvl2-mha"))
    meter = PowerMeter("made", lambda: 10.0)
    monkeypatch.setattr(session, "rates_here", lambda *_: None)
    monkeypatch.setattr(session, "find_meter", lambda *_: meter)
    result, _ = measure(vlm, tmp_path, OPTIONS, host=machine(tmp_path, {}))
    whole = result.rows[-1]
    # Ten watts.
    assert whole.joules == pytest.approx(whole.mean_ms / 100, rel=0.2)
    assert result.settings["energy"] == "made" and result.rates is None
    assert result.notes[0].startswith("no roofline: no data sheet of ") and not meter._thread.is_alive()


@pytest.mark.parametrize(("load", "said"), [(0.0, 0), (1000.0, 1)])
def test_a_busy_machine_is_said(
    load: float, said: int, processor: MakeProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, _ = echo_vlm(processor("dsvl2-mha"))
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    result, _ = measure(vlm, tmp_path, OPTIONS, host=machine(tmp_path, {}))
    assert len([note for note in result.notes if note.startswith("load 1000 on ")]) == said
