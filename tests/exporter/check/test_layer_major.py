# SPDX-License-Identifier: Apache-2.0
"""Many calls in one pass over the weights: what they compute, how often weights are loaded, what is left."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter import progress
from fastmmoe.exporter.check.layer_major import Calls, loaded, run_calls
from fastmmoe.exporter.models.steps import Program, Step, Take, Tensors

F32 = torch.float32


class Layer(nn.Module):
    """Adds the input to its cache and gives the sum, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1, device="meta"))

    def forward(self, inputs: Tensors) -> Tensors:
        cache = inputs["cache"] + inputs["x"]
        return {"y": cache * self.scale, "cache": cache}


class Model(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def program(self) -> Program:
        take: dict[str, Take] = {"x": ((1,), F32), "cache": ((1,), F32)}
        steps = []
        for i, layer in enumerate(self.layers):
            reads = {"x": f"x{i}" if i else "x", "cache": f"past_key_values.{i}.key"}
            writes = {"y": f"x{i + 1}", "cache": f"cache@{i}"}
            steps.append(Step(f"layers.{i}", layer, take, reads, writes))
        outputs = {"y": f"x{len(steps)}"} | {f"present.{i}.key": f"cache@{i}" for i in range(len(steps))}
        return Program(steps, outputs)


def calls(*values: float, layers: int = 2) -> Calls:
    feeds = [{"x": torch.tensor([value])} for value in values]
    return Calls(feeds, {f"past_key_values.{i}.key": ((1,), F32) for i in range(layers)})


class Loads:
    """Scale i + 2 of layer i, and how often each was asked for."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, name: str) -> torch.Tensor:
        self.counts[name] += 1
        return torch.tensor([float(name.split(".")[1]) + 2])


def run(prompts: list[Calls], load: Any, say: Any = lambda line: None) -> list[list[float]]:
    model = Model(2)
    found = run_calls(model, model.program(), prompts, ["y"], load, say)
    assert all(p.is_meta for p in model.parameters())
    return [[float(call["y"]) for call in of_prompt] for of_prompt in found]


def test_calls_of_a_prompt_share_its_caches_and_weights_are_loaded_once() -> None:
    """Layer 0: caches 1, 3 and outputs 2, 6; layer 1: caches 2, 8 and outputs 6, 24."""
    load = Loads()
    assert run([calls(1.0, 2.0), calls(10.0)], load) == [[6.0, 24.0], [60.0]]
    assert load.counts == {"layers.0.scale": 1, "layers.1.scale": 1}


def test_parameters_are_without_values_after_an_error() -> None:
    def load(name: str) -> torch.Tensor:
        if name == "layers.1.scale":
            raise OSError(name)
        return torch.ones(1)

    with pytest.raises(OSError, match=r"layers\.1\.scale"):
        run([calls(1.0)], load)


def test_only_what_was_asked_for_is_left() -> None:
    model = Model(2)
    (of_prompt,) = run_calls(model, model.program(), [calls(1.0, 2.0)], ["y"], Loads(), lambda line: None)
    assert [set(call) for call in of_prompt] == [{"y"}, {"y"}]


def test_what_takes_long_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STEPS_SECONDS", -1.0)
    lines: list[str] = []
    run([calls(1.0)], Loads(), lines.append)
    assert [line.partition(";")[0] for line in lines] == [f"checked step {k} of 2 in torch" for k in (1, 2)]
    assert lines[-1].endswith("about 0 s left")


def test_a_steps_values_are_there_while_it_runs_and_no_others() -> None:
    model = Model(2)
    during: list[list[str]] = []

    def watch(*_: object) -> None:
        assert not torch.is_grad_enabled()
        during.append([name for name, p in model.named_parameters() if not p.is_meta])

    for layer in model.layers:
        layer.register_forward_hook(watch)
    ((found,),) = run_calls(model, model.program(), [calls(1.0)], ["y"], Loads(), lambda line: None)
    assert during == [["layers.0.scale"], ["layers.1.scale"]]
    assert not found["y"].requires_grad and torch.is_grad_enabled()


def test_after_it_the_module_is_as_it_was() -> None:
    model = Model(2)
    before = dict(model.named_parameters())
    run_calls(model, model.program(), [calls(1.0)], ["y"], Loads(), lambda line: None)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_nothing_is_left_where_a_step_fails() -> None:
    model = Model(2)

    def fail(*_: object) -> None:
        raise ValueError("no")

    handle = model.layers[1].register_forward_hook(fail)
    with pytest.raises(ValueError, match="no"):
        run_calls(model, model.program(), [calls(1.0)], ["y"], Loads(), lambda line: None)
    assert all(p.is_meta for p in model.parameters())
    handle.remove()
    run_calls(model, model.program(), [calls(1.0)], ["y"], Loads(), lambda line: None)


def test_parameters_that_are_not_there_stay_so() -> None:
    layer = Layer()
    layer.register_parameter("absent", None)
    with loaded(layer, {id(layer.scale): "layers.0.scale"}, Loads()):
        assert layer.scale.tolist() == [2.0] and layer.absent is None
    assert layer.scale.is_meta and layer.absent is None
