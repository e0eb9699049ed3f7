// SPDX-License-Identifier: Apache-2.0
// FmmLinear on the CPU.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/parallel.h"
#include "linear/params.h"

namespace fastmmoe {

/// Row-major arrays without gaps. The caller has checked them.
struct LinearParams {
  LinearAttributes attributes;
  bool is_exact;  // tiles: in float, whatever their format
  int64_t T, K, N;
  const float* x;         // [T, K]
  FloatType weight_type;  // of weight with weight_format float
  const void* weight;     // [N, K / p], p = 2 with int4, else 1; or as the contract has tiles
  const float* bias;      // [N], or null
  const Float16* scale;   // [N, ceil(K / g)], or as the contract has tiles; null with weight_format float
  const int8_t* zero;     // like scale, or null
  const float* residual;  // [T, N], or null
  float* y;               // [T, N]
};

/// Writes y. The result is the same bit for bit for any number of threads, and a row does not depend on the
/// others.
void linear_cpu(const LinearParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
