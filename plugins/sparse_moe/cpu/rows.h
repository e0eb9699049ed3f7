// SPDX-License-Identifier: Apache-2.0
// What is done with rows between and after the products: compiled for each instruction set.
#pragma once

#include <cstdint>

#include "sparse_moe/contract.h"

namespace fastmmoe {

/// Gate and up columns of some rows. Null biases: there are none.
struct GatedBlock {
  sparse_moe::Activation activation;
  float limit;  // of swiglu_oai
  int64_t rows, columns;
  const float* gate;  // [rows, columns], a row every `stride`
  const float* up;    // likewise
  int64_t stride;
  const float* gate_bias;  // [columns]
  const float* up_bias;    // [columns]
  float* to;               // [rows, columns], a row every to_stride
  int64_t to_stride;
};

struct RowFunctions {
  /// A value depends on its gate and up alone.
  void (*activate)(const GatedBlock& block);
  /// to[i] += weight * (from[i] + bias[i]); null bias: there is none.
  void (*add)(const float* from, const float* bias, float weight, int64_t count, float* to);
};

/// The variant for the widest vectors of this processor.
RowFunctions row_functions_for_this_cpu();

}  // namespace fastmmoe
