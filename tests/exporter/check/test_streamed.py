# SPDX-License-Identifier: Apache-2.0
"""Modules without values run with parameters that are there only while each of them runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter.check.streamed import streamed_weights


class Scale(nn.Module):
    """A parameter of its own, one that is not there, and a part whose calls are watched."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.factor = part, nn.Parameter(torch.empty(()))
        self.register_parameter("absent", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) * self.factor


@pytest.fixture
def model() -> Any:
    with torch.device("meta"):
        return nn.Sequential(Scale(nn.Linear(2, 2, bias=False)), Scale(nn.Linear(2, 2)))


class Values:
    """Ones, with the names in the order of loading and the most that were filled at once."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.loaded, self.most = model, list[str](), 0

    def filled(self) -> list[str]:
        return [name for name, p in self.model.named_parameters() if not p.is_meta]

    def load(self, name: str) -> torch.Tensor:
        self.loaded.append(name)
        self.most = max(self.most, 1 + len(self.filled()))
        return torch.ones(dict(self.model.named_parameters())[name].shape)


def test_a_layers_values_are_there_while_it_runs(model: Any) -> None:
    values = Values(model)
    during: list[list[str]] = []
    for scale in model:
        scale.part.register_forward_hook(lambda *_: during.append(values.filled()))
    with streamed_weights(model, values.load):
        y = model(torch.ones(1, 2))
        assert values.filled() == []
        assert not torch.is_grad_enabled()
    # (1 + 1), then (2 + 2) + 1.
    assert y.tolist() == [[5.0, 5.0]]
    assert not y.requires_grad
    assert values.loaded == ["0.factor", "0.part.weight", "1.factor", "1.part.weight", "1.part.bias"]
    assert during[0][0] == "0.factor" and all(name.startswith("0.") for name in during[0])
    assert all(name.startswith("1.") for name in during[1])
    assert values.most <= 3


def test_values_are_loaded_again_at_each_call(model: Any) -> None:
    values = Values(model)
    with streamed_weights(model, values.load):
        for _ in range(2):
            model(torch.ones(1, 2))
    assert len(values.loaded) == 10


def test_nothing_is_left_where_a_layer_fails(model: Any) -> None:
    values = Values(model)

    def fail(*_: object) -> None:
        raise ValueError("no")

    handle = model[1].part.register_forward_hook(fail)
    with pytest.raises(ValueError, match="no"), streamed_weights(model, values.load):
        model(torch.ones(1, 2))
    assert values.filled() == []
    handle.remove()
    with streamed_weights(model, values.load):
        model(torch.ones(1, 2))


def test_after_it_the_module_is_as_it_was(model: Any) -> None:
    values = Values(model)
    before = dict(model.named_parameters())
    with streamed_weights(model, values.load):
        model(torch.ones(1, 2))
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    count = len(values.loaded)
    model.to_empty(device="cpu")(torch.ones(1, 2))
    assert len(values.loaded) == count
    assert torch.is_grad_enabled()


def test_a_value_that_cannot_be_loaded_is_told(model: Any) -> None:
    def load(name: str) -> torch.Tensor:
        raise OSError(f"{name} is gone")

    with pytest.raises(OSError, match=r"0.factor is gone"), streamed_weights(model, load):
        model(torch.ones(1, 2))
