// SPDX-License-Identifier: Apache-2.0
// One product in tile registers.
#include "attention/cpu/tile_registers.h"

/// sums [16, 16] += left [16, 32 bfloat16] * right [16, 16 pairs].
extern "C" __attribute__((visibility("default"))) void add_products(float* sums, const float* left,
                                                                    const float* right) {
  using namespace fastmmoe::FASTMMOE_ISA;
  const TileRegisters registers;
  load_tile<0>(sums, kTileUnits);
  load_tile<1>(left, kTileUnits);
  load_tile<2>(right, kTileUnits);
  add_tile_products<0, 1, 2>();
  store_tile<0>(sums, kTileUnits);
}
