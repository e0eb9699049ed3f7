// SPDX-License-Identifier: Apache-2.0
// Chooses experts, one warp a token: scores, groups, the best k, weights. What it computes and in which order
// it adds the chosen scores is that of cpu/route.cpp.
#pragma once

#include <cmath>

#include "sparse_moe/cuda/device.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kScoresPerLane = kMaxExperts / kWarp;  // lane l holds experts l, l + 32, ...
constexpr int kMaxGroups = 64;
constexpr int kRouteThreads = 128;

/// Of one warp.
struct RouteShared {
  float choice[kMaxExperts];
};

/// The index of the greatest of all lanes' orders, of equal ones the smallest; it is no candidate any more.
/// Lane l holds indices l, l + 32, ...
template <int kCount>
__device__ int take_best(uint32_t (&orders)[kCount]) {
  uint32_t best = 0;
  int index = 0;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    if (orders[c] <= best) continue;
    best = orders[c];
    index = c * kWarp + lane();
  }
  const bool is_best = best == __reduce_max_sync(kAllLanes, best);
  const int winner =
      static_cast<int>(__reduce_min_sync(kAllLanes, is_best ? static_cast<unsigned>(index) : ~0u));
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    if (winner == c * kWarp + lane()) orders[c] = 0;
  }
  return winner;
}

__device__ inline void score_experts(ScoringFunc scoring_func, const float* logits, int E,
                                     float (&scores)[kScoresPerLane]) {
  float greatest = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) {
    const int e = c * kWarp + lane();
    scores[c] = e < E ? logits[e] : -INFINITY;
    greatest = fmaxf(greatest, scores[c]);
  }
  if (scoring_func == ScoringFunc::kTopkSoftmax) return;
  if (scoring_func == ScoringFunc::kSigmoid) {
#pragma unroll
    for (float& score : scores) score = 1.0f / (1.0f + expf(-score));
    return;
  }
  greatest = warp_max(greatest);  // without NaN, which reaches every score by the sum
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) {
    scores[c] = expf(scores[c] - greatest);
    if (c * kWarp + lane() < E) sum += scores[c];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (float& score : scores) score /= sum;
}

/// The greatest value, or with by_sum the sum of the two greatest; NaN if any is NaN.
__device__ inline float score_group(const float* values, int count, bool by_sum) {
  float first = -INFINITY, second = -INFINITY;
  for (int i = 0; i < count; ++i) {
    if (std::isnan(values[i])) return values[i];
    second = fmaxf(second, fminf(first, values[i]));
    first = fmaxf(first, values[i]);
  }
  return by_sum && count > 1 ? first + second : first;
}

/// Sets the choice outside the best topk_group groups to 0, as the official gate does (not to -inf).
__device__ inline void limit_to_groups(const SparseMoeAttributes& attributes, int E, RouteShared& shared,
                                       float (&choice)[kScoresPerLane]) {
  const int groups = static_cast<int>(attributes.n_group), size = E / groups;
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) shared.choice[c * kWarp + lane()] = choice[c];
  __syncwarp();
  uint32_t orders[kMaxGroups / kWarp];
#pragma unroll
  for (int c = 0; c < kMaxGroups / kWarp; ++c) {
    const int g = c * kWarp + lane();
    const bool by_sum = attributes.topk_method == TopkMethod::kNoauxTc;
    orders[c] = g < groups ? order_bits(score_group(shared.choice + g * size, size, by_sum)) : 0;
  }
  uint64_t kept = 0;
  for (int i = 0; i < attributes.topk_group; ++i) kept |= uint64_t{1} << take_best(orders);
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) {
    const int e = c * kWarp + lane();
    if (e < E && (kept >> (e / size) & 1) == 0) choice[c] = 0.0f;
  }
}

/// The sum of the first lanes' values, in order.
__device__ inline float sum_of_lanes(float value, int count) {
  float sum = 0.0f;
  for (int j = 0; j < count; ++j) sum += __shfl_sync(kAllLanes, value, j);
  return sum;
}

