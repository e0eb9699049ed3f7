// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fastmmoe {

/// Rows of weights that a call converts at a time: the size of GemmBlock::scratch is this many times depth.
constexpr int64_t kGemmScratchRows = 4;

/// y[r, o] = sum over d of x[r][d] * w[o, d], in float.
struct GemmBlock {
  int64_t rows, outputs, depth;
  const float* const* x;  // [rows] pointers to [depth]
  const void* w;          // [outputs, depth] of weight_type
  FloatType weight_type;
  float* scratch;  // [kGemmScratchRows * depth]; not used with float weights
  float* y;        // [rows, outputs]
};

/// A sum's order depends on depth and the processor only, not on the rows and outputs beside it.
using GemmBlockFunction = void (*)(const GemmBlock&);

/// The variant for the widest vectors of this processor.
GemmBlockFunction gemm_block_for_this_cpu();

}  // namespace fastmmoe
