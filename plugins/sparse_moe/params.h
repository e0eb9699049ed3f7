// SPDX-License-Identifier: Apache-2.0
// FmmSparseMoE: routing, expert activation reduction and the routed experts of one layer.
// Letters: T tokens, V visual tokens, H hidden, I expert hidden, E experts, k = top_k.
#pragma once

#include <cstdint>

#include "sparse_moe/contract.h"

namespace fastmmoe {

struct SparseMoeAttributes {
  int64_t top_k;
  sparse_moe::ScoringFunc scoring_func;
  sparse_moe::TopkMethod topk_method;
  int64_t n_group;     // divides E where topk_method has groups
  int64_t topk_group;  // at most n_group
  bool norm_topk_prob;
  float routed_scaling_factor;
  sparse_moe::ReductionWeights reduction_weights;
  sparse_moe::Activation activation;
  float swiglu_limit;
  bool expert_bias;
  sparse_moe::WeightFormat weight_format;
  int64_t group_size;  // columns that share a scale; 0 with kFloat
  bool zero_points;
  sparse_moe::WeightLayout weight_layout;
  int64_t expert_size;  // I with kTiles, else 0
};

}  // namespace fastmmoe
