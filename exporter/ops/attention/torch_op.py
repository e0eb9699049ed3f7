# SPDX-License-Identifier: Apache-2.0
"""FmmAttention as a torch.library custom op: an eager kernel for checks and calibration, a fake one for tracing."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from fastmmoe.exporter.ops.attention.contract import ATTENTION, check_attention_inputs

_CHUNK = 256
"""Query rows at a time: the scores of a chunk stay in a cache of the processor, and its keys end at its last row."""


@torch.library.custom_op("fastmmoe::attention", mutates_args=())
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    past_key: torch.Tensor,
    past_lengths: torch.Tensor,
    sequence_ids: torch.Tensor,
    sequence_offsets: torch.Tensor,
    others: list[torch.Tensor],
    attributes: str,
) -> list[torch.Tensor]:
    """FmmAttention in torch, float32 inside; the caches that it returns are new tensors.

    `others` are the inputs that only some nodes have, in the contract's order; `attributes` is `ATTENTION.encode`. The
    result has the contract's outputs in order. Raises ValueError for inputs outside of the contract.
    """
    a: dict[str, Any] = dict(ATTENTION.decode(attributes))
    tensors = (query, key, past_key, past_lengths, sequence_ids, sequence_offsets, *others)
    x = dict(zip((t.name for t in ATTENTION.inputs_for(a)), tensors, strict=False))
    if len(x) < len(tensors):
        raise ValueError(f"{ATTENTION.name}: {len(tensors)} inputs, expected with these attributes are {len(x)}")
    check_attention_inputs(a, x)
    caches = {"key": past_key.clone()} | ({} if a["value_width"] else {"value": x["past_value"].clone()})
    if a["writes_position_ids"]:
        caches["position_ids"] = x["past_position_ids"].clone()
    T, N, width = query.shape[0], query.shape[1], a["value_width"] or x["value"].shape[2]
    output, lse = query.new_empty((T, N, width)), torch.empty(T, N)
    for first, end in itertools.pairwise(sequence_offsets.tolist()):
        b = int(sequence_ids[first])
        past = int(past_lengths[b])
        for name, cache in caches.items():
            # [K, C, D] by rows is [C, K, D]; position_ids are rows already.
            by_rows = cache[b].transpose(0, 1) if cache.dim() == 4 else cache[b]
            by_rows[past : past + end - first] = x[name][first:end].to(cache.dtype)
        _attend_sequence(a, x, caches, b, past, slice(first, end), output, lse)
    return [output, *caches.values(), *([lse] if a["has_lse"] else [])]


def _attend_sequence(
    a: dict[str, Any],
    x: dict[str, torch.Tensor],
    caches: dict[str, torch.Tensor],
    b: int,
    past: int,
    rows: slice,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Fill `output` and `lse` of the rows of sequence b."""
    count = rows.stop - rows.start
    key = caches["key"][b, :, : past + count].float()  # [K, used, D]
    value = key[..., : a["value_width"]] if a["value_width"] else caches["value"][b, :, : past + count].float()
    positions = x["position_ids"][rows].long() if a["window"] else None
    key_positions = torch.cat((x["past_position_ids"][b, :past], x["position_ids"][rows])) if a["window"] else None
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        used = past + stop
        chunk = slice(rows.start + start, rows.start + stop)
        hidden = torch.arange(used) > past + torch.arange(start, stop)[:, None]
        if positions is not None and key_positions is not None:
            distance = positions[start:stop, None] - key_positions[:used]
            hidden |= (distance < 0) | (distance >= a["window"])
        q = x["query"][chunk].float().unflatten(1, (key.shape[0], -1)).permute(1, 2, 0, 3)  # [K, group, rows, D]
        scores = (q @ key[:, None, :used].transpose(2, 3) * a["scale"]).masked_fill(hidden, float("-inf"))
        if a["has_sinks"]:
            sinks = x["sink_logits"].float().view(key.shape[0], -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        total = scores.logsumexp(-1)  # [K, group, rows]
        y = (scores[..., :used] - total[..., None]).exp() @ value[:, None, :used]
        output[chunk] = y.permute(2, 0, 1, 3).flatten(1, 2).to(output.dtype)
        lse[chunk] = total.permute(2, 0, 1).flatten(1)


@attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    past_key: torch.Tensor,
    past_lengths: torch.Tensor,
    sequence_ids: torch.Tensor,
    sequence_offsets: torch.Tensor,
    others: list[torch.Tensor],
    attributes: str,
) -> list[torch.Tensor]:
    a: dict[str, Any] = dict(ATTENTION.decode(attributes))
    conditional = [t.name for t in ATTENTION.inputs_for(a) if t.is_conditional]
    x = dict(zip(conditional, others, strict=True))
    T, N, _ = query.shape
    caches = [past_key, *(x[name] for name in ("past_value",) if name in x)]
    if a["writes_position_ids"]:
        caches.append(x["past_position_ids"])
    lse = [query.new_empty((T, N), dtype=torch.float32)] if a["has_lse"] else []
    width = a["value_width"] or x["value"].shape[2]
    return [query.new_empty((T, N, width)), *(torch.empty_like(cache) for cache in caches), *lse]
