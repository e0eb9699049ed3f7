# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention: sinks that matter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import internvl3_5
from fastmmoe.exporter.models.layers import causal_mask, watched_attention
from fastmmoe.exporter.pruning.tokens import Watch

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
