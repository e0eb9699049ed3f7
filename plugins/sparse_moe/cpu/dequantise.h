// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/half.h"
#include "sparse_moe/contract.h"

namespace fastmmoe {

/// A matrix of packed weights in rows (exporter/ops/quantise.py).
struct PackedRows {
  sparse_moe::WeightFormat format;  // not kFloat
  int64_t columns, group_size;
  const int8_t* values;
  const Float16* scale;
  const int8_t* zero;  // null: 0 with int8, 8 with int4, none with fp8
};

/// What `row` stands for: to [columns] float.
void dequantise_row(const PackedRows& matrix, int64_t row, float* to);

}  // namespace fastmmoe
