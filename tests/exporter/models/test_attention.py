# SPDX-License-Identifier: Apache-2.0
"""Attention over caches: who sees whom, what is cached, what is watched, and sinks that matter."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import internvl3_5
from fastmmoe.exporter.models.attention import GroupedAttention, WatchedAttention, attend
from fastmmoe.exporter.pruning.tokens import Tokens, Watch

FLOAT32_TOLERANCE = 1e-4
TOLERANCE = 1e-5
H, N, NKV, D = 8, 4, 2, 6


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def empty(heads: int, capacity: int, width: int) -> list[torch.Tensor]:
    """Caches of one sequence of which no row is in use."""
    return [torch.full((1, heads, capacity, width), math.nan) for _ in range(2)]


def tokens_of(T: int, past: int = 0, *, capacity: int = 5, has_positions: bool = False) -> Tokens:
    """Rows of one sequence behind `past` of its own, at angles of position and half of it and a third."""
    position_ids = torch.arange(past, past + T, dtype=torch.int32)
    angles = position_ids.float()[:, None, None] / torch.tensor([1.0, 2.0, 3.0])
    cached = torch.arange(capacity, dtype=torch.int32)[None] if has_positions else None
    sequence_ids = torch.zeros(T, dtype=torch.int32)
    return Tokens(sequence_ids, ints(0, T), position_ids, angles.cos(), angles.sin(), ints(past), cached)


def test_attention_sinks_of_gpt_oss(golden: Path) -> None:
    """In the golden checkpoint the sinks take under 0.1 % of every row; here they take most of some."""
    config = json.loads((golden / "internvl-gptoss" / "config.json").read_text())
    c = internvl3_5.read_config(ConfigReader(config))
    attention = internvl3_5.build_attention(c, layer=1)
    heads, kv_heads, width, T, scale = c.num_attention_heads, c.num_key_value_heads, c.head_dim, 9, 0.25
    assert attention.sinks is not None and attention.window == 0
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(n, T, width, generator=generator) for n in (heads, kv_heads, kv_heads))
    attention.sinks.data = torch.linspace(-2, 4, heads)
    expected, last_rows = torch.zeros(heads, T, width), torch.zeros(heads, T)
    for head in range(heads):
        kv = head * kv_heads // heads
        for t in range(T):
            scores = (q[head, t] @ k[kv, : t + 1].T * scale).exp()
            probs = scores / (scores.sum() + attention.sinks[head].exp())
            expected[head, t] = probs @ v[kv, : t + 1]
        last_rows[head] = probs
    assert last_rows.sum(1).min() < 0.5
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    watch, past = Watch(ints(T - 1), torch.ones(1)), empty(kv_heads, T, width)
    y = attend(q, k, v, past, tokens_of(T), [watch], WatchedAttention(scale), sinks=attention.sinks)
    np.testing.assert_allclose(y.output.transpose(0, 1), expected, rtol=0, atol=FLOAT32_TOLERANCE)
    np.testing.assert_allclose(y.watched[0], last_rows.mean(0), rtol=0, atol=FLOAT32_TOLERANCE)


def attention_of(**options: Any) -> GroupedAttention:
    module = GroupedAttention(H, N, NKV, D, **options)
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def turned(x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """[T, D], pair (i, i + D / 2) turned by the row's angle."""
    first, second = x[:, : D // 2].double(), x[:, D // 2 :].double()
    cos, sin = tokens.cos[:, 0].double(), tokens.sin[:, 0].double()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=1)


