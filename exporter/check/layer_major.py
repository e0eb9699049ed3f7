# SPDX-License-Identifier: Apache-2.0
"""Torch over many calls of a language model in one pass over its weights: step by step, every call.

A step's weights are there once, for all calls. So the tokens of decode steps are chosen before; what a call leaves in a
layer's caches goes to the next call of its prompt there and then, and is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastmmoe.exporter.models.steps import Program, Tensors
from fastmmoe.exporter.progress import Steps
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.types import Say

Load = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Calls:
    """The calls of one prompt, one after the other.

    Attributes:
        feeds: of each call, the graph's inputs but the caches.
        caches: input -> shape and dtype of the caches, which begin as zeros.
    """

    feeds: Sequence[Tensors]
    caches: Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class _Values(dict[str, torch.Tensor]):
    """Values of a program by name; caches that nobody has written are made when they are read."""

    def __init__(self, calls: Calls, feeds: Tensors) -> None:
        super().__init__(feeds)
        self._caches = calls.caches

    def __missing__(self, name: str) -> torch.Tensor:
        shape, dtype = self._caches[name]
        return torch.zeros(shape, dtype=dtype)


def run_calls(
    model: torch.nn.Module, program: Program, prompts: Sequence[Calls], wanted: Sequence[str], load: Load, say: Say
) -> list[list[Tensors]]:
    """The wanted results of every call of every prompt.

    Args:
        model: has the parameters of the program's steps, without values.
        program: of the model.
        wanted: names of results.
        load: values of a parameter by its name in the model; called once for each step that has it.
        say: is called with a line on the time left, now and then.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    part = Program(program.steps, {name: program.outputs[name] for name in wanted})
    values = [[_Values(calls, feeds) for feeds in calls.feeds] for calls in prompts]
    following = _following(program, prompts)
    progress = Steps("checked step {} of {} in torch", len(part.steps), say)
    for step, done in zip(part.steps, part.done_after(), strict=True):
        with torch.no_grad(), loaded(step.module, names, load):
            for calls in values:
                for call, after in zip(calls, [*calls[1:], None], strict=True):
                    found = step.run(call)
                    call.update(found)
                    if after is not None:
                        after.update({following[name]: found[name] for name in found.keys() & following.keys()})
                    for name in done:
                        call.pop(name, None)
        progress.add()
    return [[{name: call[source] for name, source in part.outputs.items()} for call in calls] for calls in values]


def _following(program: Program, prompts: Sequence[Calls]) -> dict[str, str]:
    """The program's name of what a call leaves in a cache -> the input of the next call that it is."""
    caches = {name for calls in prompts for name in calls.caches}
    return {program.outputs[graph_io.present_name(name)]: name for name in caches}


@contextmanager
def loaded(module: torch.nn.Module, names: Mapping[int, str], load: Load) -> Iterator[None]:
    """A module's parameters have values.

    Args:
        names: id of a parameter -> its name.
    """
    held = [(m, key, p) for m in module.modules() for key, p in m._parameters.items() if p is not None]
    values = {id(p): load(names[id(p)]) for _, _, p in held}
    for m, key, p in held:
        m._parameters[key] = torch.nn.Parameter(values[id(p)], requires_grad=False)
    del values
    try:
        yield
    finally:
        for m, key, p in held:
            m._parameters[key] = p
