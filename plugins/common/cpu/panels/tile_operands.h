// SPDX-License-Identifier: Apache-2.0
// Rows and weights as operands of products in tile registers, a block of their columns at a time.
#pragma once

#include "common/cpu/panels/place.h"
#include "common/cpu/tile_product.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int64_t kTileBlockRows = 2 * kTileRows;
// Of a row at a time. So much of two panels is 16 KiB, which stay near while all rows use them, and so is
// that of 32 rows.
constexpr int64_t kTileBlockBytes = 512, kTileBlockUnits = kTileBlockBytes / kUnitBytes;

/// Memory for operands that do not lie as the registers need them.
struct TileCopies {
  alignas(64) std::byte rows[kTileBlockRows * kTileBlockBytes];
  alignas(64) std::byte weights[2][kTileBlockUnits * kTileBytes];  // of two panels
};

inline int64_t whole_units(int64_t units, int64_t step) { return (units + step - 1) / step * step; }

/// Zeros behind weights [units, 16], up to a whole number of registers of `step` units.
inline void fill_up(std::byte* weights, int64_t units, int64_t step) {
  std::memset(weights + units * kTileBytes, 0, (whole_units(units, step) - units) * kTileBytes);
}

/// Weights [units, 16] where they lie if they fill whole registers, else a copy that does.
inline const std::byte* whole_weights(const std::byte* weights, int64_t units, int64_t step,
                                      std::byte* copy) {
  if (units % step == 0) return weights;
  std::memcpy(copy, weights, units * kTileBytes);
  fill_up(copy, units, step);
  return copy;
}

struct LeftOperand {
  const std::byte* data;
  int64_t stride;  // bytes
};

inline bool are_evenly_apart(const std::byte* const* rows, int64_t count) {
  for (int64_t r = 2; r < count; ++r) {
    if (rows[r] - rows[r - 1] != rows[1] - rows[0]) return false;
  }
  return true;
}

/// `bytes` bytes from `first` on of up to 32 rows: where they lie if they fill one or two registers and are
/// evenly apart, else a copy [32, kTileBlockBytes] in which the last row stands for those that lack.
inline LeftOperand left_operand(const std::byte* const* rows, int64_t count, int64_t first, int64_t bytes,
                                std::byte* copy) {
  if (count % kTileRows == 0 && are_evenly_apart(rows, count)) return {rows[0] + first, rows[1] - rows[0]};
  const int64_t whole = whole_units(count, kTileRows);
  for (int64_t r = 0; r < whole; ++r) {
    std::memcpy(copy + r * kTileBlockBytes, rows[least_of(r, count - 1)] + first, bytes);
  }
  return {copy, kTileBlockBytes};
}

inline TileProduct tile_product(const LeftOperand& left, const std::byte* const (&weights)[2],
                                int64_t units) {
  TileProduct product{};
  product.left = reinterpret_cast<const float*>(left.data);
  product.left_stride = left.stride / kUnitBytes;
  product.right = reinterpret_cast<const float*>(weights[0]);
  product.right_stride = kTileUnits;
  product.right_columns = (weights[1] - weights[0]) / kUnitBytes;
  product.units = units;
  return product;
}

// Weights of a register, which are loaded next.
inline void prefetch_tile(const float* weights, int units) {
  for (int i = 0; i < units; ++i) prefetch(reinterpret_cast<const std::byte*>(weights + i * kTileUnits));
}

/// block.multiply<1 or 2 registers of rows>(first row, rows) for all rows.
template <typename Block>
void for_tile_rows(const Block& block, int64_t count) {
  for (int64_t row = 0; row < count; row += kTileBlockRows) {
    const int64_t rows = least_of(kTileBlockRows, count - row);
    if (rows > kTileRows) {
      block.template multiply<2>(row, rows);
    } else {
      block.template multiply<1>(row, rows);
    }
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
