# SPDX-License-Identifier: Apache-2.0
"""Programs of steps: names inside and outside of a step, parts of vectors, and what is dropped when."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from fastmmoe.exporter.models.steps import Part, Program, Step, Take, source_name

VECTOR: Take = (("T",), torch.float32)


class Scale(nn.Module):
    """y = x * by, and the sum of y."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        y = inputs["x"] * inputs["by"]
        return {"y": y, "sum": y.sum()[None]}


def scaling(i: int, writes: dict[str, str]) -> Step:
    reads: dict[str, str | Part] = {"x": f"x.{i}", "by": Part("factors", i)}
    return Step(f"layers.{i}", Scale(), {"x": VECTOR, "by": ((1,), torch.float32)}, reads, writes)


@pytest.fixture
def program() -> Program:
    """Three factors, one after the other; the second sum and the last vector are results."""
    steps = [scaling(0, {"y": "x.1"}), scaling(1, {"y": "x.2", "sum": "sum"}), scaling(2, {"y": "x.3"})]
    return Program(steps, {"result": "x.3", "sum": "sum"})


def test_a_program_runs_its_steps_in_order(program: Program) -> None:
    found = program.run({"x.0": torch.tensor([1.0, 2.0]), "factors": torch.tensor([2.0, 3.0, 5.0])})
    assert list(found) == ["result", "sum"]
    assert (found["result"].tolist(), found["sum"].tolist()) == ([30, 60], [18])


def test_what_no_later_step_needs_is_dropped(program: Program) -> None:
    assert program.done_after() == [{"x.0"}, {"x.1"}, {"x.2", "factors"}]
    alive: list[int] = []
    kept: list[weakref.ref[torch.Tensor]] = []

    def watch(_: nn.Module, args: tuple[dict[str, torch.Tensor]], result: dict[str, torch.Tensor]) -> None:
        kept.append(weakref.ref(result["y"]))
        alive.append(sum(one() is not None for one in kept))

    for step in program.steps:
        step.module.register_forward_hook(watch)
    program.run({"x.0": torch.ones(2), "factors": torch.ones(3)})
    assert alive == [1, 2, 2]


def test_what_a_step_writes_for_nobody_is_dropped_at_once() -> None:
    step = scaling(0, {"y": "y", "sum": "sum"})
    assert Program([step], {"y": "y"}).done_after() == [{"x.0", "factors", "sum"}]


def test_names_of_sources() -> None:
    assert (source_name("x"), source_name(Part("x", 3))) == ("x", "x")


def test_a_module_as_one_step() -> None:
    takes: dict[str, Take] = {"x": VECTOR, "by": ((1,), torch.float32)}
    program = Program.of(Scale(), takes, ("sum",))
    assert program.run({"x": torch.ones(3), "by": torch.tensor([2.0])})["sum"].tolist() == [6]
    (step,) = program.steps
    assert (step.name, step.takes, step.writes) == ("", takes, {"sum": "sum"})
