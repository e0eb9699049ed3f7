// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include "attention/contract.h"
#include "contract/contract.h"
#include "linear/contract.h"
#include "rotary/contract.h"
#include "sparse_moe/contract.h"
#include "token_prune/contract.h"
#include "vision_attention/contract.h"

// clang-format off
namespace fastmmoe {

namespace sparse_moe {
enum Input : size_t { kHiddenStates, kRouterLogits, kVisualIndex, kVisualTopK, kCorrectionBias, kGateUp, kDown, kGateUpBias, kDownBias, kGateUpScale, kDownScale, kGateUpZero, kDownZero };
enum Output : size_t { kOutput };
enum Attribute : size_t { kTopK, kScoringFunc, kTopkMethod, kNGroup, kTopkGroup, kNormTopkProb, kRoutedScalingFactor, kReductionWeights, kActivation, kSwigluLimit, kExpertBias, kWeightFormat, kGroupSize, kZeroPoints, kWeightLayout, kExpertSize };
inline ScoringFunc scoring_func_of(const NodeAttributes& node) { return static_cast<ScoringFunc>(node.integer(kScoringFunc)); }
inline TopkMethod topk_method_of(const NodeAttributes& node) { return static_cast<TopkMethod>(node.integer(kTopkMethod)); }
inline ReductionWeights reduction_weights_of(const NodeAttributes& node) { return static_cast<ReductionWeights>(node.integer(kReductionWeights)); }
inline Activation activation_of(const NodeAttributes& node) { return static_cast<Activation>(node.integer(kActivation)); }
inline WeightFormat weight_format_of(const NodeAttributes& node) { return static_cast<WeightFormat>(node.integer(kWeightFormat)); }
inline WeightLayout weight_layout_of(const NodeAttributes& node) { return static_cast<WeightLayout>(node.integer(kWeightLayout)); }
const OpContract& contract();
}  // namespace sparse_moe

namespace token_prune {
enum Input : size_t { kHiddenStates, kResidual, kRoutingProbs, kAttention, kVisualIndex, kVisualOffsets, kKeepSlots, kKeepOffsets, kMergeSlots, kMergeOffsets, kAlpha };
enum Output : size_t { kHiddenStatesOut, kResidualOut, kKeptIndex, kVisualIndexOut };
enum Attribute : size_t { kWindow, kMerge };
inline Merge merge_of(const NodeAttributes& node) { return static_cast<Merge>(node.integer(kMerge)); }
const OpContract& contract();
}  // namespace token_prune

namespace attention {
enum Input : size_t { kQuery, kKey, kPastKey, kPastLengths, kSequenceIds, kSequenceOffsets, kValue, kPastValue, kSinkLogits, kPositionIds, kPastPositionIds };
enum Output : size_t { kOutput, kPresentKey, kPresentValue, kPresentPositionIds, kLse };
enum Attribute : size_t { kWindow, kValueWidth, kScale, kHasSinks, kWritesPositionIds, kHasLse };
const OpContract& contract();
}  // namespace attention

namespace linear {
enum Input : size_t { kX, kWeight, kBias, kScale, kZero, kResidual };
enum Output : size_t { kY };
enum Attribute : size_t { kOutFeatures, kWeightFormat, kWeightLayout, kGroupSize, kZeroPoints, kHasBias, kActivation, kHasResidual };
inline WeightFormat weight_format_of(const NodeAttributes& node) { return static_cast<WeightFormat>(node.integer(kWeightFormat)); }
inline WeightLayout weight_layout_of(const NodeAttributes& node) { return static_cast<WeightLayout>(node.integer(kWeightLayout)); }
inline Activation activation_of(const NodeAttributes& node) { return static_cast<Activation>(node.integer(kActivation)); }
const OpContract& contract();
}  // namespace linear

namespace vision_attention {
enum Input : size_t { kQkv };
enum Output : size_t { kOutput };
enum Attribute : size_t { kScale, kCompute };
inline Compute compute_of(const NodeAttributes& node) { return static_cast<Compute>(node.integer(kCompute)); }
const OpContract& contract();
}  // namespace vision_attention

namespace rotary {
enum Input : size_t { kX, kCos, kSin, kNorm };
enum Output : size_t { kY };
enum Attribute : size_t { kHasNorm, kEpsilon };
const OpContract& contract();
}  // namespace rotary

}  // namespace fastmmoe
// clang-format on
