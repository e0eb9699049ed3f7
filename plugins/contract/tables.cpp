// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#include "contract/tables.h"

// clang-format off
namespace fastmmoe {

const OpContract& sparse_moe::contract() {
  static const OpContract contract{"FmmSparseMoE", 1,
    {{"hidden_states", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}},
     {"router_logits", {{"T", 0, {{1, 'T'}}, 0}, {"E", 0, {{1, 'E'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}},
     {"visual_index", {{"V", 0, {{1, 'V'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"visual_top_k", {{"1", 1, {}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"correction_bias", {{"E", 0, {{1, 'E'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}},
     {"gate_up", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}, {"H/p", 0, {{1, 'H'}}, 'p'}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16, ElementType::kInt8}, 'W', kAlways, {}},
     {"down", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}, {"I/p", 0, {{1, 'I'}}, 'p'}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16, ElementType::kInt8}, 'W', kAlways, {}},
     {"gate_up_bias", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 10, {1}},
     {"down_bias", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', 10, {1}},
     {"gate_up_scale", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}, {"H/g", 0, {{1, 'H'}}, 'g'}}, {ElementType::kFloat16}, 0, 11, {1, 2}},
     {"down_scale", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}, {"I/g", 0, {{1, 'I'}}, 'g'}}, {ElementType::kFloat16}, 0, 11, {1, 2}},
     {"gate_up_zero", {{"E", 0, {{1, 'E'}}, 0}, {"2I", 0, {{2, 'I'}}, 0}, {"H/g", 0, {{1, 'H'}}, 'g'}}, {ElementType::kInt8}, 0, 13, {1}},
     {"down_zero", {{"E", 0, {{1, 'E'}}, 0}, {"H", 0, {{1, 'H'}}, 0}, {"I/g", 0, {{1, 'I'}}, 'g'}}, {ElementType::kInt8}, 0, 13, {1}}},
    {{"output", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}}},
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
     {"weight_format", AttributeKind::kString, {"float", "int8", "int4"}, {}, false, 0, 0},
     {"group_size", AttributeKind::kInt, {}, {0, 32, 64, 128}, false, 0, 0},
     {"zero_points", AttributeKind::kInt, {}, {0, 1}, false, 0, 0}},
    {{'T', 0, 16777216},
     {'V', 0, 16777216},
     {'H', 1, 262144},
     {'I', 1, 262144},
     {'E', 1, 4096}}};
  return contract;
}

const OpContract& token_prune::contract() {
  static const OpContract contract{"FmmTokenPrune", 1,
    {{"hidden_states", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}},
     {"residual", {{"T", 0, {{1, 'T'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}},
     {"routing_probs", {{"V", 0, {{1, 'V'}}, 0}, {"E", 0, {{1, 'E'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}},
     {"attention", {{"V", 0, {{1, 'V'}}, 0}}, {ElementType::kFloat}, 0, kAlways, {}},
     {"visual_index", {{"V", 0, {{1, 'V'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"visual_offsets", {{"B+1", 1, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"keep_slots", {{"K", 0, {{1, 'K'}}, 0}}, {ElementType::kInt8}, 0, kAlways, {}},
     {"keep_offsets", {{"B+1", 1, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"merge_slots", {{"M", 0, {{1, 'M'}}, 0}}, {ElementType::kInt8}, 0, kAlways, {}},
     {"merge_offsets", {{"B+1", 1, {{1, 'B'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"alpha", {{"1", 1, {}, 0}}, {ElementType::kFloat}, 0, kAlways, {}}},
    {{"hidden_states_out", {{"T-V+K", 0, {{1, 'T'}, {-1, 'V'}, {1, 'K'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}},
     {"residual_out", {{"T-V+K", 0, {{1, 'T'}, {-1, 'V'}, {1, 'K'}}, 0}, {"H", 0, {{1, 'H'}}, 0}}, {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16}, 'F', kAlways, {}},
     {"kept_index", {{"T-V+K", 0, {{1, 'T'}, {-1, 'V'}, {1, 'K'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}},
     {"visual_index_out", {{"K", 0, {{1, 'K'}}, 0}}, {ElementType::kInt32}, 0, kAlways, {}}},
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

std::vector<const OpContract*> all_contracts() { return {&sparse_moe::contract(), &token_prune::contract()}; }

}  // namespace fastmmoe
// clang-format on
