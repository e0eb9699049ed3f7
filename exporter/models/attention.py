# SPDX-License-Identifier: Apache-2.0
"""Attention over caches of fixed capacity, and the grouped-query attention of three of the decoders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from fastmmoe.exporter.models.layers import RMSNorm, Rotary
from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.exporter.ops.attention import torch_op as _attention  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.contract import Attributes
from fastmmoe.exporter.pruning.tokens import Tokens, Watch
from fastmmoe.runtime.bundle import graph_io


@dataclass(frozen=True)
class Attended:
    """What attention gives.

    Attributes:
        output: [T, N, W].
        present: the layer's caches with this call's rows.
        present_position_ids: [B, C] where this layer writes its group's positions, else None.
        watched: each watch's attention on this call's rows [T].
    """

    output: torch.Tensor
    present: list[torch.Tensor]
    present_position_ids: torch.Tensor | None
    watched: list[torch.Tensor]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    past: list[torch.Tensor],
    tokens: Tokens,
    watches: list[Watch],
    watched: WatchedAttention,
    *,
    window: int = 0,
    value_width: int = 0,
    sinks: torch.Tensor | None = None,
) -> Attended:
    """FmmAttention of a layer.

    Args:
        q: [T, N, D].
        k: [T, Nkv, D].
        v: [T, Nkv, W]; None: the first value_width columns of k.
        past: the layer's caches [B, Nkv, C, D or W]: keys, and values unless v is None.
        watched: gives what the watches ask for; its scale is the operator's.
        window: see the contract; 0: none.
        sinks: [N], one more logit for each head, or None.
    """
    writes_position_ids = window > 0 and not tokens.has_new_positions
    attributes: Attributes = {
        "window": window,
        "value_width": value_width,
        "scale": watched.scale,
        "has_sinks": int(sinks is not None),
        "writes_position_ids": int(writes_position_ids),
        "has_lse": int(bool(watches)),
    }
    others = [] if v is None else [v, past[1]]
    others += [] if sinks is None else [sinks]
    if window:
        assert tokens.position_ids is not None and tokens.past_position_ids is not None
        others += [tokens.position_ids, tokens.past_position_ids]
    ids = (tokens.past_lengths, tokens.sequence_ids, tokens.sequence_offsets)
    output, *found = torch.ops.fastmmoe.attention(q, k, past[0], *ids, others, ATTENTION.encode(attributes))
    present, found = found[: len(past)], found[len(past) :]
    # Keys are rated as they are stored.
    rated = [watched(q, k.to(past[0].dtype), found[-1], watch, tokens.sequence_ids) for watch in watches]
    return Attended(output, present, found[0] if writes_position_ids else None, rated)


class WatchedAttention(nn.Module):
    """Attention of some query rows on the rows of their call: mean over heads, weighted sum over the rows.

    Args:
        scale: of a query's product with a key.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, watch: Watch, sequence_ids: torch.Tensor
    ) -> torch.Tensor:
        """The watch's attention, [T] float32.

        Args:
            q: [T, N, D].
            k: [T, Nkv, D].
            lse: [T, N] float32, logarithm of what each row's softmax divides by; what it has of keys outside of the
                call, and of sinks, makes a row's attention sum to less than 1.
        """
        T, Nkv, R, G = k.shape[0], k.shape[1], watch.rows.shape[0], q.shape[1] // k.shape[1]
        rows = q.index_select(0, watch.rows).float().view(R, Nkv, G, q.shape[2]).permute(1, 2, 0, 3)  # [Nkv, G, R, D]
        scores = torch.matmul(rows, k.float().permute(1, 2, 0)[:, None]) * self.scale  # [Nkv, G, R, T]
        scores = scores - lse.index_select(0, watch.rows).view(R, Nkv, G, 1).permute(1, 2, 0, 3)
        is_same = sequence_ids.index_select(0, watch.rows)[:, None] == sequence_ids[None, :]
        is_seen = is_same & (torch.arange(T)[None, :] <= watch.rows[:, None])  # [R, T]
        probs = scores.masked_fill(~is_seen, float("-inf")).exp().mean((0, 1))
        return (probs * watch.weights[:, None]).sum(0)


class GroupedAttention(nn.Module):
    """Rotary halves, scale D^-0.5, key-value cache after RoPE.

    Args:
        bias: all four projections have one (gpt-oss).
        qk_norm_eps: norm of every head of q and k before RoPE (Qwen3), or None.
        has_sinks: one learned logit a head that takes part in the softmax and is dropped after it (gpt-oss).
        window: original positions that a row looks back over; 0: all.
    """

    cache_parts = graph_io.KEY_VALUE

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        qk_norm_eps: float | None = None,
        has_sinks: bool = False,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.window = heads, kv_heads, window
        self.rotary, self.watched = Rotary(), WatchedAttention(head_dim**-0.5)
        self.cache_shape = (kv_heads, head_dim)
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=bias)
        self.q_norm = None if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.sinks = nn.Parameter(torch.empty(heads)) if has_sinks else None

    def forward(self, x: torch.Tensor, tokens: Tokens, past: list[torch.Tensor], watches: list[Watch]) -> Attended:
        """x [T, H] -> output [T, H]."""
        T = x.shape[0]
        q = self.rotary(self.q_proj(x).view(T, self.heads, -1), tokens.cos, tokens.sin, self.q_norm)
        k = self.rotary(self.k_proj(x).view(T, self.kv_heads, -1), tokens.cos, tokens.sin, self.k_norm)
        v = self.v_proj(x).view(T, self.kv_heads, -1)
        y = attend(q, k, v, past, tokens, watches, self.watched, window=self.window, sinks=self.sinks)
        return replace(y, output=self.o_proj(y.output.flatten(1)))
