// SPDX-License-Identifier: Apache-2.0
// Rows as int8, group by group.
#pragma once

#include <immintrin.h>

#include "common/cpu/lanes.h"
#include "common/cpu/panels/place.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr float kLevels = 127.0f;
constexpr float kLeastMagnitude = 1e-30f;  // a group without a greater one is zeros

// Integers of 16 columns as bytes. Those of int4 panels are in the order of a word's low nibbles, then its
// high ones: columns 0, 4, 1, 5, 2, 6, 3, 7 of each 8.
inline __m128i bytes_of(__m512i integers, bool is_int4) {
  const __m128i bytes = _mm512_cvtsepi32_epi8(integers);
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  return is_int4 ? _mm_shuffle_epi8(bytes, order) : bytes;
}

// The bits of the greatest magnitude: NaN has more than infinity, which has more than all others.
inline float greatest_magnitude(const float* x, int64_t count) {
  __m512i greatest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto mask = static_cast<__mmask16>((1u << least_of<int64_t>(kLanes, count - i)) - 1);
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(_mm512_maskz_loadu_ps(mask, x + i)), magnitude);
    greatest = _mm512_max_epi32(greatest, bits);
  }
  return reinterpret_bits<float>(_mm512_reduce_max_epi32(greatest));
}

/// A group of columns; `to` has room for whole vectors of them.
inline void prepare_group(const PanelRows& rows, const float* x, int64_t count, std::byte* to, float* scale,
                          int32_t* correction) {
  const bool is_int4 = rows.format == PanelFormat::kInt4;
  const float greatest = greatest_magnitude(x, count);
  const bool is_zero = greatest < kLeastMagnitude;
  const __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : kLevels / greatest);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto mask = static_cast<__mmask16>((1u << least_of<int64_t>(kLanes, count - i)) - 1);
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), inverse));
    sums = _mm512_add_epi32(sums, integers);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bytes_of(integers, is_int4));
  }
  *scale = is_zero ? 0.0f : greatest / kLevels;
  const int32_t zero = rows.has_zeros ? 1 : is_int4 ? 8 : 128;
  *correction = static_cast<int32_t>(-static_cast<uint32_t>(_mm512_reduce_add_epi32(sums)) *
                                     static_cast<uint32_t>(zero));
}

inline void prepare_bytes(const PanelRows& rows, const float* x, int64_t first, int64_t count,
                          std::byte* row) {
  for (int64_t c = 0; c < count; c += rows.group_size) {
    const int64_t group = (first + c) / rows.group_size;
    prepare_group(rows, x + c, least_of(rows.group_size, count - c), row + first + c,
                  reinterpret_cast<float*>(row + rows.scales) + group,
                  reinterpret_cast<int32_t*>(row + rows.corrections) + group);
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
