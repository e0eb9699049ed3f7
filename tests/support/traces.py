# SPDX-License-Identifier: Apache-2.0
"""What a model's torch modules compute inside in a prefill, with near ties of the router resolved as recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.ops.sparse_moe import torch_op
from fastmmoe.exporter.pruning.tokens import Watch
from fastmmoe.runtime.types import Array


@dataclass
class Trace:
    """What one prefill computes inside: by layer, hidden states [T, H] after it, router logits, last-row attention."""

    prompt: Any
    inputs_embeds: torch.Tensor
    schedule: Any = None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    before_mlp: dict[int, torch.Tensor] = field(default_factory=dict)
    hidden_states: dict[int, torch.Tensor] = field(default_factory=dict)
    router_logits: dict[int, torch.Tensor] = field(default_factory=dict)
    last_rows: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass
class Routing:
    """Recorded router logits [layers, T, E], chosen experts and weights [layers, T, k] of one row's tokens."""

    router_logits: Array
    experts: Array
    weights: Array
    is_near_tie: Array
    """[layers, T]: ranks k and k + 1 are so close that rounding may exchange them, so either expert is a legal choice.
    Their distance moves no further than a single logit does (docs/precision.md)."""


class RecordedChoices:
    """Stands in for torch_op.route in one prefill: resolves near ties as the recording does.

    The other choice would be as good, but reaches all later tokens through attention and moves them beyond rounding.
    """

    def __init__(self, routing: Routing) -> None:
        self.routing, self.route, self.calls = routing, torch_op.route, 0

    def __call__(
        self, router_logits: torch.Tensor, is_visual: torch.Tensor, visual_top_k: int, bias: Any, a: Any
    ) -> Any:
        experts, k = self.routing.experts[self.calls], a["top_k"]
        selected = self.route(router_logits, is_visual, visual_top_k, bias, a)[0].sort(dim=1).values.numpy()
        other = (selected != experts).any(1) & self.routing.is_near_tie[self.calls]
        self.calls += 1
        logits, order = router_logits.sort(dim=1, descending=True)
        router_logits = router_logits.clone()
        for row in np.nonzero(other)[0]:
            router_logits[row, order[row, k - 1 : k + 1]] = logits[row, k - 1 : k + 1].flip(0)
        return self.route(router_logits, is_visual, visual_top_k, bias, a)


def record(model: Any, prompt: Any) -> Trace:
    """Run one prompt unmodified with hooks on every decoder layer."""
    trace = Trace(prompt, model.embed(prompt))
    handles = []
    for i, layer in enumerate(model.language_model.layers):

        def on_norm(_: Any, args: Any, i: int = i) -> None:
            trace.before_mlp[i] = args[0]

        def on_mlp(_: Any, __: Any, y: torch.Tensor, i: int = i) -> None:
            trace.hidden_states[i] = trace.before_mlp[i] + y

        def on_router(_: Any, __: Any, y: torch.Tensor, i: int = i) -> None:
            trace.router_logits[i] = y

        def watch_last_row(_: Any, args: Any) -> Any:
            x, tokens, past, watches = args
            return x, tokens, past, [*watches, Watch(torch.tensor([len(x) - 1]), torch.ones(1))]

        def on_attention(_: Any, __: Any, y: Any, i: int = i) -> None:
            trace.last_rows[i] = y.watched.pop()

        handles += [
            layer.post_attention_layernorm.register_forward_pre_hook(on_norm),
            layer.mlp.register_forward_hook(on_mlp),
            layer.self_attn.register_forward_pre_hook(watch_last_row),
            layer.self_attn.register_forward_hook(on_attention),
        ]
        if hasattr(layer.mlp, "experts"):
            handles.append(layer.mlp.experts.router.register_forward_hook(on_router))
    schedule = trace.schedule = model.schedule(len(prompt.visual_index), 1.0)
    trace.outputs = model.prefill(trace.inputs_embeds, prompt.visual_index, schedule)
    for handle in handles:
        handle.remove()
    return trace


def record_choices(model: Any, prompt: Any, routing: Routing) -> Trace:
    """`record` with RecordedChoices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_op, "route", RecordedChoices(routing))
        return record(model, prompt)


def route(model: Any, layer: int, router_logits: torch.Tensor) -> tuple[Array, Array]:
    """Chosen experts and weights [T, k] of tokens that are all text, sorted by expert like the golden arrays."""
    attributes = vars(model.model.config.moe) | {"reduction_weights": model.model.policy.reduction_weights}
    bias = model.language_model.layers[layer].mlp.experts.correction_bias
    is_visual = torch.zeros(len(router_logits), dtype=torch.bool)
    selected, weights = torch_op.route(router_logits, is_visual, 1, bias, attributes)
    selected, order = selected.sort(dim=1)
    return selected.numpy(), weights.gather(1, order).numpy()
