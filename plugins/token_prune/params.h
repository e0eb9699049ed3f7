// SPDX-License-Identifier: Apache-2.0
// FmmTokenPrune: routing-aware pruning of visual tokens between attention and MoE. The kernels of CPU and
// CUDA take the same parameters. Letters: B sequences, T tokens, V visual tokens, K of them survive, M
// windows are merged, H hidden, E experts.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "token_prune/contract.h"

namespace fastmmoe {

struct TokenPruneAttributes {
  int64_t window;
  token_prune::Merge merge;
};

/// Row-major arrays without gaps, in the memory of the processor that runs the kernel; the sizes are known on
/// the host. The caller has checked them: visual_index ascending and below T, alpha 0 to 1, K <= V and, where
/// K < V, M <= min(K, merge_capacity(V, K, window)).
struct TokenPruneParams {
  TokenPruneAttributes attributes;
  FloatType type;  // of hidden_states, residual and their outputs
  int64_t B, T, V, K, M, H, E;
  const void* hidden_states;      // [T, H]
  const void* residual;           // [T, H]
  const float* routing_probs;     // [V, E]
  const float* attention;         // [V]
  const int32_t* visual_index;    // [V]
  const int32_t* visual_offsets;  // [B + 1] from 0 to V
  const int32_t* keep_offsets;    // [B + 1] from 0 to K
  const int32_t* merge_offsets;   // [B + 1] from 0 to M
  const float* alpha;             // [1]
  void* hidden_states_out;        // [T - V + K, H]
  void* residual_out;             // [T - V + K, H]
  int32_t* kept_index;            // [T - V + K]
  int32_t* visual_index_out;      // [K]
};

/// The most windows that may be merged when K of V tokens survive.
int64_t merge_capacity(int64_t V, int64_t K, int64_t window);

}  // namespace fastmmoe
