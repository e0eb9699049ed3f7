// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include <cstdint>

// clang-format off
namespace fastmmoe::sparse_moe {

/// The legal values of the attributes.
enum class ScoringFunc { kSoftmax, kSigmoid, kTopkSoftmax };
enum class TopkMethod { kGreedy, kGroupLimitedGreedy, kNoauxTc };
enum class ReductionWeights { kPreserveSum, kNone };
enum class Activation { kSwiglu, kSwigluOai };
enum class WeightFormat { kFloat, kInt8, kInt4, kFp8 };
enum class WeightLayout { kLogical, kTiles };

/// The greatest legal sizes and numbers.
constexpr int64_t kMostT = 16777216, kMostV = 16777216, kMostH = 262144, kMostI = 262144, kMostE = 4096, kMostTopK = 16, kMostNGroup = 64, kMostTopkGroup = 64, kMostExpertSize = 262144;

/// Numbers of the method.
constexpr float kSwigluOaiAlpha = 1.702f;  // Factor of gate in the sigmoid of swiglu_oai.
constexpr float kWeightFloor = 1e-20f;  // Keeps a sum of scores that divides above 0.

}  // namespace fastmmoe::sparse_moe
// clang-format on
