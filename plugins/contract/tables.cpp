// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#include "contract/tables.h"

// clang-format off
namespace fastmmoe {

const OpContract& sparse_moe::contract() {
  static const OpContract contract{"FmmSparseMoE", 1,
    {{"hidden_states", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"router_logits", {{"T", 0, {{1, 'T'}}, 0}, {"E", 0, {{1, 'E'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"visual_index", {{"V", 0, {{1, 'V'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"visual_top_k", {{"1", 1, {}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"correction_bias", {{"E", 0, {{1, 'E'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"gate_up", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}, {"H/p", 0, {{1, 'H'}}, 'p'}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16, ElementType::kInt8}, 'W', kAlways, {}, false, kNoAlias, {{"E", 0, {{1, 'E'}}, 0}, {"I/n", 0, {{1, 'I'}}, 'n'}, {"2", 2, {}, 0}, {"H/w", 0, {{1, 'H'}}, 'w'}, {"n", 0, {{1, 'n'}}, 0}, {"b", 0, {{1, 'b'}}, 0}}},
     {"down", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}, {"I/p", 0, {{1, 'I'}}, 'p'}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16, ElementType::kInt8}, 'W', kAlways, {}, false, kNoAlias, {{"E", 0, {{1, 'E'}}, 0}, {"H/n", 0, {{1, 'H'}}, 'n'}, {"I/w", 0, {{1, 'I'}}, 'w'}, {"n", 0, {{1, 'n'}}, 0}, {"b", 0, {{1, 'b'}}, 0}}},
     {"gate_up_bias", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 10, {1}, false, kNoAlias, {}},
     {"down_bias", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 10, {1}, false, kNoAlias, {}},
     {"gate_up_scale", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}, {"H/g", 0, {{1, 'H'}}, 'g'}}, {ElementType::kFloat16}, 0, 11, {1, 2, 3}, false, kNoAlias, {{"E", 0, {{1, 'E'}}, 0}, {"I/n", 0, {{1, 'I'}}, 'n'}, {"2", 2, {}, 0}, {"H/g", 0, {{1, 'H'}}, 'g'}, {"n", 0, {{1, 'n'}}, 0}}},
     {"down_scale", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}, {"I/g", 0, {{1, 'I'}}, 'g'}}, {ElementType::kFloat16}, 0, 11, {1, 2, 3}, false, kNoAlias, {{"E", 0, {{1, 'E'}}, 0}, {"H/n", 0, {{1, 'H'}}, 'n'}, {"I/g", 0, {{1, 'I'}}, 'g'}, {"n", 0, {{1, 'n'}}, 0}}},
     {"gate_up_zero", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}, {"H/g", 0, {{1, 'H'}}, 'g'}}, {ElementType::kInt8}, 0, 13, {1}, false, kNoAlias, {{"E", 0, {{1, 'E'}}, 0}, {"I/n", 0, {{1, 'I'}}, 'n'}, {"2", 2, {}, 0}, {"H/g", 0, {{1, 'H'}}, 'g'}, {"n", 0, {{1, 'n'}}, 0}}},
     {"down_zero", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}, {"I/g", 0, {{1, 'I'}}, 'g'}}, {ElementType::kInt8}, 0, 13, {1}, false, kNoAlias, {{"E", 0, {{1, 'E'}}, 0}, {"H/n", 0, {{1, 'H'}}, 'n'}, {"I/g", 0, {{1, 'I'}}, 'g'}, {"n", 0, {{1, 'n'}}, 0}}}},
    {{"output", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}}},
    {{"top_k", AttributeKind::kInt, {}, {}, true, 1, 16},
     {"scoring_func", AttributeKind::kString, {"softmax", "sigmoid", "topk_softmax"}, {}, false, 0, 0},
     {"topk_method", AttributeKind::kString, {"greedy", "group_limited_greedy", "noaux_tc"}, {}, false, 0, 0},
     {"n_group", AttributeKind::kInt, {}, {}, true, 1, 64},
     {"topk_group", AttributeKind::kInt, {}, {}, true, 1, 64},
     {"norm_topk_prob", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"routed_scaling_factor", AttributeKind::kFloat, {}, {}, false, 0, 0},
     {"reduction_weights", AttributeKind::kString, {"preserve_sum", "none"}, {}, false, 0, 0},
     {"activation", AttributeKind::kString, {"swiglu", "swiglu_oai"}, {}, false, 0, 0},
     {"swiglu_limit", AttributeKind::kFloat, {}, {}, false, 0, 0},
     {"expert_bias", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"weight_format", AttributeKind::kString, {"float", "int8", "int4", "fp8"}, {}, false, 0, 0},
     {"group_size", AttributeKind::kInt, {}, {0, 32, 64, 128}, false, 0, 0},
     {"zero_points", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"weight_layout", AttributeKind::kString, {"logical", "tiles"}, {}, false, 0, 0},
     {"expert_size", AttributeKind::kInt, {}, {}, true, 0, 262144}},
    {{'T', 0, 16777216},
     {'V', 0, 16777216},
     {'H', 1, 262144},
     {'I', 1, 262144},
     {'E', 1, 4096}}};
  return contract;
}

const OpContract& token_prune::contract() {
  static const OpContract contract{"FmmTokenPrune", 1,
    {{"hidden_states", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"residual", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"routing_probs", {{"V", 0, {{1, 'V'}}, 0}, {"E", 0, {{1, 'E'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"attention", {{"V", 0, {{1, 'V'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"visual_index", {{"V", 0, {{1, 'V'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"visual_offsets", {{"B+1", 1, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"keep_slots", {{"K", 0, {{1, 'K'}}, 0}}, {ElementType::kInt8}, 0, kAlways, {}, false, kNoAlias, {}},
     {"keep_offsets", {{"B+1", 1, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"merge_slots", {{"M", 0, {{1, 'M'}}, 0}}, {ElementType::kInt8}, 0, kAlways, {}, false, kNoAlias, {}},
     {"merge_offsets", {{"B+1", 1, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"alpha", {{"1", 1, {}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}}},
    {{"hidden_states_out", {{"T-V+K", 0, {{1, 'T'}, {-1, 'V'}, {1, 'K'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"residual_out", {{"T-V+K", 0, {{1, 'T'}, {-1, 'V'}, {1, 'K'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"kept_index", {{"T-V+K", 0, {{1, 'T'}, {-1, 'V'}, {1, 'K'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"visual_index_out", {{"K", 0, {{1, 'K'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}}},
    {{"window", AttributeKind::kInt, {}, {}, true, 1, 64},
     {"merge", AttributeKind::kString, {"mlerp", "mean"}, {}, false, 0, 0}},
    {{'B', 1, 65536},
     {'T', 0, 16777216},
     {'V', 0, 16777216},
     {'K', 0, 16777216},
     {'M', 0, 16777216},
     {'H', 1, 262144},
     {'E', 1, 4096}}};
  return contract;
}

const OpContract& attention::contract() {
  static const OpContract contract{"FmmAttention", 1,
    {{"query", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}, {"D", 0, {{1, 'D'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"key", {{"T", 0, {{1, 'T'}}, 0}, {"K", 0, {{1, 'K'}}, 0}, {"D", 0, {{1, 'D'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"past_key", {{"B", 0, {{1, 'B'}}, 0}, {"K", 0, {{1, 'K'}}, 0}, {"C", 0, {{1, 'C'}}, 0}, {"D", 0, {{1, 'D'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'S', kAlways, {}, false, kNoAlias, {}},
     {"past_lengths", {{"B", 0, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"sequence_ids", {{"T", 0, {{1, 'T'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"sequence_offsets", {{"A+1", 1, {{1, 'A'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}, false, kNoAlias, {}},
     {"value", {{"T", 0, {{1, 'T'}}, 0}, {"K", 0, {{1, 'K'}}, 0}, {"W", 0, {{1, 'W'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 1, {0}, false, kNoAlias, {}},
     {"past_value", {{"B", 0, {{1, 'B'}}, 0}, {"K", 0, {{1, 'K'}}, 0}, {"C", 0, {{1, 'C'}}, 0}, {"W", 0, {{1, 'W'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'S', 1, {0}, false, kNoAlias, {}},
     {"sink_logits", {{"N", 0, {{1, 'N'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 3, {1}, false, kNoAlias, {}},
     {"position_ids", {{"T", 0, {{1, 'T'}}, 0}}, {ElementType::kInt32}, 0, 0, {0}, true, kNoAlias, {}},
     {"past_position_ids", {{"B", 0, {{1, 'B'}}, 0}, {"C", 0, {{1, 'C'}}, 0}}, {ElementType::kInt32}, 0, 0, {0}, true, kNoAlias, {}}},
    {{"output", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}, {"W", 0, {{1, 'W'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"present_key", {{"B", 0, {{1, 'B'}}, 0}, {"K", 0, {{1, 'K'}}, 0}, {"C", 0, {{1, 'C'}}, 0}, {"D", 0, {{1, 'D'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'S', kAlways, {}, false, 2, {}},
     {"present_value", {{"B", 0, {{1, 'B'}}, 0}, {"K", 0, {{1, 'K'}}, 0}, {"C", 0, {{1, 'C'}}, 0}, {"W", 0, {{1, 'W'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'S', 1, {0}, false, 7, {}},
     {"present_position_ids", {{"B", 0, {{1, 'B'}}, 0}, {"C", 0, {{1, 'C'}}, 0}}, {ElementType::kInt32}, 0, 4, {1}, false, 10, {}},
     {"lse", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}}, {ElementType::kFloat}, 0, 5, {1}, false, kNoAlias, {}}},
    {{"window", AttributeKind::kInt, {}, {}, true, 0, 2147483647},
     {"value_width", AttributeKind::kInt, {}, {}, true, 0, 1024},
     {"scale", AttributeKind::kFloat, {}, {}, false, 0, 0},
     {"has_sinks", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"writes_position_ids", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"has_lse", AttributeKind::kInt, {}, {0, 1}, false, 0, 0}},
    {{'A', 1, 65536},
     {'B', 1, 65536},
     {'T', 1, 16777216},
     {'C', 1, 16777216},
     {'N', 1, 1024},
     {'K', 1, 1024},
     {'D', 1, 1024},
     {'W', 1, 1024}}};
  return contract;
}

const OpContract& linear::contract() {
  static const OpContract contract{"FmmLinear", 1,
    {{"x", {{"T", 0, {{1, 'T'}}, 0}, {"K", 0, {{1, 'K'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}},
     {"weight", {{"N", 0, {{1, 'N'}}, 0}, {"K/p", 0, {{1, 'K'}}, 'p'}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16, ElementType::kInt8}, 'W', kAlways, {}, false, kNoAlias, {{"N/n", 0, {{1, 'N'}}, 'n'}, {"K/w", 0, {{1, 'K'}}, 'w'}, {"n", 0, {{1, 'n'}}, 0}, {"b", 0, {{1, 'b'}}, 0}}},
     {"bias", {{"N", 0, {{1, 'N'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 5, {1}, false, kNoAlias, {}},
     {"scale", {{"N", 0, {{1, 'N'}}, 0}, {"K/g", 0, {{1, 'K'}}, 'g'}}, {ElementType::kFloat16}, 0, 1, {1, 2}, false, kNoAlias, {{"N/n", 0, {{1, 'N'}}, 'n'}, {"K/g", 0, {{1, 'K'}}, 'g'}, {"n", 0, {{1, 'n'}}, 0}}},
     {"zero", {{"N", 0, {{1, 'N'}}, 0}, {"K/g", 0, {{1, 'K'}}, 'g'}}, {ElementType::kInt8}, 0, 4, {1}, false, kNoAlias, {{"N/n", 0, {{1, 'N'}}, 'n'}, {"K/g", 0, {{1, 'K'}}, 'g'}, {"n", 0, {{1, 'n'}}, 0}}},
     {"residual", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 7, {1}, false, kNoAlias, {}}},
    {{"y", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}}},
    {{"out_features", AttributeKind::kInt, {}, {}, true, 1, 1048576},
     {"weight_format", AttributeKind::kString, {"float", "int8", "int4"}, {}, false, 0, 0},
     {"weight_layout", AttributeKind::kString, {"logical", "tiles"}, {}, false, 0, 0},
     {"group_size", AttributeKind::kInt, {}, {0, 32, 64, 128}, false, 0, 0},
     {"zero_points", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"has_bias", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"activation", AttributeKind::kString, {"none", "gelu", "gelu_tanh"}, {}, false, 0, 0},
     {"has_residual", AttributeKind::kInt, {}, {0, 1}, false, 0, 0}},
    {{'T', 0, 16777216},
     {'K', 1, 1048576},
     {'N', 1, 1048576}}};
  return contract;
}

const OpContract& vision_attention::contract() {
  static const OpContract contract{"FmmVisionAttention", 1,
    {{"qkv", {{"B", 0, {{1, 'B'}}, 0}, {"T", 0, {{1, 'T'}}, 0}, {"3", 3, {}, 0}, {"N", 0, {{1, 'N'}}, 0}, {"D", 0, {{1, 'D'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}}},
    {{"output", {{"B", 0, {{1, 'B'}}, 0}, {"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}, {"D", 0, {{1, 'D'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}, false, kNoAlias, {}}},
    {{"scale", AttributeKind::kFloat, {}, {}, false, 0, 0},
     {"compute", AttributeKind::kString, {"float32", "bfloat16"}, {}, false, 0, 0}},
    {{'B', 1, 65536},
     {'T', 1, 65536},
     {'N', 1, 1024},
     {'D', 1, 1024}}};
  return contract;
}

const OpContract& rotary::contract() {
  static const OpContract contract{"FmmRotary", 1,
    {{"x", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}, {"2P", 0, {{2, 'P'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"cos", {{"T", 0, {{1, 'T'}}, 0}, {"1", 1, {}, 0}, {"P", 0, {{1, 'P'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"sin", {{"T", 0, {{1, 'T'}}, 0}, {"1", 1, {}, 0}, {"P", 0, {{1, 'P'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}},
     {"norm", {{"2P", 0, {{2, 'P'}}, 0}}, {ElementType::kFloat}, 0, 0, {1}, false, kNoAlias, {}}},
    {{"y", {{"T", 0, {{1, 'T'}}, 0}, {"N", 0, {{1, 'N'}}, 0}, {"2P", 0, {{2, 'P'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}, false, kNoAlias, {}}},
    {{"has_norm", AttributeKind::kInt, {}, {0, 1}, false, 0, 0},
     {"epsilon", AttributeKind::kFloat, {}, {}, false, 0, 0}},
    {{'T', 0, 16777216},
     {'N', 1, 1024},
     {'P', 1, 512}}};
  return contract;
}

std::vector<const OpContract*> all_contracts() { return {&sparse_moe::contract(), &token_prune::contract(), &attention::contract(), &linear::contract(), &vision_attention::contract(), &rotary::contract()}; }

}  // namespace fastmmoe
// clang-format on
