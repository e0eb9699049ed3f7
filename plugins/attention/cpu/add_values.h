// SPDX-License-Identifier: Apache-2.0
// Weighted sums of values: what both ways of attend_kernel.cpp end with.
#pragma once

#include "attention/cpu/units.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// Columns of values to output, for rows whose weights are given; units: of each block of kWeights rows.
template <typename Products, typename Columns>
void add_values(const AttendBlock& block, const ValueTile& weights, const Rows& values,
                const int64_t* units) {
  const int64_t stride = padded(block.W);
  const int64_t step = block.rows == 1 ? kManyVectors : kVectors, vectors = (block.W + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; v += step) {
    ValueTile tile = weights;
    tile.values = values.data + v * Columns::kFloatsPerVector;
    tile.value_stride = values.stride;
    for (int64_t r = 0; r < block.rows; r += kWeights) {
      tile.units = units[r / kWeights];
      if (tile.units == 0) continue;
      tile.weights = weights.weights + r * weights.row_stride;
      tile.rescale = weights.rescale + r;
      tile.output = block.scratch.output + r * stride + v * kLanes;
      tile.output_stride = stride;
      value_tile_of<Products, Columns, kWeights, kVectors>(block.rows - r, least_of(step, vectors - v), tile);
    }
  }
}

void clear(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
