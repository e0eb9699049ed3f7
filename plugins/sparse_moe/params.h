// SPDX-License-Identifier: Apache-2.0
// FmmSparseMoE: routing, expert activation reduction and the routed experts of one layer.
// Letters: T tokens, V visual tokens, H hidden, I expert hidden, E experts, k = top_k.
#pragma once

#include <cstdint>

namespace fastmmoe {

enum class ScoringFunc { kSoftmax, kSigmoid, kTopkSoftmax };
enum class TopkMethod { kGreedy, kGroupLimitedGreedy, kNoauxTc };
enum class ReductionWeights { kPreserveSum, kNone };
enum class Activation { kSwiglu, kSwigluOai };
enum class WeightFormat { kFloat, kInt8, kInt4 };

struct SparseMoeAttributes {
  int64_t top_k;
  ScoringFunc scoring_func;
  TopkMethod topk_method;
  int64_t n_group;     // divides E where topk_method has groups
  int64_t topk_group;  // at most n_group
  bool norm_topk_prob;
  float routed_scaling_factor;
  ReductionWeights reduction_weights;
  Activation activation;
  float swiglu_limit;
  bool expert_bias;
  WeightFormat weight_format;
  int64_t group_size;  // columns that share a scale; 0 with kFloat
  bool zero_points;
};

}  // namespace fastmmoe
