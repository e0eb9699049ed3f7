// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sparse_moe/cuda/device.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kCombineThreads = 128;

static_assert(kProductDepth % kVector == 0, "a thread adds 16 bytes of a row, all of them in it");

/// output = the sum of a token's slots, experts ascending.
/// Grid: a token, pieces of kCombineThreads kVector columns. Block: a thread adds 16 bytes.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    combine_slots(const SparseMoeKernelParams params, const Workspace work) {
  const int64_t token = blockIdx.x, H = params.H;
  const int64_t column = (int64_t{blockIdx.y} * kCombineThreads + thread()) * kVector;
  const int k = static_cast<int>(params.attributes.top_k);
  if (column >= H) return;
  float sums[kVector] = {};
  for (int i = 0; i < k; ++i) {
    const int row = work.slot_row[token * k + i];
    if (row < 0) continue;
    float values[kVector];
    unpack<T>(*reinterpret_cast<const uint4*>(static_cast<const T*>(work.weighted) + row * H + column),
              values);
#pragma unroll
    for (int c = 0; c < kVector; ++c) sums[c] += values[c];
  }
  *reinterpret_cast<uint4*>(static_cast<T*>(params.output) + token * H + column) = pack<T>(sums);
}

}  // namespace fastmmoe::sparse_moe
