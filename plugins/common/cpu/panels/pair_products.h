// SPDX-License-Identifier: Apache-2.0
// Rows of bfloat16 with vdpbf16ps: 16 sums, to each of which the products of a pair of columns are added.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "common/cpu/lanes.h"
#include "common/cpu/panels/place.h"
#include "common/cpu/panels/row_blocks.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int64_t kPairColumns =
    256;  // at a time: of two panels 16 KiB, which stay near while all rows use them
constexpr int64_t kPairBytes = 4;
constexpr int kPairVectors = kPanelOutputs / kLanes;  // of pairs of the outputs of a panel

#ifdef __AVX512BF16__

inline Vector add_pairs(Vector sums, Vector weights, Vector pairs) {
  return _mm512_dpbf16_ps(sums, reinterpret_bits<__m512bh>(weights), reinterpret_bits<__m512bh>(pairs));
}

inline HalfBits rounded(Vector values) { return reinterpret_bits<HalfBits>(_mm512_cvtneps_pbh(values)); }

#else

// For tests on processors without these instructions. They know no denormal numbers; this does.
inline Vector add_pairs(Vector sums, Vector weights, Vector pairs) {
  const Bits w = reinterpret_bits<Bits>(weights), x = reinterpret_bits<Bits>(pairs);
  sums += reinterpret_bits<Vector>(w & 0xffff0000u) * reinterpret_bits<Vector>(x & 0xffff0000u);
  return sums + reinterpret_bits<Vector>(w << 16) * reinterpret_bits<Vector>(x << 16);
}

// To nearest, ties to even; NaN stays NaN.
inline HalfBits rounded(Vector values) {
  const Bits bits = reinterpret_bits<Bits>(values);
  const Bits even = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return __builtin_convertvector(values == values ? even : bits >> 16 | 0x40u, HalfBits);
}

#endif

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
    constexpr int kV = kP * kPairVectors;
    Vector sums[kR][kV];
    const std::byte* x[kR];
    float* const to = y + row * y_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      x[r] = rows[row + r] + first * kPairBytes;
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[r][v] = first == 0 ? Vector{} : load(to + r * y_stride + v * kLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
      Vector weights[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        const std::byte* from = panels[v / kPairVectors] + i * kPanelOutputs * kPairBytes;
        if (v % kPairVectors == 0) prefetch(from);
        std::memcpy(&weights[v], from + v % kPairVectors * sizeof(Vector), sizeof(Vector));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        int32_t pair;
        std::memcpy(&pair, x[r] + i * kPairBytes, sizeof pair);
        const Vector pairs = reinterpret_bits<Vector>(all(pair));
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) sums[r][v] = add_pairs(sums[r][v], weights[v], pairs);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) store(sums[r][v], to + r * y_stride + v * kLanes);
    }
  }
};

template <typename Tiles, int kP>
void multiply_pair_panels(const PanelProduct& product, int64_t p) {
  const PanelMatrix& matrix = *product.matrix;
  for (int64_t column = 0; column < matrix.columns; column += kPairColumns) {
    const int64_t count = (least_of(kPairColumns, matrix.columns - column) + 1) / 2,
                  panel = product.first_panel + p;
    const Tiles tiles{
        {PanelPlace(matrix, panel, column).tiles, PanelPlace(matrix, panel + kP - 1, column).tiles},
        column / 2,
        count,
        product.rows,
        product.y + p * kPanelOutputs,
        product.y_stride};
    for_row_blocks<kP>(tiles, product.count);
  }
}

/// Tiles: PairTiles, or others with its members.
template <typename Tiles>
void multiply_pairs_by(const PanelProduct& product) {
  int64_t p = 0;
  for (; p + 2 <= product.panels; p += 2) multiply_pair_panels<Tiles, 2>(product, p);
  if (p < product.panels) multiply_pair_panels<Tiles, 1>(product, p);
}

inline void multiply_pairs(const PanelProduct& product) { multiply_pairs_by<PairTiles>(product); }

/// The row ends with zeros: half of a last pair, and what fills tile registers.
inline void prepare_pairs(const PanelRows& rows, const float* x, int64_t first, int64_t count,
                          std::byte* row) {
  std::byte* const to = row + first * sizeof(Bfloat16);
  for (int64_t i = 0; i < count; i += kLanes) {
    const HalfBits halves = rounded(load_values(x, i, count));
    std::memcpy(to + i * sizeof(Bfloat16), &halves, sizeof halves);
  }
  const int64_t used = (first + count) * sizeof(Bfloat16);
  if (first + count == rows.columns) std::memset(row + used, 0, rows.bytes - used);
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
