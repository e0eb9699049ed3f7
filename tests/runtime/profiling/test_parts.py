# SPDX-License-Identifier: Apache-2.0
"""Nodes by their names; that the nodes of whole graphs find their part is in tests/end_to_end/test_profile.py."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.profiling.parts import TITLES, part_of


@pytest.mark.parametrize(
    ("node", "part"),
    [
        ("patches.patch_embed/Conv", "patches"),
        ("patches/Add", "patches"),
        ("blocks.12.norm1/LayerNormalization", "norms"),
        ("blocks.0.attn.qkv/MatMul", "attention"),
        ("blocks.0.attn/Softmax", "attention"),
        ("blocks.0.attn/FmmVisionAttention", "attention"),
        ("blocks.0.mlp.fc1/Gemm", "mlp"),
        ("blocks.0/Add_2", "rest"),
        ("projector.norm/LayerNormalization", "projector"),
        ("projector.projector_in/MatMul", "projector"),
        ("Transpose_token_7", "rest"),
    ],
)
def test_vision(node: str, part: str) -> None:
    assert part_of("vision", node) == part


@pytest.mark.parametrize(
    ("node", "part"),
    [
        ("groups.0.rotary/Cos", "rope"),
        ("groups.0/Equal", "rest"),
        ("layers.3.input_layernorm/RMSNormalization", "norms"),
        ("layers.3.self_attn.q_norm/RMSNormalization", "norms"),
        ("layers.3.self_attn.kv_a_layernorm/RMSNormalization", "norms"),
        ("layers.3.self_attn.q_proj/MatMul", "projections"),
        ("layers.3.self_attn.kv_a_proj_with_mqa/MatMul", "projections"),
        ("layers.3.self_attn/MatMul_2", "projections"),
        ("layers.3.self_attn.q_proj+k_proj+v_proj/FmmLinear", "projections"),
        ("layers.3.self_attn.q_proj+k_proj+v_proj/Split", "projections"),
        ("layers.3.self_attn.q_proj+kv_a_proj_with_mqa/FmmLinear", "projections"),
        ("layers.3.self_attn.rotary/Mul_3", "rope"),
        ("layers.3.self_attn/FmmAttention", "attention"),
        ("layers.3.self_attn/Reshape", "attention"),
        ("layers.3.self_attn.watched/Exp", "pruning"),
        ("layers.3.watched_rows/Sub", "pruning"),
        ("layers.3.token_prune/FmmTokenPrune", "pruning"),
        ("layers.3.token_prune.experts.router/Gemm", "pruning"),
        ("random_scores/ScatterElements", "pruning"),
        ("rater_weights/Softmax", "pruning"),
        ("layers.3.mlp.experts.router/Gemm", "router"),
        ("layers.3.mlp.experts/Cast", "router"),
        ("layers.3.mlp.experts/FmmSparseMoE", "routed_experts"),
        ("_inlfunc_FmmSparseMoE_token_7_experts/Loop_node_26", "routed_experts"),
        ("_inlfunc_FmmAttention_2_token_0_each/Loop_node_63", "attention"),
        ("_inlfunc_FmmTokenPrune_If_node_3", "pruning"),
        ("_inlfunc_FmmLinear_token_12_MatMul_node_9", "linears"),
        ("_inlfunc_FmmOther_If_node_3", "rest"),
        ("layers.3.mlp.shared_experts.up_proj/MatMul", "shared_experts"),
        ("layers.3.mlp.shared_experts/Mul", "shared_experts"),
        ("layers.3.mlp.shared_experts.gate_proj+up_proj/FmmLinear", "shared_experts"),
        ("layers.0.mlp.gate_proj+up_proj/FmmLinear", "dense"),
        ("layers.3.mlp/Add", "rest"),
        ("layers.0.mlp.gate_proj/MatMul", "dense"),
        ("layers.0.mlp/Mul", "dense"),
        ("layers.3/Add", "rest"),
        ("head.norm/RMSNormalization", "norms"),
        ("head.lm_head/MatMul", "head"),
        ("head/ArgMax", "head"),
        # Of TensorRT, and of what others make of names.
        ("layers.3.self_attn.q_proj/MatMul + layers.3.self_attn.k_proj/MatMul", "projections"),
        ("{ForeignNode[layers.3.input_layernorm/Cast...layers.3.self_attn.v_proj/MatMul]}", "norms"),
        ("Reformatting CopyNode for Output Tensor 0 to layers.1.mlp.experts/FmmSparseMoE", "routed_experts"),
        ("__myl_Fc_0x1234", "rest"),
        ("models.layers.3.self_attn/FmmAttention", "rest"),
    ],
)
def test_language_model(node: str, part: str) -> None:
    assert part_of("language_model", node) == part
    assert part in TITLES


def test_everything_of_the_embedding_is_one_part() -> None:
    assert part_of("embedding", "embedding/Gather") == part_of("embedding", "anything") == "embedding"
