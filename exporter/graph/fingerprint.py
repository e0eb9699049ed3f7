# SPDX-License-Identifier: Apache-2.0
"""What the graph of a step depends on: steps of one fingerprint have one graph, whatever their weights hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import msgspec
import torch

from fastmmoe.exporter.models.steps import Step

_OF_ALL = frozenset(vars(torch.nn.Module()))
"""Attributes of torch's own, of every module."""


def fingerprint(step: Step) -> Hashable:
    """Classes and plain attributes of the step's modules, parameters, inputs and outputs.

    Parameters by name, shape and dtype, and which of them are one: the graph has an input for each.

    Raises:
        ValueError: a module has hooks, buffers or an attribute that is no plain value, so that its graph may depend on
            more than is compared.
    """
    numbers: dict[int, int] = {}
    modules = tuple(
        (path, type(module), _attributes(path, module), _parameters(module, numbers))
        for path, module in step.module.named_modules(remove_duplicate=False)
    )
    return modules, tuple(step.takes.items()), tuple(step.writes)


def _attributes(path: str, module: torch.nn.Module) -> tuple[Hashable, ...]:
    where = f"{path or 'module'}: {type(module).__name__}"
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"{where} has hooks, which a graph that stands for many layers cannot follow: remove them")
    if module._buffers:
        raise ValueError(f"{where} has buffers {sorted(module._buffers)}: expected parameters alone")
    own = {name: value for name, value in vars(module).items() if name not in _OF_ALL}
    return tuple((name, _plain(value, f"{where}.{name}")) for name, value in sorted(own.items()))


def _parameters(module: torch.nn.Module, numbers: dict[int, int]) -> tuple[Hashable, ...]:
    """numbers: of the step's parameters by identity, in the order in which they are met."""
    return tuple(
        (name, None if p is None else (tuple(p.shape), p.dtype, numbers.setdefault(id(p), len(numbers))))
        for name, p in sorted(module._parameters.items())
    )


def _plain(value: Any, where: str) -> Hashable:
    """A value as something to compare; numbers of other types differ, as do 0.0 and -0.0."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return type(value), repr(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_plain(one, where) for one in value)
    if isinstance(value, msgspec.Struct) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        fields = value.__struct_fields__ if isinstance(value, msgspec.Struct) else vars(value)
        return type(value), tuple((name, _plain(getattr(value, name), f"{where}.{name}")) for name in fields)
    raise ValueError(f"{where} is a {type(value).__name__}: expected a plain value, as other layers share its graph")
