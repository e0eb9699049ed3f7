// SPDX-License-Identifier: Apache-2.0
// Rows of bfloat16 with vdpbf16ps: 16 sums, to each of which the products of a pair of columns are added.
#pragma once

#include <immintrin.h>

#include "common/cpu/lanes.h"
#include "common/cpu/panels/place.h"
#include "common/cpu/panels/row_blocks.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int64_t kPairColumns =
    256;  // at a time: of two panels 16 KiB, which stay near while all rows use them
constexpr int64_t kPairBytes = 4;

/// Adds to y the products of pairs of columns of all rows with those of kP panels.
struct PairTiles {
  static constexpr int kRows = 8;

  const std::byte* panels[2];  // from the first pair on
  int64_t first, count;        // pairs
  const std::byte* const* rows;
  float* y;
  int64_t y_stride;

  template <int kR, int kP>
  void tile(int64_t row) const {
    __m512 sums[kR][kP];
    const std::byte* x[kR];
    float* const to = y + row * y_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      x[r] = rows[row + r] + first * kPairBytes;
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) {
        sums[r][p] =
            first == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to + r * y_stride + p * kPanelOutputs);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      __m512bh weights[kP];
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) {
        const std::byte* from = panels[p] + i * sizeof(__m512i);
        prefetch(from);
        weights[p] = reinterpret_bits<__m512bh>(_mm512_loadu_si512(from));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        int32_t pair;
        std::memcpy(&pair, x[r] + i * kPairBytes, sizeof pair);
        const auto all_pairs = reinterpret_bits<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
        for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], weights[p], all_pairs);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) _mm512_storeu_ps(to + r * y_stride + p * kPanelOutputs, sums[r][p]);
    }
  }
};

template <int kP>
void multiply_pair_panels(const PanelProduct& product, int64_t p) {
  const PanelMatrix& matrix = *product.matrix;
  for (int64_t column = 0; column < matrix.columns; column += kPairColumns) {
    const int64_t count = (least_of(kPairColumns, matrix.columns - column) + 1) / 2,
                  panel = product.first_panel + p;
    const PairTiles tiles{
        {PanelPlace(matrix, panel, column).tiles, PanelPlace(matrix, panel + kP - 1, column).tiles},
        column / 2,
        count,
        product.rows,
        product.y + p * kPanelOutputs,
        product.y_stride};
    for_row_blocks<kP>(tiles, product.count);
  }
}

inline void multiply_pairs(const PanelProduct& product) {
  int64_t p = 0;
  for (; p + 2 <= product.panels; p += 2) multiply_pair_panels<2>(product, p);
  if (p < product.panels) multiply_pair_panels<1>(product, p);
}

/// An odd last column is half of a pair, whose other half is 0.
inline void prepare_pairs(const PanelRows&, const float* x, int64_t first, int64_t count, std::byte* row) {
  uint16_t* to = reinterpret_cast<uint16_t*>(row) + first;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = least_of<int64_t>(kLanes, count - i);
    const auto mask = static_cast<__mmask16>((1u << lanes) - 1);
    const auto rounded = reinterpret_bits<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i)));
    const auto written = static_cast<__mmask16>((1u << (lanes + lanes % 2)) - 1);
    _mm256_mask_storeu_epi16(to + i, written, rounded);
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
