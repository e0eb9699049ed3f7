// SPDX-License-Identifier: Apache-2.0
// FmmSparseMoE on the CPU: routing, expert activation reduction and the routed experts of one layer.
// Letters: T tokens, V visual tokens, H hidden, I expert hidden, E experts, k = top_k.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/parallel.h"

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

/// Row-major arrays without gaps. The caller has checked them: 1 <= visual_top_k <= top_k <= E, visual_index
/// ascending and below T.
struct SparseMoeParams {
  SparseMoeAttributes attributes;
  int64_t T, V, H, I, E;
  int64_t visual_top_k;
  const float* hidden_states;    // [T, H]
  const float* router_logits;    // [T, E]
  const int32_t* visual_index;   // [V]
  const float* correction_bias;  // [E]
  FloatType weight_type;         // of gate_up and down
  const void* gate_up;           // [E, 2I, H]: gate rows, then up rows
  const void* down;              // [E, H, I]
  const float* gate_up_bias;     // [E, 2I], or null
  const float* down_bias;        // [E, H], or null
  float* output;                 // [T, H]
};

/// Writes output. The result is the same bit for bit for any number of threads, and a token's row does not
/// depend on the other tokens. Source: FastMMoE (arXiv 2511.17885) and the gates named in `route_token`.
void sparse_moe_cpu(const SparseMoeParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
