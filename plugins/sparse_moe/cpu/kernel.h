// SPDX-License-Identifier: Apache-2.0
// FmmSparseMoE on the CPU.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/parallel.h"
#include "sparse_moe/params.h"

namespace fastmmoe {

/// What integers and fp8 have beside them; null where the format has none.
struct PackedWeights {
  const Float16* scale;
  const int8_t* zero;
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
  FloatType weight_type;         // of gate_up and down with weight_format float
  const void* gate_up;           // [E, 2I, H]: gate rows, then up rows; or as the contract has tiles
  const void* down;              // [E, H, I]
  PackedWeights gate_up_packed, down_packed;
  const float* gate_up_bias;  // [E, 2I], or null
  const float* down_bias;     // [E, H], or null
  bool is_exact;              // tiles: arithmetic in float, for checks
  float* output;              // [T, H]
};

/// Writes output. The result is the same bit for bit for any number of threads, and a token's row does not
/// depend on the other tokens. Source: FastMMoE (arXiv 2511.17885) and the gates named in `route_token`.
void sparse_moe_cpu(const SparseMoeParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
