# SPDX-License-Identifier: Apache-2.0
"""FLOPs by hand for a toy of two layers, and the reductions the specification names for the real geometries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bundle import LanguageModelInfo, VisionInfo
from fastmmoe.runtime.flops import PrefillFlops, prefill_flops, vision_flops
from fastmmoe.runtime.policy import Policy, Schedule, plan_request

TOY = LanguageModelInfo(
    hidden_size=4,
    vocab_size=10,
    layers=2,
    heads=2,
    kv_heads=1,
    query_key_dim=3,
    value_dim=3,
    kv_lora_rank=0,
    rope_dim=3,
    cache_parts=("key", "value"),
    cache_shape=(1, 3),
    moe_layers=(1,),
    num_experts=4,
    top_k=2,
    moe_intermediate_size=5,
    shared_intermediate_size=6,
    dense_intermediate_size=7,
    sliding_layers=(),
    sliding_window=None,
)
QWEN3_30B = LanguageModelInfo(
    hidden_size=2048,
    vocab_size=151936,
    layers=48,
    heads=32,
    kv_heads=4,
    query_key_dim=128,
    value_dim=128,
    kv_lora_rank=0,
    rope_dim=128,
    cache_parts=("key", "value"),
    cache_shape=(4, 128),
    moe_layers=tuple(range(48)),
    num_experts=128,
    top_k=8,
    moe_intermediate_size=768,
    shared_intermediate_size=0,
    dense_intermediate_size=0,
    sliding_layers=(),
    sliding_window=None,
)
DEEPSEEK_SMALL = LanguageModelInfo(
    hidden_size=2048,
    vocab_size=102400,
    layers=27,
    heads=16,
    kv_heads=16,
    query_key_dim=192,
    value_dim=128,
    kv_lora_rank=512,
    rope_dim=64,
    cache_parts=("latent",),
    cache_shape=(576,),
    moe_layers=tuple(range(1, 27)),
    num_experts=64,
    top_k=6,
    moe_intermediate_size=1408,
    shared_intermediate_size=2816,
    dense_intermediate_size=10944,
    sliding_layers=(),
    sliding_window=None,
)


def policy(prune_layers: tuple[int, ...], merge_ratio: float = 0.05) -> Policy:
    return Policy(
        method="fastmmoe",
        prune_layers=prune_layers,
        retention=0.5,
        alpha=0.5,
        merge_ratio=merge_ratio,
        window=3,
        merge="mlerp",
        reduction_start_layer=1,
        expert_factor=0.5,
        reduction_weights="preserve_sum",
    )


def changed(info: LanguageModelInfo, **values: Any) -> LanguageModelInfo:
    return msgspec.structs.replace(info, **values)


# Two text and three visual tokens, of which layer 1 drops one between its attention and its MoE block.
SCHEDULE = Schedule(retention=0.67, visual_tokens=3, keep=(2,), merge=(0,), visual_top_k=(1,))


def test_toy_by_hand() -> None:
    flops = prefill_flops(TOY, policy((1,)), SCHEDULE, tokens=5)
    assert flops == PrefillFlops(
        # q 4 x 6, k and v 4 x 3 each, o 6 x 4: 72 weights, 5 rows, 2 layers
        projections=2 * 72 * 5 * 2,
        # 15 pairs, 2 heads, 3 + 3 dimensions, 2 layers
        attention=2 * 15 * 2 * 6 * 2,
        # the MoE layer's 4 rows
        router=2 * 4 * 4 * 4,
        # 2 text tokens use 2 experts, 2 visual tokens 1: 6 uses of 3 matrices 4 x 5
        routed_experts=2 * 6 * 3 * 4 * 5,
        shared_experts=2 * 4 * 3 * 4 * 6,
        # layer 0, 5 rows
        dense=2 * 5 * 3 * 4 * 7,
        # the last row only
        head=2 * 4 * 10,
    )
    assert flops.total == 1440 + 720 + 128 + 720 + 576 + 840 + 80


def test_pruning_in_the_first_layer_shortens_the_second() -> None:
    info = changed(TOY, moe_layers=(0, 1))
    schedule = Schedule(retention=0.67, visual_tokens=3, keep=(2,), merge=(0,), visual_top_k=(2, 1))
    flops = prefill_flops(info, policy((0,)), schedule, tokens=5)
    assert flops.projections == 2 * 72 * (5 + 4)
    assert flops.attention == 2 * (15 + 10) * 2 * 6
    assert flops.router == 2 * (4 + 4) * 4 * 4
    assert flops.routed_experts == 2 * (8 + 6) * 3 * 4 * 5
    assert flops.dense == 0


def test_latent_attention_is_counted_expanded() -> None:
    """Heads of 2 nope + 1 rope and 3 value dimensions, rank 2."""
    info = changed(TOY, kv_heads=2, kv_lora_rank=2, rope_dim=1, cache_parts=("latent",), cache_shape=(3,))
    flops = prefill_flops(info, policy((1,)), SCHEDULE, tokens=5)
    # q 4 x 6, latent 4 x (2 + 1), expansion 2 x 2 (2 + 3), o 6 x 4
    assert flops.projections == 2 * (24 + 12 + 20 + 24) * 5 * 2
    assert flops.attention == 2 * 15 * 2 * 6 * 2


@pytest.mark.parametrize(("window", "pairs"), [(1, 5), (2, 9), (4, 14), (5, 15), (9, 15)])
def test_sliding_layers_count_their_window(window: int, pairs: int) -> None:
    """Layer 0 slides, layer 1 has all 15 pairs."""
    info = changed(TOY, sliding_layers=(0,), sliding_window=window)
    flops = prefill_flops(info, policy((1,)), SCHEDULE, tokens=5)
    assert flops.attention == 2 * (pairs + 15) * 2 * 6


def test_text_alone_is_not_pruned() -> None:
    schedule = Schedule(retention=0.5, visual_tokens=0, keep=(0,), merge=(0,), visual_top_k=(1,))
    flops = prefill_flops(TOY, policy((1,)), schedule, tokens=5)
    assert flops.routed_experts == 2 * (5 * 2) * 3 * 4 * 5


def test_vision_by_hand() -> None:
    """One layer of 3 patches and a class token, joined to 1 token."""
    info = VisionInfo(
        layers=1, width=4, mlp_width=6, rows_per_tile=4, patch_inputs=12, tokens_per_tile=1, projector_inputs=16
    )
    block = 2 * 4 * (4 * 16 + 2 * 24) + 2 * (4 * 4 * 4) * 2
    assert vision_flops(info, 8, tiles=1) == 2 * 4 * 12 * 4 + block + 2 * (16 * 8 + 8 * 8)
    assert vision_flops(info, 8, tiles=3) == 3 * vision_flops(info, 8, tiles=1)


TEXT_TOKENS = 64


def reduction(info: LanguageModelInfo, method: Policy, visual_tokens: int, retention: float) -> float:
    """Share of the unmodified model's prefill FLOPs that is saved."""

    def total(R: float) -> int:
        schedule = plan_request(
            method, visual_tokens=visual_tokens, moe_layers=info.moe_layers, top_k=info.top_k, retention=R
        )
        return prefill_flops(info, method, schedule, visual_tokens + TEXT_TOKENS).total

    return 1 - total(retention) / total(1.0)


