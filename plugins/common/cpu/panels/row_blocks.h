// SPDX-License-Identifier: Apache-2.0
// Rows in blocks whose sums fit into registers. For the files that are compiled once for each instruction
// set.
#pragma once

#include <cstdint>

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// The tile of kR rows, kR <= the rows that Kernel's tiles may have.
template <typename Kernel, int kR, int kP>
void run_tile(const Kernel& kernel, int64_t rows, int64_t first) {
  if constexpr (kR > 0) {
    if (rows == kR) {
      kernel.template tile<kR, kP>(first);
    } else {
      run_tile<Kernel, kR - 1, kP>(kernel, rows, first);
    }
  }
}

// kernel.tile<rows, kP>(first row) for blocks that differ by at most one row: a small last one would be slow.
template <int kP, typename Kernel>
void for_row_blocks(const Kernel& kernel, int64_t count) {
  const int64_t blocks = (count + Kernel::kRows - 1) / Kernel::kRows;
  int64_t first = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t rows = (count - first) / (blocks - b);
    run_tile<Kernel, Kernel::kRows, kP>(kernel, rows, first);
    first += rows;
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
