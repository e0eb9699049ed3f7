// SPDX-License-Identifier: Apache-2.0
// As kernel.cpp, for the products in tile registers.
#include "common/cpu/panels/kernels.h"
#include "common/cpu/panels/tile_bytes.h"
#include "common/cpu/panels/tile_pairs.h"

namespace fastmmoe::FASTMMOE_ISA {

TileKernels tile_kernels();  // panels.cpp names it
TileKernels tile_kernels() {
  return {multiply_pairs_by<FewPairs>, multiply_pairs_in_tiles, multiply_bytes_in_tiles};
}

}  // namespace fastmmoe::FASTMMOE_ISA
