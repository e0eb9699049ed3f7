# SPDX-License-Identifier: Apache-2.0
"""Statistics of routing and attention on calibration questions: what makes visual tokens redundant, by layer."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np
import torch

from fastmmoe.calibration.evaluate import run_pack
from fastmmoe.calibration.prompts import Prompts
from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.exporter.models.attention import Attended
from fastmmoe.exporter.models.layers import SparseMoe
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.torch_op import route
from fastmmoe.exporter.ops.token_prune.reference import choose_reference, windows_reference
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.method.policy import FASTMMOE, SETTINGS, UNMODIFIED
from fastmmoe.runtime.types import Array

WINDOW: int = SETTINGS["window"].default


class LayerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of one MoE layer of the unmodified model, means over the prompts' tokens.

    Attributes:
        routing_entropy_visual, routing_entropy_text: entropy of the routing, in nats; log(experts) is even.
        expert_load_visual, expert_load_text: share of the choices that fall on each expert.
        window_similarity: cosine of the routing of visual tokens with the mean of their window (the redundancy of
            docs/operators.md, FmmTokenPrune, step 2); windows of 3, those of one token left out.
        attention_on_visual: share of the last row's attention that falls on visual tokens, mean over heads; None in
            sliding layers, which never prune.
    """

    layer: int
    routing_entropy_visual: float
    routing_entropy_text: float
    expert_load_visual: tuple[float, ...]
    expert_load_text: tuple[float, ...]
    window_similarity: float
    attention_on_visual: float | None


class RoutingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """statistics.json."""

    format: int = 1
    checkpoint_identity: str
    questions: int
    window: int = WINDOW
    layers: tuple[LayerStatistics, ...]


class _Sums:
    """Sums of one layer, over the calls so far; index 0 = text, 1 = visual."""

    def __init__(self, experts: int) -> None:
        self.entropy, self.tokens, self.choices = np.zeros(2), np.zeros(2), np.zeros((2, experts))
        self.similarity: list[float] = []
        self.attention: list[float] = []

    def layer(self, number: int) -> LayerStatistics:
        entropy = self.entropy / self.tokens
        load = self.choices / self.choices.sum(axis=1, keepdims=True)
        return LayerStatistics(
            layer=number,
            routing_entropy_visual=float(entropy[1]),
            routing_entropy_text=float(entropy[0]),
            expert_load_visual=tuple(load[1].tolist()),
            expert_load_text=tuple(load[0].tolist()),
            window_similarity=float(np.mean(self.similarity)),
            attention_on_visual=float(np.mean(self.attention)) if self.attention else None,
        )


class _Recorder:
    """Hooks on a decoder that has a prune site in every layer that may have one, for calls of one prompt each."""

    def __init__(self, decoder: TorchBackend, experts: int) -> None:
        self.sums = {i: _Sums(experts) for i in decoder.language_model.moe_layers}
        self._attention: torch.Tensor | None = None
        for i, layer in enumerate(decoder.language_model.layers):
            if i in decoder.policy.prune_layers[FASTMMOE]:
                layer.self_attn.register_forward_hook(self._keep_attention)
            if i in self.sums:
                layer.mlp.experts.register_forward_pre_hook(functools.partial(self._add, self.sums[i]))

    def _keep_attention(self, _: Any, __: Any, output: Attended) -> None:
        self._attention = output.watched[0]

    def _add(self, sums: _Sums, experts: SparseMoe, args: tuple[torch.Tensor, ...]) -> None:
        x, visual_index = args[0], args[1].long()
        is_visual = torch.zeros(len(x), dtype=torch.bool)
        is_visual[visual_index] = True
        attributes = SPARSE_MOE.decode(experts.attributes)
        logits, k = experts.router_logits(x), experts.config.top_k
        selected, _ = route(logits, is_visual, k, experts.correction_bias, attributes)
        routing = experts.routing_probs(x)
        # The scores of a sigmoid router do not sum to 1.
        probs = routing.double() / routing.double().sum(1, keepdim=True)
        entropy = torch.special.entr(probs).sum(1)
        for kind, mask in enumerate((~is_visual, is_visual)):
            sums.entropy[kind] += float(entropy[mask].sum())
            sums.tokens[kind] += int(mask.sum())
            sums.choices[kind] += np.bincount(selected[mask].flatten().numpy(), minlength=probs.shape[1])
        sums.similarity.append(_similarity(routing[visual_index].numpy(), visual_index.numpy()))
        if self._attention is not None:
            sums.attention.append(float(self._attention[visual_index].sum()))
            self._attention = None


def _similarity(p: Array, visual_index: Array) -> float:
    """Mean s_g of a prompt's windows of two tokens or more (one token has s = 0 by definition)."""
    V = len(visual_index)
    # The pruning score at alpha 1, where importance does not count.
    score = choose_reference(p, np.zeros(V, np.float32), visual_index, V, 0, 1.0, WINDOW)[2]
    return float(score[windows_reference(visual_index, WINDOW)[1] > 1].mean())


@torch.no_grad()
def record_statistics(model: TorchModel, prompts: Prompts, count: int) -> RoutingStatistics:
    """Statistics of the unmodified model on the first `count` questions."""
    # A site that keeps every token changes nothing, but its layer computes the attention of the last row.
    options = PolicyOptions(method=FASTMMOE, prune_layers=model.layers.prunable)
    decoder = model.decoder(model.resolve(options))
    recorder = _Recorder(decoder, model.config.moe.num_experts)
    total = min(count, len(prompts.questions))
    for place in range(total):
        run_pack(model, decoder, prompts, [place], method=UNMODIFIED)
    layers = tuple(sums.layer(i) for i, sums in recorder.sums.items())
    return RoutingStatistics(checkpoint_identity=model.identity, questions=total, layers=layers)
