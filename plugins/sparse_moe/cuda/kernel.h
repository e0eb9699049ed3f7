// SPDX-License-Identifier: Apache-2.0
// FmmSparseMoE on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/cuda/products.h"
#include "common/half.h"
#include "sparse_moe/params.h"

namespace fastmmoe {

/// The kernel keeps the scores of a token in the registers of a warp.
constexpr int64_t kSparseMoeMaxExperts = 256;
constexpr int64_t kSparseMoeMaxTopK = 16;

/// Row-major arrays without gaps in device memory, those of type F and the weights aligned to 16 bytes; the
/// sizes are known on the host. H and I are multiples of kProductDepth or kInt4ProductDepth. The caller has
/// checked the attributes; visual_index is ascending and below T. g is attributes.group_size; int4 weights
/// are packed as exporter/ops/quantise.py says.
struct SparseMoeKernelParams {
  SparseMoeAttributes attributes;
  FloatType type;  // F: kFloat16 or kBfloat16
  int64_t T, V, H, I, E;
  const void* hidden_states;     // [T, H] F
  const float* router_logits;    // [T, E]
  const int32_t* visual_index;   // [V]
  const int32_t* visual_top_k;   // [1], 1 to top_k
  const float* correction_bias;  // [E], read with kNoauxTc only
  const void* gate_up;           // [E, 2I, H] F, int8 or fp8, or [E, 2I, H / 2] int4: gate, then up rows
  const void* down;              // [E, H, I] or [E, H, I / 2], likewise
  const void* gate_up_bias;      // [E, 2I] F, or null
  const void* down_bias;         // [E, H] F, or null
  const void* gate_up_scale;     // [E, 2I, ceil(H / g)] float16; null with kFloat
  const void* down_scale;        // [E, H, ceil(I / g)] float16; null with kFloat
  const int8_t* gate_up_zero;    // like gate_up_scale; null without zero_points
  const int8_t* down_zero;       // like down_scale; null without zero_points
  void* output;                  // [T, H] F
};

/// Bytes that launch_sparse_moe uses of its workspace. It depends on T, H, I, E, top_k and weight_format, and
/// is never less for more tokens, so the size for the greatest T is enough for every request. Throws
/// CheckError for sizes or types that launch_sparse_moe cannot take.
size_t sparse_moe_workspace_bytes(const SparseMoeKernelParams& params);

/// Writes output by at most five kernels on `stream`, without waiting for them. Results are the same bit for
/// bit on every run; the last bits of a row may depend on the other tokens. workspace: device memory aligned
/// to 16 bytes, needs no initialisation.
///
/// Sums are float. Integer weights are rounded to F once, as scale (q - zero), fp8 likewise, as scale q.
/// Between the two projections, and where a token's experts wait for their sum, values are rounded to F, so
/// with kFloat16 the activation must stay below 65504. Choices and ties: as route_token (cpu/route.h). Throws
/// CheckError for sizes or types it cannot take; a failed launch throws what launch.h says.
void launch_sparse_moe(const SparseMoeKernelParams& params, void* workspace, cudaStream_t stream);

}  // namespace fastmmoe
