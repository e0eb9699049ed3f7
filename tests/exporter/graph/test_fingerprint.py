# SPDX-License-Identifier: Apache-2.0
"""Steps are alike where their graphs must be: whatever differs beside the values of weights makes another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter.graph.fingerprint import fingerprint
from fastmmoe.exporter.models.config_checks import MoeConfig
from fastmmoe.exporter.models.layers import RMSNorm, SparseMoe
from fastmmoe.exporter.models.steps import Step, Take

VECTOR: Take = (("T", 4), torch.float32)


class Wrapped(nn.Module):
    """A step of these modules; its attributes are its settings."""

    def __init__(self, *modules: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.inner = nn.ModuleList(modules)
        for name, value in settings.items():
            setattr(self, name, value)


def step(module: nn.Module, take: Take = VECTOR, name: str = "layers.0", output: str = "y") -> Step:
    return Step(name, module, {"x": take}, {"x": f"{name}.x"}, {output: f"{name}.y"})


def moe(**changes: Any) -> SparseMoe:
    given: dict[str, Any] = {"num_experts": 4, "top_k": 2, "intermediate_size": 3, "scoring_func": "softmax"}
    return SparseMoe(4, MoeConfig(**given | changes), "none")


def norm(eps: float = 1e-6, *, value: float = 1.0, dtype: torch.dtype = torch.float32) -> RMSNorm:
    module = RMSNorm(4, eps)
    module.weight.data = torch.full((4,), value, dtype=dtype)
    return module


def test_layers_that_are_alike() -> None:
    """Of other numbers, names outside and values."""
    one, other = step(Wrapped(norm(), moe(), window=3)), step(Wrapped(norm(value=2), moe(), window=3), name="layers.7")
    assert fingerprint(one) == fingerprint(other)
    assert hash(fingerprint(one)) == hash(fingerprint(other))
    assert fingerprint(step(norm().to("meta"))) == fingerprint(step(norm()))


def test_a_parameter_that_stands_twice_is_another_kind() -> None:
    one = norm()
    twice, each = step(Wrapped(one, one)), step(Wrapped(norm(), norm()))
    assert fingerprint(twice) != fingerprint(each)
    assert fingerprint(each) == fingerprint(step(Wrapped(norm(), norm())))


OTHERS: dict[str, Callable[[], Step]] = {
    "eps": lambda: step(Wrapped(norm(1e-5), moe(), window=3)),
    "dtype": lambda: step(Wrapped(norm(dtype=torch.float16), moe(), window=3)),
    "operator's attributes": lambda: step(Wrapped(norm(), moe(norm_topk_prob=True), window=3)),
    "shape": lambda: step(Wrapped(norm(), moe(num_experts=5), window=3)),
    "setting": lambda: step(Wrapped(norm(), moe(), window=4)),
    "private setting": lambda: step(Wrapped(norm(), moe(), window=3, _scale=2.0)),
    "type of a setting": lambda: step(Wrapped(norm(), moe(), window=3.0)),
    "class": lambda: step(Wrapped(nn.RMSNorm(4, 1e-6), moe(), window=3)),
    "one module less": lambda: step(Wrapped(norm(), window=3)),
    "input's type": lambda: step(Wrapped(norm(), moe(), window=3), (("T", 4), torch.float16)),
    "input's shape": lambda: step(Wrapped(norm(), moe(), window=3), (("T", "T"), torch.float32)),
    "output": lambda: step(Wrapped(norm(), moe(), window=3), output="z"),
    "bias": lambda: step(Wrapped(norm(), moe(expert_bias=True), window=3)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_layers_that_differ(what: str) -> None:
    assert fingerprint(OTHERS[what]()) != fingerprint(step(Wrapped(norm(), moe(), window=3)))


def hooked(register: str) -> nn.Module:
    module = norm()
    getattr(module, register)(lambda *_: None)
    return module


def patched() -> nn.Module:
    module = norm()
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hook": (lambda: hooked("register_forward_hook"), "inner.0: RMSNorm has hooks"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), "inner.0: RMSNorm has hooks"),
    "buffer": (lambda: nn.BatchNorm1d(4), r"inner.0: BatchNorm1d has buffers \['num_batches_tracked', 'running_mean'"),
    "patched": (patched, "inner.0: RMSNorm.forward is a function: expected a plain value"),
    "object": (lambda: Wrapped(state=object()), "inner.0: Wrapped.state is a object: expected a plain value"),
    "tensor": (lambda: Wrapped(state=(1, torch.ones(1))), "inner.0: Wrapped.state is a Tensor: expected a plain value"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_shared_graph_cannot_follow(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=f"^{message}"):
        fingerprint(step(Wrapped(make())))
