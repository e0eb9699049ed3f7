# SPDX-License-Identifier: Apache-2.0
"""The decoder with FastMMoE in it: one graph for prefill and decode, whose key-value caches differ in length by stage.

A prune layer runs its attention on the sequence as it came; its MoE block and everything after run on the pruned one.
So the layers fall into groups: group g holds the layers after the g-th prune layer, up to and including the next.
All layers of a group have caches of one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastmmoe.exporter.models.layers import SparseMoe, causal_mask
from fastmmoe.exporter.ops import TOKEN_PRUNE
from fastmmoe.runtime import abi
from fastmmoe.runtime.policy import Policy


@dataclass(frozen=True)
class Tokens:
    """The rows of one group of layers and what its attention blocks share.

    Attributes:
        position_ids: [T] int32, the numbers of the original sequence.
        cos, sin: [T, rotary / 2]. mask: [T, S] bool. sliding_mask: the same for sliding layers, or None.
        key_position_ids: [S] int32 with sliding layers, else None.
        visual_index: [V] int32.
    """

    position_ids: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor
    sliding_mask: torch.Tensor | None
    key_position_ids: torch.Tensor | None
    visual_index: torch.Tensor


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
        sliding_window: tokens a sliding layer looks back over; layers say by `self_attn.is_sliding` whether they slide.
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
        sliding_window: int | None = None,
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.norm, self.lm_head = norm, lm_head
        self.inv_freq = nn.Parameter(torch.empty(rotary_dim // 2))
        self.policy, self.rope_scale, self.sliding_window = policy, rope_scale, sliding_window
        self.groups = abi.layer_groups(len(layers), policy.prune_layers)
        self.moe_layers = tuple(i for i, layer in enumerate(layers) if isinstance(layer.mlp, MoeBlock))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One prefill or one decode step; names and shapes of inputs and outputs: runtime/abi.py."""
        x = inputs[abi.INPUTS_EMBEDS]
        outputs: dict[str, torch.Tensor] = {}
        group = 0
        tokens = self._tokens(inputs, 0, inputs[abi.POSITION_IDS], inputs[abi.VISUAL_INDEX])
        for i, layer in enumerate(self.layers):
            prunes = i in self.policy.prune_layers
            h = layer.input_layernorm(x)
            past = [inputs[name] for name in abi.past_names(i, layer.self_attn.cache_parts)]
            y, present, last_row = layer.self_attn(h, tokens, past, with_last_row=prunes)
            outputs |= dict(zip(abi.present_names(i, layer.self_attn.cache_parts), present, strict=True))
            x = x + y
            h = layer.post_attention_layernorm(x)
            if i == self.groups[group][-1] and tokens.key_position_ids is not None:
                outputs[abi.present_position_ids(group)] = tokens.key_position_ids
            if prunes:
                h, x, kept_index, visual_index = self._prune(layer.mlp.experts, h, x, last_row, tokens, inputs, group)
                outputs[abi.kept_index(group)] = kept_index
                group += 1
                tokens = self._tokens(inputs, group, tokens.position_ids.index_select(0, kept_index), visual_index)
            x = x + self._feed_forward(layer, i, h, tokens.visual_index, inputs)
        outputs[abi.LOGITS] = self.lm_head(self.norm(x[-1][None])).float()
        return {abi.LOGITS: outputs.pop(abi.LOGITS), **outputs}

    def _feed_forward(
        self, layer: DecoderLayer, i: int, h: torch.Tensor, visual_index: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        if i not in self.moe_layers:
            return layer.mlp(h)
        j = self.moe_layers.index(i)
        if self.policy.method == "none":
            visual_top_k = torch.full((1,), layer.mlp.experts.config.top_k, dtype=torch.int32)
        else:
            visual_top_k = inputs[abi.VISUAL_TOP_K][j : j + 1]
        return layer.mlp(h, visual_index, visual_top_k)

    def _prune(
        self,
        experts: SparseMoe,
        h: torch.Tensor,
        x: torch.Tensor,
        last_row: torch.Tensor,
        tokens: Tokens,
        inputs: dict[str, torch.Tensor],
        stage: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        visual = tokens.visual_index
        return torch.ops.fastmmoe.token_prune(
            h,
            x,
            experts.routing_probs(h.index_select(0, visual)),
            last_row.index_select(0, visual),
            visual,
            inputs[abi.keep_slots(stage)],
            inputs[abi.merge_slots(stage)],
            inputs[abi.ALPHA][stage : stage + 1],
            TOKEN_PRUNE.encode({"window": self.policy.window, "merge": self.policy.merge}),
        )

    def _tokens(
        self, inputs: dict[str, torch.Tensor], group: int, position_ids: torch.Tensor, visual_index: torch.Tensor
    ) -> Tokens:
        first = self.groups[group][0] if group < len(self.groups) else None
        dtype = inputs[abi.INPUTS_EMBEDS].dtype
        angles = position_ids.float()[:, None] * self.inv_freq[None, :]
        cos, sin = (angles.cos() * self.rope_scale).to(dtype), (angles.sin() * self.rope_scale).to(dtype)
        T = position_ids.shape[0]
        # A prune layer that is the last layer leaves rows that no attention sees: no cache, no mask.
        past = 0 if first is None else abi.past_length(inputs, first, self.layers[first].self_attn.cache_parts)
        mask = causal_mask(T, past + T)
        sliding_mask = key_position_ids = None
        if self.sliding_window is not None and first is not None:
            key_position_ids = torch.cat((inputs[abi.past_position_ids(group)], position_ids))
            distance = position_ids[:, None] - key_position_ids[None, :]
            sliding_mask = mask & (distance < self.sliding_window)
        return Tokens(position_ids, cos, sin, mask, sliding_mask, key_position_ids, visual_index)
