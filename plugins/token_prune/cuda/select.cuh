// SPDX-License-Identifier: Apache-2.0
// Exact choice of the n greatest of many by one block. A key is a float in an order-preserving form above the
// distance of its index from the end, so no two keys are equal, ties fall to the smaller index, and the n
// greatest are those at or above the nth: nothing needs sorting. Only integers are counted by atomics, so the
// result does not depend on the schedule.
#pragma once

#include <cstdint>

#include "common/cuda/device.cuh"

namespace fastmmoe::token_prune {

constexpr int kDigits = 256;

/// More than any key: nothing is chosen by it.
constexpr uint64_t kNoKey = ~uint64_t{0};

struct SelectShared {
  unsigned histogram[kDigits];
  unsigned digit, nth;
};

/// The key of index 0 to count - 1; never 0, which is left to what is no candidate.
__device__ inline uint64_t make_key(uint32_t order, int index, int count) {
  return uint64_t{order} << 32 | static_cast<uint32_t>(count - index);
}

/// Adds the digits at `shift` of the keys with the given prefix. Lanes with one digit are counted by one
/// atomic: attention values have few exponents, and most would wait for each other.
__device__ inline void count_digits(const uint64_t* keys, int count, int shift, uint64_t prefix,
                                    unsigned* histogram) {
  for (int base = 0; base < count; base += static_cast<int>(blockDim.x)) {
    const int i = base + thread();
    const uint64_t digits = i < count ? keys[i] >> shift : 0;
    const bool counts = i < count && digits >> 8 == prefix;
    const unsigned digit = counts ? static_cast<unsigned>(digits % kDigits) : kDigits;
    const unsigned peers = __match_any_sync(kAllLanes, digit);
    const bool is_first = (peers & ((1u << lane()) - 1)) == 0;
    if (counts && is_first) atomicAdd(&histogram[digit], static_cast<unsigned>(__popc(peers)));
  }
}

/// Called by one warp. Finds the digit of the nth greatest, and which one it is among those with this digit.
__device__ inline void find_digit(unsigned nth, SelectShared& shared) {
  constexpr int kPerLane = kDigits / kWarp;
  const int greatest = kDigits - 1 - lane() * kPerLane;
  unsigned sum = 0;
  for (int i = 0; i < kPerLane; ++i) sum += shared.histogram[greatest - i];
  unsigned before = sum;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const unsigned lower = __shfl_up_sync(kAllLanes, before, distance);
    if (lane() >= distance) before += lower;
  }
  before -= sum;
  if (nth <= before || nth > before + sum) return;
  int digit = greatest;
  while (nth > before + shared.histogram[digit]) before += shared.histogram[digit--];
  shared.digit = static_cast<unsigned>(digit);
  shared.nth = nth - before;
}

/// The nth greatest of the different keys [count], 1 <= nth <= count, for every thread of the block. A digit
/// of 8 bits at a time, from the top. A thread reads only keys[i] with i % blockDim.x == thread().
__device__ inline uint64_t nth_greatest(const uint64_t* keys, int count, unsigned nth, SelectShared& shared) {
  uint64_t prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int d = thread(); d < kDigits; d += static_cast<int>(blockDim.x)) shared.histogram[d] = 0;
    __syncthreads();
    count_digits(keys, count, shift, prefix, shared.histogram);
    __syncthreads();
    if (thread() < kWarp) find_digit(nth, shared);
    __syncthreads();
    prefix = prefix << 8 | shared.digit;
    nth = shared.nth;
  }
  return prefix;
}

/// How many threads before this one have the flag set; `total` becomes the number in the block. warp_counts
/// is shared memory, one for each warp.
__device__ inline int rank_in_block(bool flag, int& total, int* warp_counts) {
  const unsigned flags = __ballot_sync(kAllLanes, flag);
  if (lane() == 0) warp_counts[warp()] = __popc(flags);
  __syncthreads();
  int rank = __popc(flags & ((1u << lane()) - 1));
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (w < warp()) rank += warp_counts[w];
    total += warp_counts[w];
  }
  __syncthreads();
  return rank;
}

}  // namespace fastmmoe::token_prune
