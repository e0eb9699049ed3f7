# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune as a torch.library custom op: an eager kernel for checks and calibration, a fake one for tracing."""

from __future__ import annotations

from typing import Any

import torch

from fastmmoe.exporter.ops.token_prune.contract import NORM_FLOOR, TOKEN_PRUNE, check_prune_inputs
from fastmmoe.exporter.ops.token_prune.reference import choose_packed_reference
from fastmmoe.runtime.method.policy import MEAN


@torch.library.custom_op("fastmmoe::token_prune", mutates_args=())
def token_prune(
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    routing_probs: torch.Tensor,
    attention: torch.Tensor,
    visual_index: torch.Tensor,
    visual_offsets: torch.Tensor,
    keep_slots: torch.Tensor,
    keep_offsets: torch.Tensor,
    merge_slots: torch.Tensor,
    merge_offsets: torch.Tensor,
    alpha: torch.Tensor,
    attributes: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """FmmTokenPrune in torch; the choice is the NumPy reference's, so that both choose alike.

    `attributes` is `TOKEN_PRUNE.encode`; the rest as in the contract. Raises ValueError for inputs outside of it.
    """
    a: dict[str, Any] = dict(TOKEN_PRUNE.decode(attributes))
    states, visual = (hidden_states, residual, routing_probs, attention), (visual_index, visual_offsets)
    tensors = (*states, *visual, keep_slots, keep_offsets, merge_slots, merge_offsets, alpha)
    check_prune_inputs(a, dict(zip((t.name for t in TOKEN_PRUNE.inputs), tensors, strict=True)))
    T, V, K = hidden_states.shape[0], visual_index.shape[0], keep_slots.shape[0]
    offsets = (visual_offsets.numpy(), keep_offsets.numpy(), merge_offsets.numpy())
    if K == V:
        everything = torch.arange(T, dtype=torch.int32)
        return hidden_states.clone(), residual.clone(), everything, visual_index.clone()
    source, merged_length = choose_packed_reference(
        routing_probs.numpy(), attention.numpy(), visual_index.numpy(), *offsets, float(alpha), a["window"]
    )
    survivors = visual_index[torch.from_numpy(source)].long()
    dropped = torch.zeros(T, dtype=torch.bool)
    dropped[visual_index.long()] = True
    dropped[survivors] = False
    kept_index = torch.nonzero(~dropped).view(-1)
    visual_index_out = torch.searchsorted(kept_index, survivors).to(torch.int32)
    outs = []
    for values in (hidden_states, residual):
        out = values[kept_index]
        for row, first, n in zip(visual_index_out.tolist(), survivors.tolist(), merged_length.tolist(), strict=True):
            if n:
                out[row] = _merge(values[first : first + n].float(), a["merge"]).to(out.dtype)
        outs.append(out)
    return outs[0], outs[1], kept_index.to(torch.int32), visual_index_out


def _merge(rows: torch.Tensor, merge: Any) -> torch.Tensor:
    mean = rows.mean(0)
    if merge == MEAN:
        return mean
    return mean / mean.norm().clamp_min(NORM_FLOOR) * rows.norm(dim=1).max()


@token_prune.register_fake
def _(
    hidden_states: torch.Tensor, residual: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    _, _, visual_index, _, keep_slots, *_ = others
    rows = hidden_states.shape[0] - visual_index.shape[0] + keep_slots.shape[0]
    return (
        hidden_states.new_empty((rows, hidden_states.shape[1])),
        residual.new_empty((rows, residual.shape[1])),
        visual_index.new_empty((rows,)),
        visual_index.new_empty((keep_slots.shape[0],)),
    )
