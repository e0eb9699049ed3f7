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
  FloatType weight_type;  // of weight
  const void* weight;     // [N, K], or null
  const void* tiles;      // [ceil(N / 16), ceil(K / p), 16, c], or null
  const float* bias;      // [N], or null
  const Float16* scale;   // [ceil(N / 16), ceil(K / g), 16], or null
  const int8_t* zero;     // like scale, or null
  const float* residual;  // [T, N], or null
  float* y;               // [T, N]
};

/// Writes y. The result is the same bit for bit for any number of threads, and a row does not depend on the
/// others.
void linear_cpu(const LinearParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
