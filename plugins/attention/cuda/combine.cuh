// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention/cuda/together.cuh"

namespace fastmmoe::attention {

constexpr int kCombineThreads = 128;
constexpr int kCombineColumns = 4;  // of a thread

/// Output of what the splits have seen, in their order. Grid: rows with heads [T, N]. Block: a thread has
/// kCombineColumns columns of one, at most kWidth of them.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kCombineThreads)
    combine_splits(const AttentionParams params, const Splits splits) {
  constexpr int kRowThreads = kWidth / kCombineColumns;
  static_assert(kCombineThreads % kRowThreads == 0);
  const int64_t places = params.T * params.N;
  const int64_t place = int64_t{blockIdx.x} * (kCombineThreads / kRowThreads) + thread() / kRowThreads;
  const int column = thread() % kRowThreads * kCombineColumns;
  if (place >= places || column >= params.W) return;
  const int row = static_cast<int>(place / params.N);
  // Its own sequence's first row: the greatest start that is not behind the row.
  const int b = params.sequence_ids[row];
  if (b < 0 || b >= params.B) return;
  const auto start = [&](int a) { return sequence_start(params, a); };
  const int a = max(first_at_least(static_cast<int>(params.A), row + 1, start) - 1, 0);
  const int last_key = min(past_length(params, b) + row - start(a), static_cast<int>(params.C) - 1);
  const int count = last_key < 0 ? 0 : min(splits.count, last_key / splits.keys + 1);

  Seen seen;
#pragma unroll 4
  for (int s = 0; s < count; ++s)
    seen.greatest = fmaxf(seen.greatest, splits.seen[s * places + place].greatest);
  const float base = seen.base();
  float sums[kCombineColumns] = {};
#pragma unroll 4
  for (int s = 0; s < count; ++s) {
    const Seen part = splits.seen[s * places + place];
    // Splits of which a window shows nothing have no sums.
    if (part.greatest == -INFINITY) continue;
    const float weight = power_of_two(part.greatest - base);
    const float4 values =
        *reinterpret_cast<const float4*>(splits.sums + (s * places + place) * params.W + column);
    seen.total += weight * part.total;
    sums[0] += weight * values.x;
    sums[1] += weight * values.y;
    sums[2] += weight * values.z;
    sums[3] += weight * values.w;
  }
  const float factor = finish<T>(params, seen, place % params.N);
  if (column == 0) store_lse(params, seen, place);
  T* output = static_cast<T*>(params.output) + place * params.W + column;
  store_pair(output, sums[0] * factor, sums[1] * factor);
  store_pair(output + 2, sums[2] * factor, sums[3] * factor);
}

}  // namespace fastmmoe::attention
