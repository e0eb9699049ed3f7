// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/contract.h"

namespace fastmmoe {
namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr auto kAnyType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

const char* name_of(const char* name) { return name; }

template <typename Tensor>
const char* name_of(const Tensor& tensor) {
  return tensor.name;
}

template <typename Items>
std::string names_as_json(const Items& items) {
  std::string json = "[";
  for (const auto& item : items) {
    if (json.size() > 1) json += ",";
    json += std::string("\"") + name_of(item) + "\"";
  }
  return json + "]";
}

}  // namespace

const OpContract& sparse_moe::contract() {
  // In the order of sparse_moe::Input and sparse_moe::Attribute.
  static const OpContract contract{
      "FmmSparseMoE",
      1,
      {{"hidden_states", "T, H", 2, kFloat},
       {"router_logits", "T, E", 2, kFloat},
       {"visual_index", "V", 1, kInt32},
       {"visual_top_k", "1", 1, kInt32},
       {"correction_bias", "E", 1, kFloat},
       {"gate_up", "E, 2I, H", 3, kAnyType},
       {"down", "E, H, I", 3, kAnyType},
       {"gate_up_bias", "E, 2I", 2, kFloat, true},
       {"down_bias", "E, H", 2, kFloat, true}},
      {{"output", kFloat}},
      {"top_k", "scoring_func", "topk_method", "n_group", "topk_group", "norm_topk_prob",
       "routed_scaling_factor", "reduction_weights", "activation", "swiglu_limit", "expert_bias"}};
  return contract;
}

const OpContract& token_prune::contract() {
  // In the order of token_prune::Input, Output and Attribute.
  static const OpContract contract{"FmmTokenPrune",
                                   1,
                                   {{"hidden_states", "T, H", 2, kFloat},
                                    {"residual", "T, H", 2, kFloat},
                                    {"routing_probs", "V, E", 2, kFloat},
                                    {"attention", "V", 1, kFloat},
                                    {"visual_index", "V", 1, kInt32},
                                    {"keep_slots", "K", 1, kInt8},
                                    {"merge_slots", "M", 1, kInt8},
                                    {"alpha", "1", 1, kFloat}},
                                   {{"hidden_states_out", kFloat},
                                    {"residual_out", kFloat},
                                    {"kept_index", kInt32},
                                    {"visual_index_out", kInt32}},
                                   {"window", "merge"}};
  return contract;
}

std::string contracts_as_json() {
  std::string json = "{";
  for (const OpContract* op : {&sparse_moe::contract(), &token_prune::contract()}) {
    if (json.size() > 1) json += ",";
    json += std::string("\"") + op->name + "\":{\"version\":" + std::to_string(op->version) +
            ",\"inputs\":" + names_as_json(op->inputs) + ",\"outputs\":" + names_as_json(op->outputs) +
            ",\"attributes\":" + names_as_json(op->attributes) + "}";
  }
  return json + "}";
}

}  // namespace fastmmoe
