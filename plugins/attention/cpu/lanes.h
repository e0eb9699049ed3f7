// SPDX-License-Identifier: Apache-2.0
// What attention does with single vectors of this instruction set.
#pragma once

#include "common/cpu/lanes.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// Less than any score, and finite: its distance to itself is 0.
constexpr float kNoScore = -3e38f;
constexpr float kMasked = -__builtin_inff();

// a[0] b[0] a[1] b[1] ... of the first halves of a and b, or of the second.
template <bool kSecond>
inline Vector interleave(Vector a, Vector b) {
  constexpr int h = kSecond ? kLanes / 2 : 0;
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, h, h + 16, h + 1, h + 17, h + 2, h + 18, h + 3, h + 19, h + 4, h + 20,
                                 h + 5, h + 21, h + 6, h + 22, h + 7, h + 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, h, h + 8, h + 1, h + 9, h + 2, h + 10, h + 3, h + 11);
#else
  return __builtin_shufflevector(a, b, h, h + 4, h + 1, h + 5);
#endif
}

// Rows and columns of a square of vectors change places.
inline void transpose(Vector (&rows)[kLanes]) {
  Vector other[kLanes];
#pragma GCC unroll 4
  for (int width = 1; width < kLanes; width *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) other[i] = rows[i];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      rows[2 * i] = interleave<false>(other[i], other[i + kLanes / 2]);
      rows[2 * i + 1] = interleave<true>(other[i], other[i + kLanes / 2]);
    }
  }
}

// Lane i is the sum of the lanes of rows[i].
inline Vector sums_of(Vector (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int count = kLanes / 2; count > 0; count /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) {
      rows[i] = interleave<false>(rows[i], rows[i + count]) + interleave<true>(rows[i], rows[i + count]);
    }
  }
  return rows[0];
}

inline float greatest_of(Vector value) {
  float lanes[kLanes];
  store(value, lanes);
  float greatest = lanes[0];
  for (int i = 1; i < kLanes; ++i) greatest = lanes[i] > greatest ? lanes[i] : greatest;
  return greatest;
}

inline float sum_of(Vector value) {
  float lanes[kLanes];
  store(value, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
