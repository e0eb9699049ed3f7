// SPDX-License-Identifier: Apache-2.0
// FmmLinear: rows times a matrix of 16, 8 or 4 bits. Letters: T rows, K columns, N outputs.
#pragma once

#include <cstdint>

#include "linear/contract.h"

namespace fastmmoe {

struct LinearAttributes {
  int64_t out_features;  // N
  linear::WeightFormat weight_format;
  linear::WeightLayout weight_layout;
  int64_t group_size;  // columns that share a scale; 0 with kFloat
  bool zero_points;
  bool has_bias;
  linear::Activation activation;
  bool has_residual;
};

}  // namespace fastmmoe
