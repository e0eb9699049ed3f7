// SPDX-License-Identifier: Apache-2.0
// The two products of ManyRows in tile registers. Units are those of Pairs; each operand is filled up with
// zeros to whole registers.
#pragma once

#include "attention/cpu/many_rows.h"
#include "common/cpu/tile_product.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

static_assert(kLanes == kTileUnits && kKeysPerTile % kTileRows == 0 && kRowsPerTile % kTileRows == 0);

struct Tiles : Pairs {
  static constexpr int kUnits = kTileUnits;
  template <int kSum, int kLeft, int kRight>
  static void add() {
    add_pair_products<kSum, kLeft, kRight>();
  }
  static void ahead(const float*) {}
};
template <>
struct Units<Tiles> : Units<Pairs> {};

inline int64_t whole_tiles(int64_t count) { return (count + kTileUnits - 1) / kTileUnits * kTileUnits; }

// rows: 1 or 2 registers of them. `columns` registers of columns, by twos.
template <bool kAdds>
void multiply_strip(int64_t rows, int64_t columns, TileProduct product) {
  for (; columns > 0; columns -= 2) {
    if (rows == 1) {
      columns == 1 ? multiply_tiles<Tiles, 1, 1, kAdds>(product)
                   : multiply_tiles<Tiles, 1, 2, kAdds>(product);
    } else {
      columns == 1 ? multiply_tiles<Tiles, 2, 1, kAdds>(product)
                   : multiply_tiles<Tiles, 2, 2, kAdds>(product);
    }
    product.right += 2 * kTileUnits;
    product.sums += 2 * kTileUnits;
  }
}

// Keys [count, D] are the left operand as they are stored, but for the last ones and those of odd widths.
template <>
void ManyRows<Tiles>::score() {
  const Rows keys = Units<Tiles>::keys(block_, true, first_, keys_);
  const int64_t units = whole_tiles(Units<Tiles>::count(block_.D)), whole = keys_ / kTileRows * kTileRows;
  float* const last = block_.scratch.keys + whole * keys.stride;
  for (int64_t j = whole; j < whole_tiles(keys_); ++j) {
    float* const to = block_.scratch.keys + j * keys.stride;
    if (j >= keys_) clear(to, units, 0.0f);
    if (j < keys_ && keys.data != block_.scratch.keys) {
      std::memcpy(to, keys.data + j * keys.stride, static_cast<size_t>(units) * sizeof *to);
    }
  }
  TileProduct product{};
  product.left_stride = keys.stride;
  product.right_stride = product.sum_stride = kRowsPerTile;
  product.units = units;
  int64_t from = 0;
  for (int64_t k = 0, step = 0; k < keys_; k += step) {
    step = k + 2 * kTileRows <= whole ? 2 * kTileRows : kTileRows;
    while (keys_of((from + 1) * kLanes - 1) <= k) ++from;
    product.left = k < whole ? keys.data + k * keys.stride : last;
    product.right = block_.scratch.query + from * kLanes;
    product.sums = block_.scratch.scores + k * kRowsPerTile + from * kLanes;
    multiply_strip<false>(step / kTileRows, vectors_ - from, product);
  }
}

// Weights [unit, row] of some vectors of rows become the left operand [row, unit], with zeros behind those of
// their keys. Returns it; it lies where the scores were.
inline const float* turn_weights(float* scores, int64_t row, int64_t units) {
  float* const turned = scores + kKeysPerTile / 2 * kRowsPerTile + row * kRowsPerTile;
  for (int64_t u = 0; u < whole_tiles(units); u += kTileUnits) {
    Vector square[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      square[i] = u + i < units ? load(scores + (u + i) * kRowsPerTile + row) : Vector{};
    }
    transpose(square);
    for (int64_t i = 0; i < kLanes; ++i) store(square[i], turned + i * kRowsPerTile + u);
  }
  return turned;
}

template <>
void ManyRows<Tiles>::add() {
  const int64_t stride = padded(block_.W), units = Units<Tiles>::count(keys_);
  const Rows values = Units<Tiles>::values(block_, first_, keys_);
  clear(block_.scratch.values + units * values.stride, (whole_tiles(units) - units) * values.stride, 0.0f);
  for (int64_t v = 0; v < vectors_; v += 2) {
    const int64_t vectors = least_of(2, vectors_ - v);
    const int64_t seen = Units<Tiles>::count(keys_of((v + vectors) * kLanes - 1));
    if (seen == 0) continue;
    TileProduct product{};
    product.left = turn_weights(block_.scratch.scores, v * kLanes, seen);
    if (vectors == 2) turn_weights(block_.scratch.scores, (v + 1) * kLanes, seen);
    product.left_stride = kRowsPerTile;
    product.right = values.data;
    product.right_stride = values.stride;
    product.units = whole_tiles(seen);
    product.sums = block_.scratch.output + v * kLanes * stride;
    product.sum_stride = stride;
    for (int64_t i = 0; i < vectors * kLanes; ++i) {
      const float factor = rescale_[v + i / kLanes][i % kLanes];
      if (factor == 1.0f) continue;
      float* const row = product.sums + i * stride;
      for (int64_t w = 0; w < stride; w += kLanes) store(load(row + w) * factor, row + w);
    }
    multiply_strip<true>(vectors, stride / kTileUnits, product);
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
