// SPDX-License-Identifier: Apache-2.0
// What is compiled for each instruction set.
#pragma once

#include "common/cpu/panels/panels.h"

namespace fastmmoe {

using PreparePanelRow = void (*)(const PanelRows& rows, const float* x, int64_t first, int64_t count,
                                 std::byte* row);
using MultiplyPanels = void (*)(const PanelProduct& product);

/// Null: the instruction set has no such arithmetic.
struct PanelKernel {
  PreparePanelRow prepare;
  MultiplyPanels multiply;
};

struct PanelKernels {
  PanelKernel floats, bfloat16, int8;
};

}  // namespace fastmmoe
