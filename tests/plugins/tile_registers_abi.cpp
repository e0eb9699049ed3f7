// SPDX-License-Identifier: Apache-2.0
// One product in tile registers.
#include "common/cpu/tile_registers.h"

using namespace fastmmoe::FASTMMOE_ISA;

namespace {

template <typename Sum>
void load_operands(const Sum* sums, const float* left, const float* right, int units) {
  load_tile<0>(sums, kTileUnits);
  load_tile<kLeftTile>(left, units);
  load_tile<kRightTile>(right, kTileUnits);
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

/// sums [16, 16] += left [16, units pairs of bfloat16] * right [units, 16 pairs].
EXPORTED void add_pairs(float* sums, const float* left, const float* right, int units) {
  const TileRegisters registers(units);
  load_operands(sums, left, right, units);
  add_pair_products<0, kLeftTile, kRightTile>();
  store_tile<0>(sums, kTileUnits);
}

/// sums [16, 16] += left [16, units of 4 int8] * right [units, 16 of 4 int8].
EXPORTED void add_bytes(int32_t* sums, const float* left, const float* right, int units) {
  const TileRegisters registers(units);
  load_operands(sums, left, right, units);
  add_byte_products<0, kLeftTile, kRightTile>();
  store_tile<0>(sums, kTileUnits);
}
