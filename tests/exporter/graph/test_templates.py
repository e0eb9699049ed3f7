# SPDX-License-Identifier: Apache-2.0
"""Templates: traced once in a process, with nothing of one layer's values, and nothing of the kinds beside them."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import nn

from fastmmoe.exporter.graph import templates
from fastmmoe.exporter.graph.templates import as_expression, templates_of
from fastmmoe.exporter.models.steps import Step, Take


class Shift(nn.Module):
    """x plus a column of a small weight: what an optimiser would compute, had it the values. Twice, were it a twin."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first = inputs["x"][1:]
        return {"y": first + self.weight[None], "rows": torch.arange(first.shape[0], dtype=torch.int32)}


def step(i: int, size: int = 3) -> Step:
    take: Take = (("T", size), torch.float32)
    return Step(f"layers.{i}", Shift(size), {"x": take}, {"x": f"x.{i}"}, {"y": f"x.{i + 1}", "rows": f"rows.{i}"})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many kinds each call of the exporter had, in a process that has traced nothing yet."""
    found: list[int] = []
    export = templates.export_module

    def counting(module: Any, *args: Any, **options: Any) -> Any:
        found.append(len(module.steps))
        return export(module, *args, **options)

    monkeypatch.setattr(templates, "_known", {})
    monkeypatch.setattr(templates, "export_module", counting)
    return found


def test_a_kind_is_traced_once(calls: list[int]) -> None:
    first, second, other = templates_of([step(0), step(1), step(2, size=4)], opset=23)
    assert first is second and first is not other
    (again,) = templates_of([step(9)], opset=23)
    assert again is first and calls == [2]
    (older,) = templates_of([step(9)], opset=20)
    assert older is not first and calls == [2, 1]


class TwoConstants(nn.Module):
    """Takes a 0 and a 1 of int64, as axes and as values."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = inputs["x"]
        return {"y": x.unsqueeze(1).sum(0, keepdim=True) + x.unsqueeze(0).sum(1)[:, None]}


def test_constants_come_by_their_first_use(calls: list[int]) -> None:
    take: Take = (("T", 3), torch.float32)
    two = Step("two", TwoConstants(), {"x": take}, {"x": "x"}, {"y": "y"})
    # What is traced beside decides the order in which the exporter lists them.
    found = templates_of([step(0), two, step(1, size=5)], opset=23)
    for template in found:
        used = [id(value) for node in template.nodes for value in node.inputs if value is not None]
        first = [used.index(id(value)) for value in template.constants]
        assert first == sorted(first)
    assert all(len(template.constants) > 1 for template in found)


def described(template: templates.Template) -> list[Any]:
    return [
        (node.op_type, [value.name is None for value in node.outputs], [template.shapes[id(v)] for v in node.outputs])
        for node in template.nodes
    ]


def test_a_template_knows_nothing_of_others(calls: list[int]) -> None:
    alone = described(templates_of([step(0)], opset=23)[0])
    templates._known.clear()
    _, beside = templates_of([step(0, size=5), step(1)], opset=23)
    assert described(beside) == alone and calls == [1, 2]


def test_values_are_not_in_it(calls: list[int]) -> None:
    """The weight is an input, and so the node that depends on it alone is there, and no constant of its size is."""
    (template,) = templates_of([step(0)], opset=23)
    assert [*template.inputs] == ["x"] and [*template.parameters] == ["weight"]
    weight = template.parameters["weight"]
    assert weight.const_value is None and [node.op_type for node, _ in weight.uses()] == ["Unsqueeze"]
    assert all(c.const_value is not None and c.const_value.size <= 1 for c in template.constants)
    T = sympy.Symbol("T", integer=True)
    shapes = {name: template.shapes[id(value)] for name, value in template.outputs.items()}
    assert shapes == {"y": (T - 1, 3), "rows": (T - 1,)}
    assert {*template.paths.values()} == {""} and calls == [1]


def test_the_modules_stay_as_they_are(calls: list[int]) -> None:
    given = step(0)
    templates_of([given], opset=23)
    assert given.module.weight.device.type == "cpu" and given.module.training and calls == [1]


def test_dimensions_as_the_exporter_writes_them() -> None:
    T, V = (sympy.Symbol(name, integer=True) for name in "TV")
    assert as_expression("T - V + 2") == T - V + 2
    assert as_expression("Max(0, T)") == sympy.Max(0, T)
    assert as_expression("(T//2)") == sympy.floor(T / 2)
