// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/order.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

// The greatest value; NaN if any is NaN.
float max_of(const float* values, int64_t count) {
  float best = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(values[i])) return values[i];
    best = std::max(best, values[i]);
  }
  return best;
}

// Indices of the `count` best values, best first; ties: the smaller index.
void select_best(const float* values, int64_t size, int64_t count, int32_t* selected) {
  int64_t held = 0;
  for (int64_t i = 0; i < size; ++i) {
    int64_t place = held;
    while (place > 0 && is_better(values[i], values[selected[place - 1]])) --place;
    if (place == count) continue;
    held = std::min(held + 1, count);
    for (int64_t j = held - 1; j > place; --j) selected[j] = selected[j - 1];
    selected[place] = static_cast<int32_t>(i);
  }
}

void score_experts(ScoringFunc scoring_func, const float* logits, std::vector<float>& scores) {
  const int64_t E = static_cast<int64_t>(scores.size());
  if (scoring_func == ScoringFunc::kTopkSoftmax) {
    std::copy_n(logits, E, scores.begin());
  } else if (scoring_func == ScoringFunc::kSigmoid) {
    for (int64_t e = 0; e < E; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  } else {
    const float greatest = max_of(logits, E);
    for (int64_t e = 0; e < E; ++e) scores[e] = std::exp(logits[e] - greatest);
    const float sum = std::accumulate(scores.begin(), scores.end(), 0.0f);
    for (float& score : scores) score /= sum;
  }
}

// Sum of the two greatest values (of one where there is only one); NaN if any is NaN.
float sum_of_two_best(const float* values, int64_t count) {
  float first = -std::numeric_limits<float>::infinity(), second = first;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(values[i])) return values[i];
    second = std::max(second, std::min(first, values[i]));
    first = std::max(first, values[i]);
  }
  return count == 1 ? first : first + second;
}

// Sets the choice scores outside the best topk_group groups to 0, as the official gate does (not to -inf).
void limit_to_groups(const SparseMoeAttributes& attributes, RouteScratch& scratch) {
  const int64_t size = static_cast<int64_t>(scratch.choice.size()) / attributes.n_group;
  scratch.group_scores.resize(attributes.n_group);
  scratch.groups.resize(attributes.topk_group);
  for (int64_t g = 0; g < attributes.n_group; ++g) {
    const float* group = scratch.choice.data() + g * size;
    const bool by_sum = attributes.topk_method == TopkMethod::kNoauxTc;
    scratch.group_scores[g] = by_sum ? sum_of_two_best(group, size) : max_of(group, size);
  }
  select_best(scratch.group_scores.data(), attributes.n_group, attributes.topk_group, scratch.groups.data());
  for (int64_t g = 0; g < attributes.n_group; ++g) {
    if (std::find(scratch.groups.begin(), scratch.groups.end(), g) == scratch.groups.end()) {
      std::fill_n(scratch.choice.begin() + g * size, size, 0.0f);
    }
  }
}

// Weights [k] in place: from the chosen experts' scores to what multiplies their outputs.
void weigh(const SparseMoeAttributes& attributes, int64_t used, float* weights) {
  const int64_t k = attributes.top_k;
  const float all = std::accumulate(weights, weights + k, 0.0f), greatest = max_of(weights, k);
  std::fill(weights + used, weights + k, 0.0f);
  if (attributes.scoring_func == ScoringFunc::kTopkSoftmax) {
    for (int64_t j = 0; j < used; ++j) weights[j] = std::exp(weights[j] - greatest);
    const float sum = std::accumulate(weights, weights + used, 0.0f);
    for (int64_t j = 0; j < used; ++j) weights[j] /= sum;
    return;
  }
  const float kept = std::accumulate(weights, weights + used, 0.0f);
  if (attributes.norm_topk_prob && k > 1) {
    for (int64_t j = 0; j < used; ++j) weights[j] /= kept + kWeightFloor;
  } else if (used < k && attributes.reduction_weights == ReductionWeights::kPreserveSum) {
    const float share = all / (kept < kWeightFloor ? kWeightFloor : kept);
    for (int64_t j = 0; j < used; ++j) weights[j] *= share;
  }
  for (int64_t j = 0; j < used; ++j) weights[j] *= attributes.routed_scaling_factor;
}

}  // namespace

void route_token(const SparseMoeParams& params, int64_t token, int64_t used, RouteScratch& scratch,
                 int32_t* selected, float* weights) {
  const SparseMoeAttributes& attributes = params.attributes;
  const int64_t E = params.E;
  scratch.scores.resize(E);
  score_experts(attributes.scoring_func, params.router_logits + token * E, scratch.scores);
  scratch.choice = scratch.scores;
  if (attributes.topk_method == TopkMethod::kNoauxTc) {
    for (int64_t e = 0; e < E; ++e) scratch.choice[e] += params.correction_bias[e];
  }
  if (attributes.topk_method != TopkMethod::kGreedy) limit_to_groups(attributes, scratch);
  select_best(scratch.choice.data(), E, attributes.top_k, selected);
  // The official group_limited_greedy takes its weights from the masked scores: a chosen expert of a dropped
  // group (possible only when k exceeds the experts left) weighs 0.
  const bool masked = attributes.topk_method == TopkMethod::kGroupLimitedGreedy;
  const std::vector<float>& source = masked ? scratch.choice : scratch.scores;
  for (int64_t j = 0; j < attributes.top_k; ++j) weights[j] = source[selected[j]];
  weigh(attributes, used, weights);
}

}  // namespace fastmmoe
