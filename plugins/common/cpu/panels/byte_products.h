// SPDX-License-Identifier: Apache-2.0
// Rows of int8 with vpdpbusd: 16 sums, to each of which the products of four columns are added, unsigned
// weights with signed rows. int8 weights q become q + 128, and their zeros likewise. The sums of a group are
// exact.
#pragma once

#include <immintrin.h>

#include "common/cpu/lanes.h"
#include "common/cpu/panels/place.h"
#include "common/cpu/panels/row_blocks.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int64_t kByteColumns = 512;  // at a time: of two panels 16 KiB of bytes
constexpr int64_t kFourBytes = 4;

inline __m512i load_vector(const std::byte* from) { return _mm512_loadu_si512(from); }

/// Panels as they are stored. `eight` gives the bytes of 8 columns in the order of the rows' bytes, `four`
/// the first half of them.
struct StoredInt8 {
  static constexpr bool kHasWholeEights = false;          // a panel may end after four columns
  static constexpr int64_t kBytes = 2 * sizeof(__m512i);  // of 8 columns
  static constexpr int kOffset = 128;
  static __m512i four(const std::byte* from) {
    return _mm512_xor_si512(load_vector(from), _mm512_set1_epi8(-128));
  }
  static void eight(const std::byte* from, __m512i (&weights)[2]) {
    weights[0] = four(from);
    weights[1] = four(from + sizeof(__m512i));
  }
};

struct StoredInt4 {
  static constexpr bool kHasWholeEights = true;
  static constexpr int64_t kBytes = sizeof(__m512i);
  static constexpr int kOffset = 0;
  static __m512i four(const std::byte* from) {
    return _mm512_and_si512(load_vector(from), _mm512_set1_epi8(15));
  }
  static void eight(const std::byte* from, __m512i (&weights)[2]) {
    const __m512i words = load_vector(from);
    weights[0] = _mm512_and_si512(words, _mm512_set1_epi8(15));
    weights[1] = _mm512_and_si512(_mm512_srli_epi16(words, 4), _mm512_set1_epi8(15));
  }
};

/// Adds to y the products of columns of all rows with those of kP panels.
template <typename Source>
struct ByteTiles {
  static constexpr int kRows = 6;

  PanelPlace places[2];
  int64_t first, count, group_size;  // columns
  const PanelRows* layout;
  const std::byte* const* rows;
  float* y;
  int64_t y_stride;

  template <int kR, int kP>
  void tile(int64_t row) const {
    __m512 totals[kR][kP];
    float* const to = y + row * y_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) {
        totals[r][p] =
            first == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to + r * y_stride + p * kPanelOutputs);
      }
    }
    const int64_t before = first / group_size;
    for (int64_t group = 0; group * group_size < count; ++group) {
      add_group<kR, kP>(row, group, before + group, totals);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) _mm512_storeu_ps(to + r * y_stride + p * kPanelOutputs, totals[r][p]);
    }
  }

 private:
  template <int kR, int kP>
  void add_group(int64_t row, int64_t group, int64_t number, __m512 (&totals)[kR][kP]) const {
    const int64_t c = group * group_size;
    __m512i sums[kR][kP];
    const std::byte* x[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      x[r] = rows[row + r] + first + c;
      int32_t correction;
      std::memcpy(&correction, rows[row + r] + layout->corrections + number * sizeof correction,
                  sizeof correction);
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) sums[r][p] = first_sum(places[p], group, correction);
    }
    add_products<kR, kP>(x, c, sums);
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) {
      const __m512 scale = _mm512_cvtph_ps(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places[p].scale + group * kPanelOutputs)));
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        float row_scale;
        std::memcpy(&row_scale, rows[row + r] + layout->scales + number * sizeof row_scale, sizeof row_scale);
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][p]), _mm512_set1_ps(row_scale));
        totals[r][p] = _mm512_fmadd_ps(scaled, scale, totals[r][p]);
      }
    }
  }

  // What the zeros take away from the sums of a group. A correction and a zero have 16 bits.
  static __m512i first_sum(const PanelPlace& place, int64_t group, int32_t correction) {
    const __m512i corrections = _mm512_set1_epi32(correction);
    if (place.zero == nullptr) return corrections;
    const __m128i bytes =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(place.zero + group * kPanelOutputs));
    const __m512i zeros =
        _mm512_cvtepu8_epi32(_mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(Source::kOffset))));
    return _mm512_dpwssd_epi32(_mm512_setzero_si512(), zeros, corrections);
  }

  template <int kR, int kP>
  void add_products(const std::byte* const (&x)[kR], int64_t c, __m512i (&sums)[kR][kP]) const {
    const int64_t columns = least_of(group_size, count - c), eights = columns / 8;
    const int64_t start = c / 8 * Source::kBytes;
    for (int64_t i = 0; i < eights; ++i) {
      __m512i weights[kP][2];
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) {
        const std::byte* from = places[p].tiles + start + i * Source::kBytes;
        prefetch(from);
        if constexpr (Source::kBytes > kLineBytes) prefetch(from + kLineBytes);
        Source::eight(from, weights[p]);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r) {
          const __m512i four = all_four(x[r] + 8 * i + 4 * half);
#pragma GCC unroll 2
          for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[p][half], four);
        }
      }
    }
    if (columns > 8 * eights) add_last<kR, kP>(x, start + eights * Source::kBytes, columns, sums);
  }

  static __m512i all_four(const std::byte* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
  }

  // Columns after the last whole eight.
  template <int kR, int kP>
  void add_last(const std::byte* const (&x)[kR], int64_t start, int64_t columns,
                __m512i (&sums)[kR][kP]) const {
    const bool has_more = columns % 8 > kFourBytes || Source::kHasWholeEights;
    for (int p = 0; p < kP; ++p) {
      __m512i weights[2] = {Source::four(places[p].tiles + start), _mm512_setzero_si512()};
      if (has_more) Source::eight(places[p].tiles + start, weights);
      for (int r = 0; r < kR; ++r) {
        const std::byte* last = x[r] + columns / 8 * 8;
        sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[0], all_four(last));
        sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[1], all_four(last + kFourBytes));
      }
    }
  }
};

template <typename Stored, int kP>
void multiply_byte_columns(const PanelProduct& product, int64_t p, int64_t first, int64_t count) {
  const PanelMatrix& matrix = *product.matrix;
  const int64_t panel = product.first_panel + p;
  const ByteTiles<Stored> tiles{{PanelPlace(matrix, panel, first), PanelPlace(matrix, panel + kP - 1, first)},
                                first,
                                count,
                                matrix.group_size,
                                product.layout,
                                product.rows,
                                product.y + p * kPanelOutputs,
                                product.y_stride};
  for_row_blocks<kP>(tiles, product.count);
}

template <typename Stored>
void multiply_stored(const PanelProduct& product) {
  const int64_t columns = product.matrix->columns;
  for (int64_t p = 0; p < product.panels; p += 2) {
    for (int64_t first = 0; first < columns; first += kByteColumns) {
      const int64_t count = least_of(kByteColumns, columns - first);
      if (p + 1 < product.panels) {
        multiply_byte_columns<Stored, 2>(product, p, first, count);
      } else {
        multiply_byte_columns<Stored, 1>(product, p, first, count);
      }
    }
  }
}

inline void multiply_bytes(const PanelProduct& product) {
  if (product.matrix->format == PanelFormat::kInt4) return multiply_stored<StoredInt4>(product);
  multiply_stored<StoredInt8>(product);
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
