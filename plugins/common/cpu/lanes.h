// SPDX-License-Identifier: Apache-2.0
// Vectors of this instruction set (FASTMMOE_ISA), for the files that are compiled once for each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

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
typedef int8_t LaneBytes __attribute__((vector_size(kLanes)));

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

inline Ints load(const int8_t* from) {
  LaneBytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
  return reinterpret_bits<Ints>(_mm512_cvtepi8_epi32(reinterpret_bits<__m128i>(bytes)));
#elif defined(__AVX2__)
  // GCC 12 would convert lane by lane.
  return reinterpret_bits<Ints>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(reinterpret_bits<int64_t>(bytes))));
#else
  return __builtin_convertvector(bytes, Ints);
#endif
}

inline Vector load(const Bfloat16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof bits);
  return float_from_bfloat16<Vector>(__builtin_convertvector(bits, Bits));
}

inline Vector load(const Float16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof bits);
#if defined(__AVX512F__)
  return reinterpret_bits<Vector>(_mm512_cvtph_ps(reinterpret_bits<__m256i>(bits)));
#elif defined(__F16C__)
  return reinterpret_bits<Vector>(_mm256_cvtph_ps(reinterpret_bits<__m128i>(bits)));
#else
  return float_from_float16<Vector>(__builtin_convertvector(bits, Bits));
#endif
}

inline void store(Vector value, float* to) { std::memcpy(to, &value, sizeof value); }
inline void store(Ints value, int32_t* to) { std::memcpy(to, &value, sizeof value); }

// kLanes bytes: the low one of each.
inline void store_low_bytes(Ints values, std::byte* to) {
#if defined(__AVX512F__)
  const auto bytes = reinterpret_bits<LaneBytes>(_mm512_cvtepi32_epi8(reinterpret_bits<__m512i>(values)));
#elif defined(__AVX2__)
  // GCC 12 would convert lane by lane.
  const __m256i order = _mm256_set1_epi32(0x0c080400);
  const __m256i halves = _mm256_shuffle_epi8(reinterpret_bits<__m256i>(values), order);
  const __m128i bytes =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
#else
  const auto bytes = __builtin_convertvector(values, LaneBytes);
#endif
  std::memcpy(to, &bytes, kLanes);
}

// The first `count` values, at most kLanes; lanes after them are 0.
inline Vector load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector values = {};
  std::memcpy(&values, from, static_cast<size_t>(count) * sizeof *from);
  return values;
}

inline void store_some(Vector value, float* to, int64_t count) {
  if (count >= kLanes) return store(value, to);
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof *to);
}

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

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
