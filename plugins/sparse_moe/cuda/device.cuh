// SPDX-License-Identifier: Apache-2.0
// What the kernels of FmmSparseMoE share: the workspace, the element types and the activation.
#pragma once

#include <cstdint>

#include "common/cuda/device.cuh"
#include "common/cuda/elements.cuh"
#include "common/cuda/products.h"
#include "common/cuda/ptx.cuh"
#include "sparse_moe/cuda/kernel.h"

namespace fastmmoe::sparse_moe {

constexpr int kMaxExperts = static_cast<int>(kSparseMoeMaxExperts);

/// Whether a request has so few tokens that the kernels of decode.cuh take it.
inline bool is_few(const SparseMoeKernelParams& params) { return params.T <= kDecodeTokens; }

/// A slot is a token and one of its k experts, token * k + i, its experts ascending. Rows are the slots in
/// use sorted by expert, then token; every expert's rows are filled up to whole tiles of tile_rows.
struct Workspace {
  int32_t* experts;      // [T k] of the slots; -1 where the expert is not used
  float* weights;        // [T k]
  int32_t* slot_row;     // [T k] the slot's row, or -1
  int32_t* row_slot;     // [max_tiles tile_rows] the row's slot, or -1 where it only fills up a tile
  int32_t* tile_expert;  // [max_tiles] ascending, then -1
  void* activated;       // [max_tiles tile_rows, I] F
  void* weighted;        // [max_tiles tile_rows, H] F; not with the decoding kernels
  int32_t slots, tile_rows, max_tiles;
};

__device__ inline float activate(const SparseMoeAttributes& attributes, float gate, float up) {
  if (attributes.activation == Activation::kSwiglu) return __fdividef(gate, 1.0f + expf(-gate)) * up;
  const float limit = attributes.swiglu_limit;
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return __fdividef((up + 1.0f) * gate, 1.0f + expf(-kSwigluOaiAlpha * gate));
}

}  // namespace fastmmoe::sparse_moe
