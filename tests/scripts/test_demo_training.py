# SPDX-License-Identifier: Apache-2.0
"""A training stage: its learning rate, and that a stopped one ends where an uninterrupted one does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.scripts import script

loop = script("demo_training.loop")

SCHEDULE = loop.Schedule(steps=20, learning_rate=0.1, warmup=4, log_every=5, evaluate_every=10, final=0.1)


def _run(directory: Path, schedule: Any) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def loss(step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return {"square": (model(x).float() - x[:, :2]).square().mean()}

    def evaluate() -> dict[str, float]:
        return {"weight": model.weight.abs().sum().item()}

    loop.Stage(directory, "linear", model, schedule, loss, evaluate).run()
    return model


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Parameters bit for bit, and the log goes on."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = _run(tmp_path / "whole", SCHEDULE)
    _run(tmp_path / "parts", replace(SCHEDULE, steps=10, horizon=20))
    parts = _run(tmp_path / "parts", SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    logs = [(tmp_path / name / "linear.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps == [[5, 10, 15, 20], [5, 10, 15, 20]]
    squares = [[json.loads(line)["square"] for line in log] for log in logs]
    assert squares[0] == squares[1]
    assert squares[0][-1] < squares[0][0]
    assert ["weight" in json.loads(line) for line in logs[0]] == [False, True, False, True]


def test_learning_rate() -> None:
    """It rises in the warm-up and falls to its share at the horizon, not below."""
    rates = [SCHEDULE.rate(step) for step in range(21)]
    assert rates[0] < rates[1] < rates[3]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[20] == pytest.approx(0.01)
    assert replace(SCHEDULE, horizon=40).rate(20) == pytest.approx(0.1 * (0.1 + 0.9 * 0.5))
