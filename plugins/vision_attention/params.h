// SPDX-License-Identifier: Apache-2.0
// FmmVisionAttention: every row of a tile attends to every row of its tile. Letters: B tiles, T rows of a
// tile, N heads, D width of a head.
#pragma once

#include <cstdint>

#include "vision_attention/contract.h"

namespace fastmmoe {

/// Row-major arrays without gaps.
struct VisionAttentionParams {
  float scale;
  vision_attention::Compute compute;
  int64_t B, T, N, D;
  const float* qkv;  // [B, T, 3, N, D]
  float* output;     // [B, T, N, D]
};

}  // namespace fastmmoe
