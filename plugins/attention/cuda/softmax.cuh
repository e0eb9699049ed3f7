// SPDX-License-Identifier: Apache-2.0
// Softmax over keys that come in tiles. Scores are kept as exponents of two: scale times log2(e) is one
// factor.
#pragma once

#include <cmath>

#include "attention/cuda/keys.cuh"

namespace fastmmoe::attention {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

/// What a line's softmax has seen: the greatest score, and the sum of 2^(score - greatest).
struct Seen {
  float greatest = -INFINITY, total = 0.0f;

  /// What scores are taken relative to; a line that has seen nothing has no number there.
  __device__ float base() const { return greatest == -INFINITY ? 0.0f : greatest; }
  /// Makes room for scores up to `score`; the factor of what was added before.
  __device__ float raise(float score) {
    const float before = greatest;
    greatest = fmaxf(greatest, score);
    const float factor = power_of_two(before - base());
    total *= factor;
    return factor;
  }
};

/// Adds the sink of query head n, if there are sinks; the factor that makes values out of their sum.
template <typename T>
__device__ float finish(const AttentionParams& params, Seen& seen, int64_t n) {
  float factor = 1.0f;
  if (params.sink_logits != nullptr) {
    const float sink = to_float(static_cast<const T*>(params.sink_logits)[n]) * kLog2E;
    factor = seen.raise(sink);
    seen.total += power_of_two(sink - seen.base());
  }
  return factor / seen.total;
}

/// Stores lse of row and head `place`, if it is asked for.
__device__ inline void store_lse(const AttentionParams& params, const Seen& seen, int64_t place) {
  if (params.lse != nullptr) params.lse[place] = (seen.base() + log2f(seen.total)) * kLn2;
}

}  // namespace fastmmoe::attention
