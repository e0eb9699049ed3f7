// SPDX-License-Identifier: Apache-2.0
// What follows the products of FmmLinear, while they are near: the part that is compiled for each instruction
// set.
#pragma once

#include <cstdint>

#include "linear/contract.h"

namespace fastmmoe {

/// y[r, i] = activation(sums[r, i] + bias[i]) + residual[r, i] for `rows` rows of `columns`; residual has y's
/// stride.
struct LinearFinish {
  const float* sums;
  int64_t sums_stride;
  int64_t rows, columns;
  linear::Activation activation;
  const float* bias;      // [columns]; null: 0
  const float* residual;  // null: 0
  float* y;
  int64_t y_stride;
};

using FinishFunction = void (*)(const LinearFinish&);

/// The variant for this processor. What a value becomes depends on the values at its place alone.
FinishFunction finish_for_this_cpu();

}  // namespace fastmmoe
