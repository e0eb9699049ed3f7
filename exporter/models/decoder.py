# SPDX-License-Identifier: Apache-2.0
"""The decoder with the prune sites of its methods: one graph for prefill and decode, several sequences at once.

A layer with a prune site runs its attention on the rows as they came. At a site "moe" its MoE block and everything
after run on the pruned rows, at a site "output" everything after the layer does. So the layers fall into groups: group
g holds the layers after the g-th layer with a site, up to and including the next. All layers of a group have caches of
one length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastmmoe.exporter.models.layers import SparseMoe
from fastmmoe.exporter.pruning.sites import Sites
from fastmmoe.exporter.pruning.tokens import Rows, Tokens
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.method.policy import RANDOM, SPARSEVLM, UNMODIFIED, Policy


class DecoderLayer(nn.Module):
    """Pre-norm layer. `self_attn` and `mlp` are the family's; `mlp` is a dense Mlp or a MoeBlock."""

    self_attn: Any
    mlp: Any

    def __init__(
        self, self_attn: nn.Module, mlp: nn.Module, input_layernorm: nn.Module, post_attention_layernorm: nn.Module
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm, self.post_attention_layernorm = input_layernorm, post_attention_layernorm


class MoeBlock(nn.Module):
    """Routed experts, plus a shared expert where the family has one."""

    def __init__(self, experts: SparseMoe, shared_experts: nn.Module | None = None) -> None:
        super().__init__()
        self.experts, self.has_shared = experts, shared_experts is not None
        if shared_experts is not None:
            self.shared_experts = shared_experts

    def forward(self, x: torch.Tensor, visual_index: torch.Tensor, visual_top_k: torch.Tensor) -> torch.Tensor:
        y = self.experts(x, visual_index, visual_top_k)
        return y + self.shared_experts(x) if self.has_shared else y


class LanguageModel(nn.Module):
    """Decoder layers, final norm and head of either family, with `policy` built in.

    Args:
        rotary_dim: rotated dimensions of a head; `inv_freq` [rotary_dim / 2] is filled like a weight. rope_scale
            multiplies cos and sin (YaRN's attention factor).
    """

    def __init__(
        self,
        layers: list[DecoderLayer],
        norm: nn.Module,
        lm_head: nn.Linear,
        rotary_dim: int,
        policy: Policy,
        *,
        rope_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.norm, self.lm_head = norm, lm_head
        self.inv_freq = nn.Parameter(torch.empty(rotary_dim // 2))
        self.policy, self.rope_scale = policy, rope_scale
        self.groups = signatures.layer_groups(len(layers), policy.sites)
        self.moe_layers = tuple(i for i, layer in enumerate(layers) if isinstance(layer.mlp, MoeBlock))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One prefill or one decode step; names and shapes of inputs and outputs: runtime/bundle/graph_io.py."""
        x, rows, outputs = self.run_layers(inputs)
        last = inputs[graph_io.SEQUENCE_OFFSETS][1:] - 1
        logits = self.logits(x.index_select(0, rows.last))
        found = {
            graph_io.LOGITS: logits,
            graph_io.NEXT_IDS: _greatest(logits),
            # Of the call's own last rows: those that are left may be others.
            graph_io.NEXT_POSITION_IDS: inputs[graph_io.POSITION_IDS].index_select(0, last) + 1,
        }
        return found | outputs

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Final norm and head: [n, H] -> [n, vocab] float32."""
        return self.lm_head(self.norm(x)).float()

    def run_layers(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Rows, dict[str, torch.Tensor]]:
        """The rows [T', H] after the last layer, which they are, and the outputs that come of the layers."""
        x = inputs[graph_io.INPUTS_EMBEDS]
        outputs: dict[str, torch.Tensor] = {}
        sites, rows, group = Sites(self.policy, inputs), self._first_rows(inputs), 0
        tokens = self._tokens(inputs, sites, group, rows, outputs)
        for i, layer in enumerate(self.layers):
            watches = sites.watches(i, rows)
            names = graph_io.past_names(i, layer.self_attn.cache_parts)
            past = [inputs[name] for name in names]
            y = layer.self_attn(layer.input_layernorm(x), tokens, past, list(watches.values()))
            outputs |= dict(zip(map(graph_io.present_name, names), y.present, strict=True))
            if y.present_position_ids is not None:
                outputs[graph_io.present_name(graph_io.past_position_ids(group))] = y.present_position_ids
                tokens = replace(tokens, past_position_ids=y.present_position_ids, has_new_positions=True)
            attention = dict(zip(watches, y.watched, strict=True))
            x = x + y.output
            h = layer.post_attention_layernorm(x)
            for s, site in sites.at(i, "moe"):
                pruned = sites.prune_moe(s, site, layer.mlp.experts.routing_probs, h, x, attention, rows)
                h, x, rows = pruned.hidden_states, pruned.residual, pruned.rows
                outputs[graph_io.kept_index(s)] = pruned.kept_index
                attention = {name: a.index_select(0, pruned.kept_index) for name, a in attention.items()}
            x = x + self._feed_forward(layer, i, h, rows.visual_index, inputs)
            for s, site in sites.at(i, "output"):
                pruned = sites.prune_output(s, site, x, attention, rows)
                x, rows = pruned.residual, pruned.rows
                outputs[graph_io.kept_index(s)] = pruned.kept_index
                attention = {name: a.index_select(0, pruned.kept_index) for name, a in attention.items()}
            if i == self.groups[group][-1] and i + 1 < len(self.layers):
                group += 1
                tokens = self._tokens(inputs, sites, group, rows, outputs)
        return x, rows, outputs

    def _first_rows(self, inputs: dict[str, torch.Tensor]) -> Rows:
        x, visual_index, random_scores = inputs[graph_io.INPUTS_EMBEDS], inputs[graph_io.VISUAL_INDEX], None
        if RANDOM in self.policy.methods:
            random_scores = torch.zeros(x.shape[0]).scatter(0, visual_index.long(), inputs[graph_io.RANDOM_SCORES])
        return Rows(
            inputs[graph_io.POSITION_IDS],
            inputs[graph_io.SEQUENCE_IDS],
            inputs[graph_io.SEQUENCE_OFFSETS],
            visual_index,
            inputs.get(graph_io.VISUAL_OFFSETS),
            random_scores,
        )

    def _feed_forward(
        self, layer: DecoderLayer, i: int, h: torch.Tensor, visual_index: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        if i not in self.moe_layers:
            return layer.mlp(h)
        j = self.moe_layers.index(i)
        if self.policy.method == UNMODIFIED:
            visual_top_k = torch.full((1,), layer.mlp.experts.config.top_k, dtype=torch.int32)
        else:
            visual_top_k = inputs[graph_io.VISUAL_TOP_K][j : j + 1]
        return layer.mlp(h, visual_index, visual_top_k)

    def _tokens(
        self, inputs: dict[str, torch.Tensor], sites: Sites, group: int, rows: Rows, outputs: dict[str, torch.Tensor]
    ) -> Tokens:
        """What the group's layers share; its present lengths go to `outputs`."""
        past_lengths = inputs[graph_io.past_lengths(group)]
        sequences = torch.arange(past_lengths.shape[0], dtype=torch.int32)
        new = (sequences[:, None] == rows.sequence_ids[None, :]).sum(1)
        outputs[graph_io.present_name(graph_io.past_lengths(group))] = past_lengths + new.to(torch.int32)
        dtype = inputs[graph_io.INPUTS_EMBEDS].dtype
        position_ids = rows.position_ids if group == 0 else self._positions(sites, rows, past_lengths)
        angles = position_ids.float()[:, None, None] * self.inv_freq
        cos, sin = (angles.cos() * self.rope_scale).to(dtype), (angles.sin() * self.rope_scale).to(dtype)
        slides = any(self.layers[i].self_attn.window for i in self.groups[group])
        past_position_ids = inputs[graph_io.past_position_ids(group)] if slides else None
        return Tokens(rows, position_ids, cos, sin, past_lengths, past_position_ids)

    def _positions(self, sites: Sites, rows: Rows, past_lengths: torch.Tensor) -> torch.Tensor:
        """[T] int32: the numbers of the original sequence or, by SparseVLM v1.5, of what is left of it."""
        if SPARSEVLM not in self.policy.methods or self.policy.sparsevlm_positions == "original":
            return rows.position_ids
        row = torch.arange(rows.position_ids.shape[0], dtype=torch.int32)
        a = (row[:, None] >= rows.sequence_offsets[None, 1:]).sum(1)  # the sequence of the call that each belongs to
        first = rows.sequence_offsets.index_select(0, a)
        compact = past_lengths.index_select(0, rows.sequence_ids) + row - first
        is_active = sites.is_active(SPARSEVLM)
        return compact if is_active is True else torch.where(torch.as_tensor(is_active), compact, rows.position_ids)


def _greatest(logits: torch.Tensor) -> torch.Tensor:
    """[A, vocab] -> int32 [A]: where the greatest is, -1 where one is NaN or infinite."""
    is_finite = logits.abs().sum(-1) < float("inf")
    return torch.where(is_finite, logits.argmax(-1).to(torch.int32), -1)
