# SPDX-License-Identifier: Apache-2.0
"""A fused MoE in Triton, for comparison: two kernels over blocks of one expert's slots, and a sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def gate_up_blocks(  # type: ignore[no-untyped-def]
    x, gate_up, act, slots, block_experts, used,
    H: tl.constexpr, I: tl.constexpr, K: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """act[slot] = silu(x W_gate) (x W_up), a block of slots x columns."""
    block = tl.program_id(0)
    expert = tl.load(block_experts + block)
    if expert < 0:
        return
    slot = tl.load(slots + block * ROWS + tl.arange(0, ROWS))
    is_slot = slot < used
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    rows = x + (slot // K).to(tl.int64)[:, None] * H + depth[None, :]
    gate = gate_up + expert.to(tl.int64) * 2 * I * H + column[None, :] * H + depth[:, None]
    up = gate + I * H
    sum_gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_up = tl.zeros((ROWS, COLUMNS), tl.float32)
    is_column = column[None, :] < I
    for start in range(0, H, DEPTH):
        is_depth = depth + start < H
        a = tl.load(rows + start, mask=is_slot[:, None] & is_depth[None, :], other=0.0)
        mask = is_depth[:, None] & is_column
        sum_gate = tl.dot(a, tl.load(gate + start, mask=mask, other=0.0), sum_gate)
        sum_up = tl.dot(a, tl.load(up + start, mask=mask, other=0.0), sum_up)
    made = sum_gate * tl.sigmoid(sum_gate) * sum_up
    places = act + slot.to(tl.int64)[:, None] * I + column[None, :]
    tl.store(places, made.to(act.dtype.element_ty), mask=is_slot[:, None] & is_column)


@triton.jit
def down_blocks(  # type: ignore[no-untyped-def]
    act, down, weights, out, slots, block_experts, used,
    H: tl.constexpr, I: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[slot] = weight (act W_down), a block of slots x columns."""
    block = tl.program_id(0)
    expert = tl.load(block_experts + block)
    if expert < 0:
        return
    slot = tl.load(slots + block * ROWS + tl.arange(0, ROWS))
    is_slot = slot < used
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    rows = act + slot.to(tl.int64)[:, None] * I + depth[None, :]
    matrix = down + expert.to(tl.int64) * H * I + column[None, :] * I + depth[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    is_column = column[None, :] < H
    for start in range(0, I, DEPTH):
        is_depth = depth + start < I
        a = tl.load(rows + start, mask=is_slot[:, None] & is_depth[None, :], other=0.0)
        total = tl.dot(a, tl.load(matrix + start, mask=is_depth[:, None] & is_column, other=0.0), total)
    total *= tl.load(weights + slot, mask=is_slot, other=0.0)[:, None]
    places = out + slot.to(tl.int64)[:, None] * H + column[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_slot[:, None] & is_column)


def launch(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    slots: torch.Tensor,
    block_experts: torch.Tensor,
    rows: int,
) -> torch.Tensor:
    """Output [T, H] of x [T, H], weights float32 [T, k], and blocks of `rows` slots each (`peers.blocks_of`)."""
    (T, H), k, I = x.shape, weights.shape[1], down.shape[2]  # noqa: E741
    used, blocks = T * k, len(block_experts)
    act, out = x.new_empty(used, I), x.new_empty(used, H)
    many = rows >= 64
    columns, depth = 128 if many else 64, 64
    options = {"num_warps": 8 if many else 4, "num_stages": 3}
    gate_up_blocks[(blocks, triton.cdiv(I, columns))](
        x, gate_up, act, slots, block_experts, used, H, I, k, rows, columns, depth, **options
    )
    down_blocks[(blocks, triton.cdiv(H, columns))](
        act, down, weights, out, slots, block_experts, used, H, I, rows, columns, depth, **options
    )
    return out.view(T, k, H).sum(1, dtype=torch.float32).to(x.dtype)