@pytest.mark.parametrize(
    ("info", "prune_layers", "merge_ratio", "visual_tokens", "retention", "expected"),
    [
        (QWEN3_30B, (5, 8, 12), 0.025, 1792, 0.55, 0.550),
        (QWEN3_30B, (5, 8, 12), 0.025, 3328, 0.55, 0.550),
        (QWEN3_30B, (5, 8, 12), 0.025, 1792, 0.75, 0.43),
        (QWEN3_30B, (5, 8, 12), 0.025, 3328, 0.75, 0.43),
        (DEEPSEEK_SMALL, (2, 5, 8), 0.05, 1023, 0.48, 0.550),
        (DEEPSEEK_SMALL, (2, 5, 8), 0.05, 1023, 0.75, 0.40),
    ],
)
def test_reductions_of_the_published_geometries(
    info: LanguageModelInfo,
    prune_layers: tuple[int, ...],
    merge_ratio: float,
    visual_tokens: int,
    retention: float,
    expected: float,
) -> None:
    """The headline of 55 % and the milder setting, with 64 text tokens; 3328 tokens are 12 tiles and a thumbnail."""
    method = msgspec.structs.replace(policy(prune_layers, merge_ratio), reduction_start_layer=2)
    assert reduction(info, method, visual_tokens, retention) == pytest.approx(expected, abs=0.01)
