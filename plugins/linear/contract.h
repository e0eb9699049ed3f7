// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include <cstdint>

// clang-format off
namespace fastmmoe::linear {

/// The legal values of the attributes.
enum class WeightFormat { kFloat, kInt8, kInt4 };
enum class WeightLayout { kLogical, kTiles };
enum class Activation { kNone, kGelu, kGeluTanh };

/// The greatest legal sizes and numbers.
constexpr int64_t kMostT = 16777216, kMostK = 1048576, kMostN = 1048576, kMostOutFeatures = 1048576;

/// Numbers of the method.
constexpr int64_t kPanel = 16;  // Outputs of a panel of tiles.
constexpr int64_t kInt4Columns = 8;  // Columns of a word of int4; a row is whole words.

}  // namespace fastmmoe::linear
// clang-format on
