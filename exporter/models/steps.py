# SPDX-License-Identifier: Apache-2.0
"""A model as a straight-line program: steps that take and give tensors by name.

The one description of a model's order of work. Torch runs it (`Program.run`), tracing clones each distinct kind of step
(exporter/graph/stitching.py), and a check can go through the steps with the weights of one at a time in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

Tensors: TypeAlias = dict[str, torch.Tensor]
Take: TypeAlias = tuple[tuple[int | str, ...], torch.dtype]
"""Shape, with names for the lengths that may change, and dtype."""


@dataclass(frozen=True)
class Part:
    """Element `place` of the vector `name`, as a vector of one."""

    name: str
    place: int


@dataclass(frozen=True)
class Step:
    """A module that maps a dict of tensors to a dict of tensors, and where these come from and go to.

    What differs from layer to layer comes in through `reads` and the module's parameters, so that layers that are alike
    have steps that are alike.

    Attributes:
        name: what its nodes are named after, such as "layers.3" or "head"; "" = the model itself. What of the model is
            inside it is named by its own path, all else by the step's.
        module: parameters and submodules are the model's own.
        takes: shapes and dtypes of the module's inputs by its own names. Lengths of one name are equal in this step; a
            name means nothing outside of it.
        reads: the module's names of its inputs -> names in the program.
        writes: the module's names of its outputs -> names in the program, each written once.
    """

    name: str
    module: nn.Module
    takes: dict[str, Take]
    reads: Mapping[str, str | Part]
    writes: dict[str, str]

    def run(self, values: Mapping[str, torch.Tensor]) -> Tensors:
        """The values that it writes, by their names in the program."""
        given = {local: _read(values, source) for local, source in self.reads.items()}
        found: Tensors = self.module(given)
        return {name: found[local] for local, name in self.writes.items()}


def source_name(source: str | Part) -> str:
    """Name of what a step reads from."""
    return source.name if isinstance(source, Part) else source


def _read(values: Mapping[str, torch.Tensor], source: str | Part) -> torch.Tensor:
    if isinstance(source, Part):
        return values[source.name][source.place : source.place + 1]
    return values[source]


class Program:
    """Steps in their order, and the results: the graph's output -> name in the program."""

    def __init__(self, steps: list[Step], outputs: dict[str, str]) -> None:
        self.steps, self.outputs = steps, outputs

    def done_after(self) -> list[set[str]]:
        """For each step the names that neither a later step nor a result needs."""
        last = {source_name(source): k for k, step in enumerate(self.steps) for source in step.reads.values()}
        found: list[set[str]] = [set() for _ in self.steps]
        for k, step in enumerate(self.steps):
            for name in step.writes.values():
                last.setdefault(name, k)
        for name in last.keys() - self.outputs.values():
            found[last[name]].add(name)
        return found

    @classmethod
    def of(cls, module: nn.Module, takes: dict[str, Take], outputs: tuple[str, ...], name: str = "") -> Program:
        """A module as one step of this name, the module's names being the program's."""
        names = {name: name for name in outputs}
        return cls([Step(name, module, takes, {name: name for name in takes}, names)], names)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """All results, in order; what no later step needs is dropped on the way."""
        values = dict(inputs)
        for step, done in zip(self.steps, self.done_after(), strict=True):
            values |= step.run(values)
            for name in done:
                values.pop(name, None)
        return {output: values[name] for output, name in self.outputs.items()}
