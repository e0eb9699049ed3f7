// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include "contract/contract.h"

// clang-format off
namespace fastmmoe {

namespace sparse_moe {
enum Input : size_t { kHiddenStates, kRouterLogits, kVisualIndex, kVisualTopK, kCorrectionBias, kGateUp, kDown, kGateUpBias, kDownBias, kGateUpScale, kDownScale, kGateUpZero, kDownZero };
enum Output : size_t { kOutput };
enum Attribute : size_t { kTopK, kScoringFunc, kTopkMethod, kNGroup, kTopkGroup, kNormTopkProb, kRoutedScalingFactor, kReductionWeights, kActivation, kSwigluLimit, kExpertBias, kWeightFormat, kGroupSize, kZeroPoints };
constexpr int64_t kMostT = 16777216, kMostV = 16777216, kMostH = 262144, kMostI = 262144, kMostE = 4096, kMostTopK = 16, kMostNGroup = 64, kMostTopkGroup = 64;
const OpContract& contract();
}  // namespace sparse_moe

namespace token_prune {
enum Input : size_t { kHiddenStates, kResidual, kRoutingProbs, kAttention, kVisualIndex, kVisualOffsets, kKeepSlots, kKeepOffsets, kMergeSlots, kMergeOffsets, kAlpha };
enum Output : size_t { kHiddenStatesOut, kResidualOut, kKeptIndex, kVisualIndexOut };
enum Attribute : size_t { kWindow, kMerge };
constexpr int64_t kMostB = 65536, kMostT = 16777216, kMostV = 16777216, kMostK = 16777216, kMostM = 16777216, kMostH = 262144, kMostE = 4096, kMostWindow = 64;
const OpContract& contract();
}  // namespace token_prune

}  // namespace fastmmoe
// clang-format on
