// SPDX-License-Identifier: Apache-2.0
// Vectors of this instruction set (FASTMMOE_ISA) and what attention does with single ones. For the files that
// are compiled once for each.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/half.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t HalfBits __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Less than any score, and finite: its distance to itself is 0.
constexpr float kNoScore = -3e38f;
constexpr float kMasked = -__builtin_inff();

inline Vector load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Ints load(const int32_t* from) {
  Ints value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Vector load(const Bfloat16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof bits);
  return float_from_bfloat16<Vector>(__builtin_convertvector(bits, Bits));
}

inline void store(Vector value, float* to) { std::memcpy(to, &value, sizeof value); }

inline Vector all(float value) { return value - Vector{}; }
inline Ints all(int32_t value) { return value - Ints{}; }

inline Vector greater(Vector a, Vector b) { return a > b ? a : b; }

// 2^x for x <= 0 within 2e-7 of it, 0 where it is less than 2^-125; NaN stays.
inline Vector power_of_two(Vector x) {
  const Vector least = all(-125.0f), rounder = all(0x1.8p23f);
  const Vector near = x < least ? least : x;
  const Vector rounded = near + rounder;  // the integer is in the low bits
  const Vector rest = near - (rounded - rounder);
  Vector power = all(0x1.41fbbcp-13f);
  power = power * rest + 0x1.5f3e54p-10f;
  power = power * rest + 0x1.3b2d4cp-7f;
  power = power * rest + 0x1.c6aee8p-5f;
  power = power * rest + 0x1.ebfbdcp-3f;
  power = power * rest + 0x1.62e430p-1f;
  power = power * rest + 1.0f;
  const Bits exponent = reinterpret_bits<Bits>(rounded) << 23;
  const Vector scaled = reinterpret_bits<Vector>(reinterpret_bits<Bits>(power) + exponent);
  return x < least ? all(0.0f) : scaled;
}

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