/// Lane j holds the score of the j-th chosen expert and gets its weight.
__device__ inline float weigh(const SparseMoeAttributes& attributes, int used, float score) {
  const int k = static_cast<int>(attributes.top_k);
  const bool is_used = lane() < used && lane() < k;
  if (attributes.scoring_func == ScoringFunc::kTopkSoftmax) {
    float greatest = warp_max(lane() < k ? score : -INFINITY);
    if (__any_sync(kAllLanes, lane() < k && std::isnan(score))) greatest = NAN;
    const float weight = is_used ? expf(score - greatest) : 0.0f;
    const float sum = sum_of_lanes(weight, k);
    return is_used ? weight / sum : 0.0f;
  }
  float weight = is_used ? score : 0.0f;
  const float all = sum_of_lanes(score, k), kept = sum_of_lanes(weight, k);
  if (attributes.norm_topk_prob && k > 1) {
    weight /= kept + kWeightFloor;
  } else if (used < k && attributes.reduction_weights == ReductionWeights::kPreserveSum) {
    weight *= all / (kept < kWeightFloor ? kWeightFloor : kept);
  }
  return is_used ? weight * attributes.routed_scaling_factor : 0.0f;
}

__device__ inline bool is_visual(const SparseMoeKernelParams& params, int token) {
  const int first =
      first_at_least(static_cast<int>(params.V), token, [&](int i) { return params.visual_index[i]; });
  return first < params.V && params.visual_index[first] == token;
}

/// The indices of the k best and their scores in lanes 0 to k - 1, best first.
__device__ inline int choose_experts(const float (&choice)[kScoresPerLane], int E, int k) {
  uint32_t orders[kScoresPerLane];
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) orders[c] = c * kWarp + lane() < E ? order_bits(choice[c]) : 0;
  int chosen = 0;
  for (int j = 0; j < k; ++j) {
    const int expert = take_best(orders);
    if (lane() == j) chosen = expert;
  }
  return chosen;
}

/// Called by a warp: writes the token's slots in `work`, experts ascending.
__device__ inline void route_token(const SparseMoeKernelParams& params, const Workspace& work, int token,
                                   RouteShared& shared) {
  const SparseMoeAttributes& attributes = params.attributes;
  const int E = static_cast<int>(params.E), k = static_cast<int>(attributes.top_k);
  float scores[kScoresPerLane], choice[kScoresPerLane];
  score_experts(attributes.scoring_func, params.router_logits + int64_t{token} * E, E, scores);
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) {
    const bool is_biased = attributes.topk_method == TopkMethod::kNoauxTc && c * kWarp + lane() < E;
    choice[c] = is_biased ? scores[c] + params.correction_bias[c * kWarp + lane()] : scores[c];
  }
  if (attributes.topk_method != TopkMethod::kGreedy) limit_to_groups(attributes, E, shared, choice);
  const int expert = choose_experts(choice, E, k);
  // The official group_limited_greedy takes its weights from the masked scores.
  const bool masked = attributes.topk_method == TopkMethod::kGroupLimitedGreedy;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kScoresPerLane; ++c) shared.choice[c * kWarp + lane()] = masked ? choice[c] : scores[c];
  __syncwarp();
  const float score = lane() < k ? shared.choice[expert] : 0.0f;
  const float weight = weigh(attributes, is_visual(params, token) ? *params.visual_top_k : k, score);
  int place = 0;
  for (int j = 0; j < k; ++j) place += __shfl_sync(kAllLanes, expert, j) < expert;
  if (lane() >= k) return;
  work.experts[token * k + place] = weight == 0.0f ? -1 : expert;
  work.weights[token * k + place] = weight;
}

/// Grid: groups of as many tokens as a block has warps. Block: a warp routes a token.
__global__ void __launch_bounds__(kRouteThreads)
    route_tokens(const SparseMoeKernelParams params, const Workspace work) {
  __shared__ RouteShared shared[kRouteThreads / kWarp];
  const int64_t token = int64_t{blockIdx.x} * (kRouteThreads / kWarp) + warp();
  if (token < params.T) route_token(params, work, static_cast<int>(token), shared[warp()]);
}

}  // namespace fastmmoe::sparse_moe
