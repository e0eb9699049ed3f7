# SPDX-License-Identifier: Apache-2.0
"""What a profile says of itself, for requests that were not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.bench.settings import BenchOptions
from fastmmoe.runtime.cost.roofline import Rates
from fastmmoe.runtime.profiling import build
from fastmmoe.runtime.profiling.result import SCHEMA
from tests.support.manifests import toy_manifest
from tests.support.profiles import phase

RATES = Rates(2e12, 1e11, "a test")


def stats(provider: str) -> Any:
    return SimpleNamespace(
        method="fastmmoe",
        retention=0.5,
        tiles=2,
        visual_tokens=40,
        kept_visual_tokens=(30, 20),
        text_tokens=9,
        provider=provider,
    )


@pytest.mark.parametrize(
    ("provider", "rates", "note"), [("cpu", RATES, "whole microseconds"), ("tensorrt", None, "waits for the device")]
)
def test_a_profile(provider: str, rates: Rates | None, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def measure(open_bundle: Any, options: BenchOptions, say: Any) -> Any:
        open_bundle(False)
        open_bundle(True)
        return SimpleNamespace(manifest=toy_manifest("deepseek_vl2"), profiled=[SimpleNamespace(stats=stats(provider))])

    monkeypatch.setattr(build, "VLM", lambda directory, **settings: opened.append(settings))
    monkeypatch.setattr(build, "measure", measure)
    monkeypatch.setattr(build, "rates_here", lambda *_: rates)
    monkeypatch.setattr(build, "make_phases", lambda measured, given: [phase()] if given is rates else [])
    options = BenchOptions(retentions=(0.5,), repetitions=3, warmup=0, new_tokens=4)
    settings: Any = {"provider": "auto", "portable": True, "threads": 1, "spinning": True, "verify": False}
    found = build.profile_bundle(Path("nowhere"), options, **settings, say=lambda _: None)
    assert opened == [settings | {"profile": False}, settings | {"profile": True}]
    assert (found.schema, found.phases, found.bundle["model"]) == (SCHEMA, (phase(),), "toy")
    assert found.rates == (None if rates is None else {"flops": 2e12, "bytes": 1e11, "source": "a test"})
    assert found.settings["repetitions"] == 3 and found.settings["kept_visual_tokens"] == (30, 20)
    assert len(found.notes) == 1 and note in found.notes[0]
