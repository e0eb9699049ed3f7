// SPDX-License-Identifier: Apache-2.0
// What is compiled for each instruction set.
#pragma once

#include "common/cpu/panels/panels.h"

namespace fastmmoe {

using PreparePanelRow = void (*)(const PanelRows& rows, const float* x, int64_t first, int64_t count,
                                 std::byte* row);
using MultiplyPanels = void (*)(const PanelProduct& product);

/// Null: the instruction set has no such arithmetic. multiply_many: of kManyRows rows and more; null: as
/// those of fewer.
struct PanelKernel {
  PreparePanelRow prepare;
  MultiplyPanels multiply, multiply_many;
};

struct PanelKernels {
  PanelKernel floats, bfloat16, int8;
};

/// With tile registers, of rows that others have prepared. int8 of few rows is theirs, too.
struct TileKernels {
  MultiplyPanels few_bfloat16, many_bfloat16, many_int8;
};

}  // namespace fastmmoe
