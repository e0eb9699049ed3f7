// SPDX-License-Identifier: Apache-2.0
// Products of two by two tile registers, each of which is loaded for two products. Numbers says what a unit
// is: its kUnits are the units of an operand's register, add() is its product, and ahead() sees the rows of
// the right operand that are loaded next.
#pragma once

#include "common/cpu/tile_registers.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

struct TileProduct {
  const float* left;  // [16 kR, units]
  int64_t left_stride;
  const float* right;  // [units, 16]
  int64_t right_stride;
  int64_t units;  // a multiple of kUnits
  float* sums;    // [16 kR, 16 kC]
  int64_t sum_stride;
  int64_t right_columns = kTileUnits;  // from right to [units, 16] for the second register of columns
};

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
template <typename Numbers, int kR, int kC, bool kAdds>
void multiply_tiles(const TileProduct& product) {
  if constexpr (kAdds) {
    load_sums<kR, kC>(product.sums, product.sum_stride);
  } else {
    zero_sums();
  }
  for (int64_t u = 0; u < product.units; u += Numbers::kUnits) {
    const float* left = product.left + u;
    const float* right = product.right + u * product.right_stride;
    Numbers::ahead(right);
    load_tile<kRightTile>(right, product.right_stride);
    if constexpr (kC == 2) {
      Numbers::ahead(right + product.right_columns);
      load_tile<kRightTile + 1>(right + product.right_columns, product.right_stride);
    }
    load_tile<kLeftTile>(left, product.left_stride);
    Numbers::template add<0, kLeftTile, kRightTile>();
    if constexpr (kC == 2) Numbers::template add<1, kLeftTile, kRightTile + 1>();
    if constexpr (kR == 2) {
      load_tile<kLeftTile + 1>(left + kTileRows * product.left_stride, product.left_stride);
      Numbers::template add<2, kLeftTile + 1, kRightTile>();
      if constexpr (kC == 2) Numbers::template add<3, kLeftTile + 1, kRightTile + 1>();
    }
  }
  store_sums<kR, kC>(product.sums, product.sum_stride);
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
