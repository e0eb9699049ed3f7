// SPDX-License-Identifier: Apache-2.0
// The two products of ManyRows in tile registers. Units are those of Pairs; each operand is filled up with
// zeros to whole registers.
#pragma once

#include "attention/cpu/many_rows.h"
#include "attention/cpu/tile_registers.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

static_assert(kLanes == kTileUnits && kKeysPerTile % kTileRows == 0 && kRowsPerTile % kTileRows == 0);

struct Tiles : Pairs {};
template <>
struct Units<Tiles> : Units<Pairs> {};

inline int64_t whole_tiles(int64_t count) { return (count + kTileUnits - 1) / kTileUnits * kTileUnits; }

struct TileProduct {
  const float* left;  // [16 kR, units]
  int64_t left_stride;
  const float* right;  // [units, 16 kC]
  int64_t right_stride;
  int64_t units;  // a multiple of 16
  float* sums;    // [16 kR, 16 kC]
  int64_t sum_stride;
};

// Registers 0 to 3 have the sums, 4 and 5 the left operand, 6 and 7 the right one: each load serves two
// products, as many registers as there are.
constexpr int kLeftTile = 4, kRightTile = 6;

template <int kR, int kC>
void load_sums(float* sums, int64_t stride) {
  float* const below = sums + kTileRows * stride;
  load_tile<0>(sums, stride);
  if constexpr (kC == 2) load_tile<1>(sums + kTileUnits, stride);
  if constexpr (kR == 2) load_tile<2>(below, stride);
  if constexpr (kR == 2 && kC == 2) load_tile<3>(below + kTileUnits, stride);
}

template <int kR, int kC>
void store_sums(float* sums, int64_t stride) {
  float* const below = sums + kTileRows * stride;
  store_tile<0>(sums, stride);
  if constexpr (kC == 2) store_tile<1>(sums + kTileUnits, stride);
  if constexpr (kR == 2) store_tile<2>(below, stride);
  if constexpr (kR == 2 && kC == 2) store_tile<3>(below + kTileUnits, stride);
}

inline void zero_sums() {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
}

// sums = left * right, or what was there plus that.
template <int kR, int kC, bool kAdds>
void multiply_tiles(const TileProduct& product) {
  if constexpr (kAdds) {
    load_sums<kR, kC>(product.sums, product.sum_stride);
  } else {
    zero_sums();
  }
  for (int64_t u = 0; u < product.units; u += kTileUnits) {
    const float* left = product.left + u;
    const float* right = product.right + u * product.right_stride;
    load_tile<kRightTile>(right, product.right_stride);
    if constexpr (kC == 2) load_tile<kRightTile + 1>(right + kTileUnits, product.right_stride);
    load_tile<kLeftTile>(left, product.left_stride);
    add_tile_products<0, kLeftTile, kRightTile>();
    if constexpr (kC == 2) add_tile_products<1, kLeftTile, kRightTile + 1>();
    if constexpr (kR == 2) {
      load_tile<kLeftTile + 1>(left + kTileRows * product.left_stride, product.left_stride);
      add_tile_products<2, kLeftTile + 1, kRightTile>();
      if constexpr (kC == 2) add_tile_products<3, kLeftTile + 1, kRightTile + 1>();
    }
  }
  store_sums<kR, kC>(product.sums, product.sum_stride);
}

// rows: 1 or 2 registers of them. `columns` registers of columns, by twos.
template <bool kAdds>
void multiply_strip(int64_t rows, int64_t columns, TileProduct product) {
  for (; columns > 0; columns -= 2) {
    if (rows == 1) {
      columns == 1 ? multiply_tiles<1, 1, kAdds>(product) : multiply_tiles<1, 2, kAdds>(product);
    } else {
      columns == 1 ? multiply_tiles<2, 1, kAdds>(product) : multiply_tiles<2, 2, kAdds>(product);
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
