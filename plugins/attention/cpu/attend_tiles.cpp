// SPDX-License-Identifier: Apache-2.0
// As attend_kernel.cpp, for the products in tile registers.
#ifdef FASTMMOE_STAND_IN
#include "attention/cpu/many_rows.h"  // no pairs of bfloat16, which tile registers multiply
#else
#include "attention/cpu/tile_products.h"
#endif

namespace fastmmoe::FASTMMOE_ISA {

void attend_many_with_tiles(const AttendBlock& block);  // attend.cpp names it
void attend_many_with_tiles(const AttendBlock& block) {
#ifdef FASTMMOE_STAND_IN
  ManyRows<Floats>(block).run();
#else
  const TileRegisters registers;
  ManyRows<Tiles>(block).run();
#endif
}

}  // namespace fastmmoe::FASTMMOE_ISA
