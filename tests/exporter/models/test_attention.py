# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention: its caches and masks, and sinks that matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import internvl3_5
from fastmmoe.exporter.models.attention import GroupedAttention
from fastmmoe.exporter.models.layers import causal_mask, watched_attention
from fastmmoe.exporter.pruning.tokens import Tokens, Watch

FLOAT32_TOLERANCE = 1e-4


def test_attention_sinks_of_gpt_oss(golden: Path) -> None:
    """In the golden checkpoint the sinks take under 0.1 % of every row; here they take most of some."""
    config = json.loads((golden / "internvl-gptoss" / "config.json").read_text())
    c = internvl3_5.read_config(ConfigReader(config))
    attention = internvl3_5.build_attention(c, layer=1)
    N, Nkv, D, T, scale = c.num_attention_heads, c.num_key_value_heads, c.head_dim, 9, 0.25
    assert attention.sinks is not None and not attention.is_sliding
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(n, T, D, generator=generator) for n in (N, Nkv, Nkv))
    attention.sinks.data = torch.linspace(-2, 4, N)
    expected, last_rows = torch.zeros(N, T, D), torch.zeros(N, T)
    for head in range(N):
        kv = head * Nkv // N
        for t in range(T):
            scores = (q[head, t] @ k[kv, : t + 1].T * scale).exp()
            probs = scores / (scores.sum() + attention.sinks[head].exp())
            expected[head, t] = probs @ v[kv, : t + 1]
        last_rows[head] = probs
    assert last_rows.sum(1).min() < 0.5
    y = attention._attend_with_sinks(q, k, v, causal_mask(T, T))
    np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    watch = Watch(torch.tensor([T - 1]), torch.ones(1))
    row = watched_attention(q, k, scale, watch, causal_mask(T, T), attention.sinks)
    np.testing.assert_allclose(row, last_rows.mean(0), rtol=0, atol=FLOAT32_TOLERANCE)


H, N, NKV, D = 8, 4, 2, 6


def attention_of(**options: Any) -> GroupedAttention:
    module = GroupedAttention(H, N, NKV, D, **options)
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def tokens_of(T: int, past: int, window: int | None = None) -> Tokens:
    """Positions from `past` on, at angles of position and half of it and a third."""
    angles = torch.arange(past, past + T).float()[:, None] / torch.tensor([1.0, 2.0, 3.0])
    mask = causal_mask(T, past + T)
    distance = torch.arange(past, past + T)[:, None] - torch.arange(past + T)[None]
    sliding = None if window is None else mask & (distance < window)
    return Tokens(angles.cos(), angles.sin(), mask, sliding, None, torch.zeros(past + T, dtype=torch.int32))


def turned(x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """[T, D], pair (i, i + D / 2) turned by the row's angle."""
    first, second = x[:, : D // 2].double(), x[:, D // 2 :].double()
    cos, sin = tokens.cos.double(), tokens.sin.double()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=1)


def plain(
    module: GroupedAttention, x: torch.Tensor, tokens: Tokens, mask: torch.Tensor, eps: float | None
) -> torch.Tensor:
    """Output [T, H] of a first call, head by head in float64."""

    def head(projection: torch.nn.Linear, norm: Any, number: int) -> torch.Tensor:
        part = slice(number * D, (number + 1) * D)
        y = x.double() @ projection.weight[part].double().T
        if projection.bias is not None:
            y = y + projection.bias[part].double()
        if eps is not None and norm is not None:
            y = y / (y.square().mean(1, keepdim=True) + eps).sqrt() * norm.weight.double()
        return y

    heads = []
    for n in range(N):
        q, k = head(module.q_proj, module.q_norm, n), head(module.k_proj, module.k_norm, n // (N // NKV))
        scores = (turned(q, tokens) @ turned(k, tokens).T / D**0.5).masked_fill(~mask, -torch.inf).exp()
        total = scores.sum(1, keepdim=True)
        if module.sinks is not None:
            total = total + module.sinks[n].double().exp()
        heads.append(scores / total @ head(module.v_proj, None, n // (N // NKV)))
    y = torch.cat(heads, dim=1) @ module.o_proj.weight.double().T
    return y if module.o_proj.bias is None else y + module.o_proj.bias.double()


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({}, None),
        ({"qk_norm_eps": 0.5}, None),
        ({"bias": True, "has_sinks": True}, 2),
        ({"bias": True, "has_sinks": True, "is_sliding": True}, 2),
        ({"is_sliding": True}, 2),
        ({"is_sliding": True}, None),
    ],
)
def test_attention_equals_a_plain_computation(options: dict[str, Any], window: int | None) -> None:
    """Only a sliding layer looks at the sliding mask, and at the other where the model has no window."""
    module, tokens = attention_of(**options), tokens_of(5, 0, window)
    x = torch.randn(5, H, generator=torch.Generator().manual_seed(6))
    empty = torch.zeros(1, NKV, 0, D)
    slides = bool(options.get("is_sliding")) and tokens.sliding_mask is not None
    mask = tokens.sliding_mask if slides and tokens.sliding_mask is not None else tokens.mask
    with torch.no_grad():
        y, (keys, values), watched = module(x, tokens, [empty, empty], [])
        expected = plain(module, x, tokens, mask, options.get("qk_norm_eps"))
    np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    assert (keys.shape, values.shape, watched) == ((1, NKV, 5, D), (1, NKV, 5, D), [])


@pytest.mark.parametrize("has_sinks", [False, True])
def test_keys_are_cached_as_they_were_turned(has_sinks: bool) -> None:
    """Three rows, then two behind their cache, equal five at once; the watch sees the keys of its own call."""
    module = attention_of(has_sinks=has_sinks)
    x = torch.randn(5, H, generator=torch.Generator().manual_seed(7))
    empty, watch = torch.zeros(1, NKV, 0, D), Watch(torch.tensor([1]), torch.ones(1))
    with torch.no_grad():
        whole, cache, (of_whole,) = module(
            x, tokens_of(5, 0), [empty, empty], [Watch(torch.tensor([4]), torch.ones(1))]
        )
        first, before, _ = module(x[:3], tokens_of(3, 0), [empty, empty], [])
        second, after, (of_second,) = module(x[3:], tokens_of(2, 3), before, [watch])
    np.testing.assert_allclose(torch.cat((first, second)), whole, rtol=0, atol=FLOAT32_TOLERANCE)
    for ours, theirs in zip(after, cache, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32_TOLERANCE)
    assert of_second.shape == (2,)
    np.testing.assert_allclose(of_second, of_whole[3:], rtol=0, atol=FLOAT32_TOLERANCE)
