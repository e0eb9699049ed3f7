// SPDX-License-Identifier: Apache-2.0
// FmmRotary: the norm of heads, and their rotary positions. Letters: T rows, N heads, P half of their width.
#pragma once

#include <cstdint>

namespace fastmmoe {

/// Row-major arrays without gaps. The caller has checked them.
struct RotaryParams {
  float epsilon;
  int64_t T, N, P;
  const float* x;     // [T, N, 2P]
  const float* cos;   // [T, P]
  const float* sin;   // [T, P]
  const float* norm;  // [2P], or null
  float* y;           // [T, N, 2P]
};

}  // namespace fastmmoe
