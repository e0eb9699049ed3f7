// SPDX-License-Identifier: Apache-2.0
// Many rows of int8 with tdpbssd: to sums of 16 rows and the 16 outputs of a panel it adds the products of 64
// columns, or of 32 where groups are no larger. Rows are prepared as for byte_products.h, and results are the
// same bit for bit: the sums of a group are exact, and what follows is done in the same order.
#pragma once

#include "common/cpu/panels/byte_columns.h"
#include "common/cpu/panels/tile_operands.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

/// kIsStored: weights are read from where the matrix lies.
template <int kRegisterUnits, bool kIsStored>
struct TileQuads {
  static constexpr int kUnits = kRegisterUnits;
  template <int kSum, int kLeft, int kRight>
  static void add() {
    add_byte_products<kSum, kLeft, kRight>();
  }
  static void ahead(const float* weights) {
    if constexpr (kIsStored) prefetch_tile(weights, kUnits);
  }
};

/// Adds to y the products of a block of columns of all rows with those of kP panels.
template <typename Numbers, int kP>
struct QuadBlock {
  const PanelProduct& product;
  int64_t panel;         // of the product's
  int64_t first, units;  // columns; units fill whole registers
  const ByteColumns* panels;
  const ReadGroups* groups;
  std::byte* copy;  // of rows

  template <int kR>
  void multiply(int64_t row, int64_t count) const {
    const LeftOperand left = left_operand(product.rows + row, count, first, units * kUnitBytes, copy);
    const int64_t group_size = product.matrix->group_size, group_units = group_size / kUnitBytes;
    alignas(64) int32_t sums[kR * kTileRows * kP * kPanelOutputs];
    TileProduct tiles = tile_product(left, {panels[0].words, panels[kP - 1].words}, 0);
    tiles.sums = reinterpret_cast<float*>(sums);
    tiles.sum_stride = kP * kPanelOutputs;
    for (int64_t group = 0; group * group_units < units; ++group) {
      tiles.units = least_of(group_units, units - group * group_units);
      multiply_tiles<Numbers, kR, kP, false>(tiles);
      tiles.left += group_units;
      tiles.right += group_units * tiles.right_stride;
      for (int64_t r = 0; r < count; ++r) {
        add_group(row + r, group, groups_of(first, group_size) + group, sums + r * kP * kPanelOutputs);
      }
    }
  }

 private:
  // y of a row += its sums with zeros and scales. number: of the group in the row.
  void add_group(int64_t row, int64_t group, int64_t number, const int32_t* sums) const {
    const RowGroup of_row(product.rows[row], *product.layout, number);
    float* const y = product.y + row * product.y_stride + panel * kPanelOutputs;
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) {
#pragma GCC unroll 4
      for (int lane = 0; lane < kPanelOutputs; lane += kLanes) {
        const int output = p * kPanelOutputs + lane;
        const Vector before = number == 0 ? Vector{} : load(y + output);
        store(of_row.add(before, load(sums + output), groups[p], group, lane), y + output);
      }
    }
  }
};

template <PanelFormat kFormat, int kUnits, int kP>
void multiply_quad_blocks(const PanelProduct& product, int64_t panel, TileCopies& copies) {
  constexpr bool kIsInt4 = kFormat == PanelFormat::kInt4;
  const PanelMatrix& matrix = *product.matrix;
  ByteColumns panels[kP];
  ReadGroups groups[kP];
  for (int64_t first = 0; first < matrix.columns; first += kTileBlockBytes) {
    const int64_t count = least_of(kTileBlockBytes, matrix.columns - first);
    const int64_t units = kIsInt4 ? (count + 7) / 8 * 2 : (count + 3) / 4;
    for (int i = 0; i < kP; ++i) {
      panels[i] = ByteColumns::of(matrix, product.first_panel + panel + i, first, 0);
      groups[i].read(panels[i], groups_of(count, matrix.group_size));
      if constexpr (kIsInt4) {
        panels[i].unpack(count, copies.weights[i]);
        fill_up(copies.weights[i], units, kUnits);
      } else {
        panels[i].words = whole_weights(panels[i].words, units, kUnits, copies.weights[i]);
      }
    }
    const QuadBlock<TileQuads<kUnits, !kIsInt4>, kP> block{
        product, panel, first, whole_units(units, kUnits), panels, groups, copies.rows};
    for_tile_rows(block, product.count);
  }
}

template <PanelFormat kFormat, int kUnits>
void multiply_quads(const PanelProduct& product) {
  const TileRegisters registers(kUnits);
  TileCopies copies;
  int64_t panel = 0;
  for (; panel + 2 <= product.panels; panel += 2) {
    multiply_quad_blocks<kFormat, kUnits, 2>(product, panel, copies);
  }
  if (panel < product.panels) multiply_quad_blocks<kFormat, kUnits, 1>(product, panel, copies);
}

inline void multiply_bytes_in_tiles(const PanelProduct& product) {
  constexpr int kUnitsOf32 = 32 / kUnitBytes;
  const bool is_int4 = product.matrix->format == PanelFormat::kInt4;
  if (product.matrix->group_size == 32) {
    is_int4 ? multiply_quads<PanelFormat::kInt4, kUnitsOf32>(product)
            : multiply_quads<PanelFormat::kInt8, kUnitsOf32>(product);
  } else {
    is_int4 ? multiply_quads<PanelFormat::kInt4, kTileUnits>(product)
            : multiply_quads<PanelFormat::kInt8, kTileUnits>(product);
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
