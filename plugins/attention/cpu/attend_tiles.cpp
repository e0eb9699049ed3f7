// SPDX-License-Identifier: Apache-2.0
// As attend_kernel.cpp, for the products in tile registers.
#include "attention/cpu/tile_products.h"

namespace fastmmoe::FASTMMOE_ISA {

void attend_many_with_tiles(const AttendBlock& block);  // attend.cpp names it
void attend_many_with_tiles(const AttendBlock& block) {
  const TileRegisters registers;
  ManyRows<Tiles>(block).run();
}

}  // namespace fastmmoe::FASTMMOE_ISA
