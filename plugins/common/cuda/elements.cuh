// SPDX-License-Identifier: Apache-2.0
// What kernels do with elements of float16 or bfloat16.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda/device.cuh"
#include "common/cuda/ptx.cuh"

namespace fastmmoe {

constexpr int kElementBytes = 2;
constexpr int kVector = 8;  // elements in 16 bytes, the widest access

/// The tensor core operation on elements of T.
template <typename T>
__device__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    multiply_f16(sums, a, b0, b1);
  } else {
    multiply_bf16(sums, a, b0, b1);
  }
}

template <typename T>
__device__ void unpack(const uint4& bits, float (&values)[kVector]) {
  T elements[kVector];
  memcpy(elements, &bits, sizeof bits);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = to_float(elements[i]);
}

template <typename T>
__device__ uint4 pack(const float (&values)[kVector]) {
  T elements[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) elements[i] = from_float<T>(values[i]);
  uint4 bits;
  memcpy(&bits, elements, sizeof bits);
  return bits;
}

/// 0 where there is no bias.
template <typename T>
__device__ float bias_at(const void* bias, int64_t index) {
  return bias == nullptr ? 0.0f : to_float(static_cast<const T*>(bias)[index]);
}

/// Two neighbours in one register, the first in its lower half.
template <typename T>
__device__ uint32_t pack_pair(float first, float second) {
  const T elements[2] = {from_float<T>(first), from_float<T>(second)};
  uint32_t bits;
  memcpy(&bits, elements, sizeof bits);
  return bits;
}

/// Stores two neighbours; `to` is aligned to both.
template <typename T>
__device__ void store_pair(T* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(first, second);
}

}  // namespace fastmmoe
