// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fastmmoe::token_prune {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// The sum over a warp, the same bits in every lane and on every run.
template <typename T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// The first i in [0, count) with value_at(i) >= value, else count; the values ascend.
template <typename ValueAt>
__device__ int first_at_least(int count, int value, const ValueAt& value_at) {
  int low = 0;
  while (low < count) {
    const int middle = low + (count - low) / 2;
    if (value_at(middle) < value) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

}  // namespace fastmmoe::token_prune
