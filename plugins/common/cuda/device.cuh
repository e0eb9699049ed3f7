// SPDX-License-Identifier: Apache-2.0
// What the kernels of all operators share: places in a block, warps, the order of floats, element types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#ifdef FASTMMOE_EMULATOR
#include "testing/emulator/emulator.h"
#endif

namespace fastmmoe {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// The place of a thread in its block, whose threads are all along x; of its warp in the block; of the thread
/// in its warp.
__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int warp() { return thread() / kWarp; }
__device__ inline int lane() { return thread() % kWarp; }

/// The same bits in every lane and on every run.
template <typename T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// Of the values that are not NaN.
__device__ inline float warp_max(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

/// Compares as the float does; 0.0 and -0.0 are equal. NaN is 1, below every number, and 0 is left to what is
/// no candidate.
__device__ inline uint32_t order_bits(float value) {
  if (std::isnan(value)) return 1;
  const uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
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

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/// Rounded to the nearest, ties to even.
template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

}  // namespace fastmmoe