def plain(module: GroupedAttention, x: torch.Tensor, tokens: Tokens, eps: float | None) -> torch.Tensor:
    """Output [T, H] of a first call, head by head in float64."""

    def head(projection: torch.nn.Linear, norm: Any, number: int) -> torch.Tensor:
        part = slice(number * D, (number + 1) * D)
        y = x.double() @ projection.weight[part].double().T
        if projection.bias is not None:
            y = y + projection.bias[part].double()
        if eps is not None and norm is not None:
            y = y / (y.square().mean(1, keepdim=True) + eps).sqrt() * norm.weight.double()
        return y

    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
    is_seen = (distance >= 0) & (distance < (module.window or len(x)))
    heads = []
    for n in range(N):
        q, k = head(module.q_proj, module.q_norm, n), head(module.k_proj, module.k_norm, n // (N // NKV))
        scores = (turned(q, tokens) @ turned(k, tokens).T / D**0.5).masked_fill(~is_seen, -torch.inf).exp()
        total = scores.sum(1, keepdim=True)
        if module.sinks is not None:
            total = total + module.sinks[n].double().exp()
        heads.append(scores / total @ head(module.v_proj, None, n // (N // NKV)))
    y = torch.cat(heads, dim=1) @ module.o_proj.weight.double().T
    return y if module.o_proj.bias is None else y + module.o_proj.bias.double()


@pytest.mark.parametrize(
    ("options", "has_positions"),
    [
        ({}, False),
        ({"qk_norm_eps": 0.5}, False),
        ({"bias": True, "has_sinks": True}, True),
        ({"bias": True, "has_sinks": True, "window": 2}, True),
        ({"window": 2}, True),
        ({"window": 100}, True),
    ],
)
def test_attention_equals_a_plain_computation(options: dict[str, Any], has_positions: bool) -> None:
    """Only a layer with a window looks at positions and writes them, also where the others of its group do."""
    module, tokens = attention_of(**options), tokens_of(5, has_positions=has_positions)
    x = normal(5, H, seed=6)
    y = module(x, tokens, empty(NKV, 5, D), [])
    expected = plain(module, x, tokens, options.get("qk_norm_eps"))
    np.testing.assert_allclose(y.output, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    assert ([cache.shape for cache in y.present], y.watched) == ([(1, NKV, 5, D)] * 2, [])
    assert (y.present_position_ids is not None) == (module.window > 0)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_keys_are_cached_as_they_were_turned(has_sinks: bool) -> None:
    """Three rows, then two behind their cache, equal five at once; the watch sees the keys of its own call."""
    module = attention_of(has_sinks=has_sinks)
    x, watch = normal(5, H, seed=7), Watch(ints(1), torch.ones(1))
    whole = module(x, tokens_of(5), empty(NKV, 5, D), [Watch(ints(4), torch.ones(1))])
    first = module(x[:3], tokens_of(3), empty(NKV, 5, D), [])
    assert all(cache[0, :, 3:].isnan().all() and not cache[0, :, :3].isnan().any() for cache in first.present)
    second = module(x[3:], tokens_of(2, 3), first.present, [watch])
    np.testing.assert_allclose(torch.cat((first.output, second.output)), whole.output, rtol=0, atol=FLOAT32_TOLERANCE)
    for ours, theirs in zip(second.present, whole.present, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32_TOLERANCE)
    assert second.watched[0].shape == (2,)
    np.testing.assert_allclose(second.watched[0], whole.watched[0][3:], rtol=0, atol=FLOAT32_TOLERANCE)


def seen(tokens: Tokens, cached: list[list[int]], new: list[int], width: int, window: int = 0) -> list[list[int]]:
    """What each row sees of `width` keys, by their numbers: all score alike, and a value says which key it is of."""
    one_hot, capacity = torch.eye(width), 5
    values = torch.full((len(cached), 1, capacity, width), math.nan)
    for b, numbers in enumerate(cached):
        values[b, 0, : len(numbers)] = one_hot[numbers]
    keys = torch.where(values.isnan(), values, 0.0)
    q, k, v = torch.zeros(len(new), 1, width), torch.zeros(len(new), 1, width), one_hot[new][:, None]
    y = attend(q, k, v, [keys, values], tokens, [], WatchedAttention(1.0), window=window)
    return (y.output[:, 0] > 0).int().tolist()


def test_a_sequence_sees_its_own_earlier_keys_alone() -> None:
    """Three cached rows, two of sequence 0 and one of 2; then two rows of 0 and one of 2, and none of 1."""
    turn = torch.zeros(3, 1, 3)
    tokens = Tokens(ints(0, 0, 2), ints(0, 2, 3), None, turn, turn, ints(2, 0, 1), None)
    found = seen(tokens, [[0, 1], [], [2]], [3, 4, 5], 6)
    assert found == [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 1]]


def test_a_window_counts_positions() -> None:
    """A window of 3: distances 0, 1 and 2, whatever lies between; what is not in use counts for nothing."""
    turn = torch.zeros(2, 1, 3)
    tokens = Tokens(ints(0, 0), ints(0, 2), ints(6, 7), turn, turn, ints(3), ints(0, 4, 5, 6, 6)[None])
    assert seen(tokens, [[0, 1, 2]], [3, 4], 5, window=3) == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert seen(tokens, [[0, 1, 2]], [3, 4], 5) == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_the_first_layer_with_a_window_writes_positions_for_the_others() -> None:
    module, tokens, x = attention_of(window=3), tokens_of(2, 3, has_positions=True), normal(2, H)
    past = [torch.zeros(1, NKV, 5, D) for _ in range(2)]
    tokens.past_position_ids[:] = ints(0, 1, 2, 9, 9)  # type: ignore[index]
    first = module(x, tokens, past, [])
    assert first.present_position_ids.tolist() == [[0, 1, 2, 3, 4]]
    others = replace(tokens, past_position_ids=first.present_position_ids, has_new_positions=True)
    second = module(x, others, past, [])
    assert second.present_position_ids is None
    torch.testing.assert_close(second.output, first.output, rtol=0, atol=0)


def plain_attention(q: torch.Tensor, k: torch.Tensor, scale: float, past: int = 0) -> torch.Tensor:
    """Probabilities [N, T, S] head by head, of q [T, N, D] and k [S, Nkv, D], the last T keys those of the rows."""
    group, is_hidden = q.shape[1] // k.shape[1], torch.arange(len(k)) > past + torch.arange(len(q))[:, None]
    found = []
    for head in range(q.shape[1]):
        scores = (q[:, head].double() @ k[:, head // group].double().T) * scale
        found.append(scores.masked_fill(is_hidden, -math.inf).softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_with_grouped_heads(kv_heads: int) -> None:
    """Three rows behind two cached ones; values narrower than keys, of their own or the keys' first columns."""
    q, k, v = normal(3, 4, 8), normal(5, kv_heads, 8), normal(5, kv_heads, 6)
    probabilities = plain_attention(q, k, 0.3, past=2)
    past = [torch.full((1, kv_heads, 7, width), math.nan) for width in (8, 6)]
    for cache, rows in zip(past, (k, v), strict=True):
        cache[0, :, :2] = rows[:2].transpose(0, 1)
    for values, caches, width in ((v, past, 0), (None, past[:1], 6)):
        new = None if values is None else values[2:]
        y = attend(q, k[2:], new, caches, tokens_of(3, 2), [], WatchedAttention(0.3), value_width=width)
        source = (k[..., :6] if values is None else values).transpose(0, 1).double()
        expected = probabilities @ source.repeat_interleave(4 // kv_heads, dim=0)
        np.testing.assert_allclose(y.output.transpose(0, 1), expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert len(y.present) == len(caches)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_watched_rows_are_weighed(kv_heads: int) -> None:
    """Mean over heads, then the weighted sum of rows 2 and 0; a later row and another sequence count for nothing."""
    q, k = normal(5, 4, 8), normal(5, kv_heads, 8)
    k[3:] *= 1e4
    watch = Watch(ints(2, 0), torch.tensor([0.75, 0.25]))
    rows = plain_attention(q[:3], k[:3], 0.3).mean(0)
    scores = torch.stack([q[:, n].double() @ k[:, n // (4 // kv_heads)].double().T for n in range(4)], 1) * 0.3
    lse = scores[:, :, :3].masked_fill(torch.arange(3) > torch.arange(5)[:, None, None], -math.inf).logsumexp(-1)
    found = WatchedAttention(0.3)(q, k, lse.float(), watch, ints(0, 0, 0, 0, 4))
    expected = torch.cat((0.75 * rows[2] + 0.25 * rows[0], torch.zeros(2)))
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert (found.dtype, float(found.sum())) == (torch.float32, pytest.approx(1.0))
    assert WatchedAttention(0.3)(q, k, lse.float(), Watch(ints(1), torch.ones(1)), ints(3, 4, 4, 4, 4))[0] == 0


def test_watched_keys_are_rated_as_they_are_stored() -> None:
    q, k = normal(3, 4, 8), normal(3, 2, 8)
    past = [torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16) for _ in range(2)]
    y = attend(q, k, k, past, tokens_of(3, capacity=3), [Watch(ints(2), torch.ones(1))], WatchedAttention(0.3))
    rows = plain_attention(q, k.bfloat16().float(), 0.3).mean(0)
    np.testing.assert_allclose(y.watched[0], rows[2], rtol=TOLERANCE, atol=TOLERANCE)


def test_no_watched_row_watches_nothing() -> None:
    watch = Watch(torch.empty(0, dtype=torch.int32), torch.empty(0))
    found = WatchedAttention(0.3)(normal(5, 4, 8), normal(5, 2, 8), torch.zeros(5, 4), watch, ints(0, 0, 0, 0, 0))
    assert found.tolist() == [0.0] * 5
