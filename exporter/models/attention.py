# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention of three of the decoders: DeepSeek-VL2 with MHA, Qwen3 and gpt-oss."""

from __future__ import annotations

import torch
from torch import nn

from fastmmoe.exporter.models.layers import RMSNorm, attend, rotate, watched_attention
from fastmmoe.exporter.pruning.tokens import Tokens, Watch
from fastmmoe.runtime.bundle import graph_io


class GroupedAttention(nn.Module):
    """Rotary halves, scale D^-0.5, key-value cache after RoPE.

    Args:
        bias: all four projections have one (gpt-oss).
        qk_norm_eps: norm of every head of q and k before RoPE (Qwen3), or None.
        has_sinks: one learned logit a head that takes part in the softmax and is dropped after it (gpt-oss).
        is_sliding: sees `Tokens.sliding_mask` instead of `Tokens.mask`.
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
        is_sliding: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.scale, self.is_sliding = heads, kv_heads, head_dim**-0.5, is_sliding
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=bias)
        self.q_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.sinks = nn.Parameter(torch.empty(heads)) if has_sinks else None

    def forward(
        self, x: torch.Tensor, tokens: Tokens, past: list[torch.Tensor], watches: list[Watch]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """x [T, H], past key and value [1, Nkv, S, D] -> output [T, H], the caches with this call's rows, and each
        watch's attention on this call's rows [T]."""
        T = x.shape[0]
        q = self.q_norm(self.q_proj(x).view(T, self.heads, -1)).transpose(0, 1)
        k = self.k_norm(self.k_proj(x).view(T, self.kv_heads, -1)).transpose(0, 1)
        v = self.v_proj(x).view(T, self.kv_heads, -1).transpose(0, 1)
        q, k = rotate(q, tokens.cos, tokens.sin), rotate(k, tokens.cos, tokens.sin)
        k, v = torch.cat((past[0][0], k), dim=1), torch.cat((past[1][0], v), dim=1)
        watched = [watched_attention(q, k, self.scale, w, tokens.mask, self.sinks)[-T:] for w in watches]
        mask = tokens.sliding_mask if self.is_sliding and tokens.sliding_mask is not None else tokens.mask
        y = attend(q, k, v, mask, self.scale) if self.sinks is None else self._attend_with_sinks(q, k, v, mask)
        return self.o_proj(y.transpose(0, 1).reshape(T, -1)), [k[None], v[None]], watched

    def _attend_with_sinks(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[N, T, D]. Spelled out, as the ONNX Attention op has no sink."""
        assert self.sinks is not None
        T, group = q.shape[1], self.heads // self.kv_heads
        q = (q * self.scale).view(self.kv_heads, group, T, -1)
        scores = torch.matmul(q, k[:, None].transpose(2, 3)).float().masked_fill(~mask, float("-inf"))
        sinks = self.sinks.float().view(self.kv_heads, group, 1, 1).expand(-1, -1, T, 1)
        probs = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1].to(v.dtype)
        return torch.matmul(probs, v[:, None]).view(self.heads, T, -1)
