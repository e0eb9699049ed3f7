# SPDX-License-Identifier: Apache-2.0
"""Running modules that hold no weights: a layer's are read when it runs and dropped after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def streamed_weights(module: torch.nn.Module, load: Callable[[str], torch.Tensor]) -> Iterator[None]:
    """Let a module without values run: each submodule's own parameters are there only while it runs.

    The most memory needed is the parameters on one path from the root to a leaf, not the model's.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    handles = []

    def fill(m: torch.nn.Module, _: object) -> None:
        m.empty_parameters = dict(m._parameters)  # type: ignore[assignment]
        for key, parameter in m._parameters.items():
            if parameter is not None:
                m._parameters[key] = torch.nn.Parameter(load(names[id(parameter)]), requires_grad=False)

    def empty(m: torch.nn.Module, _: object, __: object) -> None:
        m._parameters.update(m.empty_parameters)  # type: ignore[arg-type]

    for m in module.modules():
        if any(p is not None for p in m._parameters.values()):
            handles += [m.register_forward_pre_hook(fill), m.register_forward_hook(empty, always_call=True)]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
