// SPDX-License-Identifier: Apache-2.0
// Rows of bfloat16 with tdpbf16ps: to sums of 16 rows and the 16 outputs of a panel it adds the products of
// 32 columns. Few rows have vectors of float instead, in which a row's sums are rounded likewise: they do not
// depend on the number of rows. Rows are prepared as by pair_products.h.
#pragma once

#include "common/cpu/panels/pair_products.h"
#include "common/cpu/panels/tile_operands.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

struct TilePairs {
  static constexpr int kUnits = kTileUnits;
  template <int kSum, int kLeft, int kRight>
  static void add() {
    add_pair_products<kSum, kLeft, kRight>();
  }
  static void ahead(const float* weights) { prefetch_tile(weights, kUnits); }
};

/// Adds to y the products of a block of columns of all rows with those of kP panels.
template <int kP>
struct PairBlock {
  static constexpr int kOutputs = kP * kPanelOutputs;

  const PanelProduct& product;
  int64_t panel;         // of the product's
  int64_t first, units;  // units fill whole registers
  const std::byte* weights[2];
  std::byte* copy;  // of rows

  template <int kR>
  void multiply(int64_t row, int64_t count) const {
    TileProduct tiles =
        tile_product(left_operand(product.rows + row, count, first * kUnitBytes, units * kUnitBytes, copy),
                     weights, units);
    float* const y = product.y + row * product.y_stride + panel * kPanelOutputs;
    if (count < kR * kTileRows) return multiply_some<kR>(tiles, count, y);
    tiles.sums = y;
    tiles.sum_stride = product.y_stride;
    if (first == 0) {
      multiply_tiles<TilePairs, kR, kP, false>(tiles);
    } else {
      multiply_tiles<TilePairs, kR, kP, true>(tiles);
    }
  }

 private:
  // y has fewer rows than the registers.
  template <int kR>
  void multiply_some(TileProduct tiles, int64_t count, float* y) const {
    alignas(64) float sums[kR * kTileRows][kOutputs] = {};
    for (int64_t r = 0; r < count && first > 0; ++r) {
      std::memcpy(sums[r], y + r * product.y_stride, sizeof sums[r]);
    }
    tiles.sums = sums[0];
    tiles.sum_stride = kOutputs;
    multiply_tiles<TilePairs, kR, kP, true>(tiles);
    for (int64_t r = 0; r < count; ++r) std::memcpy(y + r * product.y_stride, sums[r], sizeof sums[r]);
  }
};

template <int kP>
void multiply_pair_blocks(const PanelProduct& product, int64_t panel, TileCopies& copies) {
  const PanelMatrix& matrix = *product.matrix;
  for (int64_t first = 0; 2 * first < matrix.columns; first += kTileBlockUnits) {
    const int64_t units = least_of(kTileBlockUnits, (matrix.columns + 1) / 2 - first);
    const std::byte* weights[2] = {};
    for (int i = 0; i < kP; ++i) {
      const PanelPlace place(matrix, product.first_panel + panel + i, 2 * first);
      weights[i] = whole_weights(place.tiles, units, kTileUnits, copies.weights[i]);
    }
    const PairBlock<kP> block{
        product, panel, first, whole_units(units, kTileUnits), {weights[0], weights[1]}, copies.rows};
    for_tile_rows(block, product.count);
  }
}

inline void multiply_pairs_in_tiles(const PanelProduct& product) {
  const TileRegisters registers;
  TileCopies copies;
  int64_t panel = 0;
  for (; panel + 2 <= product.panels; panel += 2) multiply_pair_blocks<2>(product, panel, copies);
  if (panel < product.panels) multiply_pair_blocks<1>(product, panel, copies);
}

// The products of the first halves of 16 pairs are one sum, those of the second halves another, with one
// rounding each; both are added, and then what was there: the order of tdpbf16ps. But denormal numbers are no
// zeros.
struct FewPairs {
  static constexpr int kRows = 4;

  const std::byte* panels[2];  // from the first pair on
  int64_t first, count;        // pairs
  const std::byte* const* rows;
  float* y;
  int64_t y_stride;

  template <int kR, int kP>
  void tile(int64_t row) const {
    constexpr int kV = kP * kPairVectors;
    for (int64_t i = 0; i < count; i += kTileUnits) {
      Vector low[kR][kV] = {}, high[kR][kV] = {};
      add_products<kR, kV>(row, i, least_of<int64_t>(count, i + kTileUnits), low, high);
#pragma GCC unroll 4
      for (int r = 0; r < kR; ++r) {
        float* const to = y + (row + r) * y_stride;
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) {
          const Vector before = first + i == 0 ? Vector{} : load(to + v * kLanes);
          store(before + (low[r][v] + high[r][v]), to + v * kLanes);
        }
      }
    }
  }

 private:
  template <int kR, int kV>
  void add_products(int64_t row, int64_t begin, int64_t end, Vector (&low)[kR][kV],
                    Vector (&high)[kR][kV]) const {
    for (int64_t i = begin; i < end; ++i) {
      Bits weights[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        const std::byte* from = panels[v / kPairVectors] + i * kPanelOutputs * kPairBytes;
        if (v % kPairVectors == 0) prefetch(from);
        std::memcpy(&weights[v], from + v % kPairVectors * sizeof(Bits), sizeof(Bits));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kR; ++r) {
        uint32_t pair;
        std::memcpy(&pair, rows[row + r] + (first + i) * kPairBytes, sizeof pair);
        const Vector x_low = all(reinterpret_bits<float>(pair << 16));
        const Vector x_high = all(reinterpret_bits<float>(pair & 0xffff0000u));
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) {
          low[r][v] += reinterpret_bits<Vector>(weights[v] << 16) * x_low;
          high[r][v] += reinterpret_bits<Vector>(weights[v] & 0xffff0000u) * x_high;
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
