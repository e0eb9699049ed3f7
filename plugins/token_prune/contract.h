// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include <cstdint>

// clang-format off
namespace fastmmoe::token_prune {

/// The legal values of the attributes.
enum class Merge { kMlerp, kMean };

/// The greatest legal sizes and numbers.
constexpr int64_t kMostB = 65536, kMostT = 16777216, kMostV = 16777216, kMostK = 16777216, kMostM = 16777216, kMostH = 262144, kMostE = 4096, kMostWindow = 64;

/// Numbers of the method.
constexpr double kCosineFloor = 1e-08;  // Least product of norms that divides a cosine.
constexpr float kImportanceFloor = 1e-10f;  // Added to the greatest mean attention, which divides.
constexpr float kNormFloor = 1e-10f;  // Least norm that divides a mean (mlerp).

}  // namespace fastmmoe::token_prune
// clang-format on
