// SPDX-License-Identifier: Apache-2.0
// FmmSparseMoE on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "sparse_moe/params.h"

namespace fastmmoe {

/// The kernel keeps the scores of a token in the registers of a warp.
constexpr int64_t kSparseMoeMaxExperts = 256;
constexpr int64_t kSparseMoeMaxTopK = 16;

/// H and I are multiples of this: the depth of one tensor core operation.
constexpr int64_t kSparseMoeDepth = 16;

/// Row-major arrays without gaps in device memory, those of type F aligned to 16 bytes; the sizes are known
/// on the host. The caller has checked the attributes; visual_index is ascending and below T.
struct SparseMoeKernelParams {
  SparseMoeAttributes attributes;
  FloatType type;  // F: kFloat16 or kBfloat16
  int64_t T, V, H, I, E;
  const void* hidden_states;     // [T, H] F
  const float* router_logits;    // [T, E]
  const int32_t* visual_index;   // [V]
  const int32_t* visual_top_k;   // [1], 1 to top_k
  const float* correction_bias;  // [E], read with kNoauxTc only
  const void* gate_up;           // [E, 2I, H] F: gate rows, then up rows
  const void* down;              // [E, H, I] F
  const void* gate_up_bias;      // [E, 2I] F, or null
  const void* down_bias;         // [E, H] F, or null
  void* output;                  // [T, H] F
};

/// Bytes that launch_sparse_moe uses of its workspace. It depends on T, H, I, E and top_k, and is never less
/// for more tokens, so the size for the greatest T is enough for every request.
size_t sparse_moe_workspace_bytes(const SparseMoeKernelParams& params);

/// Writes output by at most five kernels on `stream`, without waiting for them. Results are the same bit for
/// bit on every run. workspace: device memory aligned to 16 bytes, needs no initialisation.
///
/// Sums are float. Between the two projections, and where a token's experts wait for their sum, values are
/// rounded to F, so with kFloat16 the activation must stay below 65504. Choices and ties: as route_token
/// (route.h). Throws CheckError for sizes or types it cannot take; a failed launch throws what launch.h says.
void launch_sparse_moe(const SparseMoeKernelParams& params, void* workspace, cudaStream_t stream);

}  // namespace fastmmoe
